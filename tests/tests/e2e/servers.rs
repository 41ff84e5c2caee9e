//! Servers on other machines than the coordinator's.

use std::process::Child;

use convoy_tests::{Bench, finish, net::Net, until};
use nix::sys::signal::Signal;

use crate::{
    SMALL, bench,
    nodes::{PORT, QUICK, join},
    strikes::{send, verify},
};

fn run(steps: u64, delay_ms: u64) -> String {
    format!("--backend cpu --workers 2 --slices 4 --steps {steps} --slow-worker any:{delay_ms}ms {SMALL} {QUICK}")
}

/// The machine that coordinates, with a server and a worker.
fn head(net: &Net, bench: &Bench, arguments: &str) -> Child {
    let own = format!("--listen {}:{PORT} --local-servers 1 --checkpoint-every 20", Net::address(0));
    let kept = bench.path().join("kept").display().to_string();
    net.command(bench, 0, &format!("{arguments} {own} --checkpoint-to {kept}")).spawn().unwrap()
}

fn ends_well(children: impl IntoIterator<Item = Child>) {
    for child in children {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
}

#[test]
fn servers_on_other_machines_change_no_bit() {
    let Some(net) = Net::new(3) else { return };
    let bench = bench();
    let calm = bench.train("calm", &run(60, 5).replace("--backend cpu", ""));
    bench.succeed("certs certs --host 10.77.0.1");
    for machine in [1, 2] {
        let host = Net::address(machine);
        bench.succeed(&format!("certs node{machine} --from certs --role server --host {host}"));
    }
    bench.succeed("certs worker --from certs");
    let child = head(&net, &bench, &format!("{} --local-workers 1 --servers 3 --certs certs --name r", run(60, 5)));
    let others = [
        join(&net, &bench, 1, "--workers 1 --servers 1 --certs node1"),
        join(&net, &bench, 2, "--workers 0 --servers 1 --certs node2 --interface eth0"),
    ];
    ends_well(others.into_iter().chain([child]));
    let summary = bench.summary("r");
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    let mut hosts: Vec<_> = summary["servers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|server| server["address"].as_str().unwrap().split(':').next().unwrap().to_string())
        .collect();
    hosts.sort();
    assert_eq!(hosts, ["10.77.0.1", "10.77.0.2", "10.77.0.3"]);
    verify(&bench, "r");
    // A worker's token is not enough for a server.
    let lesser = finish(join(&net, &bench, 1, "--servers 1 --certs worker"));
    assert_eq!(lesser.code, Some(2), "{}", lesser.stderr);
    assert!(lesser.stderr.contains("--servers takes a server's token"), "{}", lesser.stderr);
    bench.await_no_process();
}

#[test]
fn a_copy_on_another_machine_takes_over_and_its_machine_is_replaced() {
    let Some(net) = Net::new(2) else { return };
    let bench = bench();
    let calm = bench.train("calm", &run(200, 20).replace("--backend cpu", ""));
    let faults = "--replicas 1 --chaos kill-server:0@20";
    let child = head(&net, &bench, &format!("{} {faults} --insecure --name r", run(200, 20)));
    let lost = join(&net, &bench, 1, "--workers 0 --servers 1");
    // The other copy of the shard goes on while the first is away, and gives it its shard back.
    until("the first is back", || bench.has_event("r", "copied"));
    send(lost.id() as i32, Signal::SIGKILL);
    finish(lost);
    until("the machine is lost", || bench.has_event("r", "node_lost"));
    let returned = join(&net, &bench, 1, "--workers 0 --servers 1");
    ends_well([child, returned]);
    let summary = bench.summary("r");
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert!(!bench.has_event("r", "rollback"), "a copy was there all the time");
    assert_eq!(bench.metrics("r").iter().filter(|event| event["event"] == "copied").count(), 2);
    bench.await_no_process();
}

#[test]
fn what_a_copy_alone_has_seen_is_in_the_ledger_at_the_end() {
    let Some(net) = Net::new(2) else { return };
    let bench = bench();
    let faults = "--replicas 1 --max-restarts 0 --chaos kill-server:0@20";
    let child = head(&net, &bench, &format!("{} {faults} --insecure --name r", run(60, 10)));
    let other = join(&net, &bench, 1, "--workers 0 --servers 1");
    ends_well([child, other]);
    assert!(bench.run_dir("r").join("ledger-1.jsonl").exists());
    verify(&bench, "r");
    bench.await_no_process();
}

#[test]
fn a_shard_that_is_lost_with_its_machine_is_taken_from_the_checkpoint_by_another() {
    let Some(net) = Net::new(3) else { return };
    let bench = bench();
    let calm = bench.train("calm", &run(120, 20).replace("--backend cpu", ""));
    let child = head(&net, &bench, &format!("{} --servers 2 --insecure --name r", run(120, 20)));
    let lost = join(&net, &bench, 1, "--workers 0 --servers 1");
    bench.await_steps("r", 50);
    send(lost.id() as i32, Signal::SIGKILL);
    finish(lost);
    until("the run goes back", || bench.has_event("r", "rollback"));
    let other = join(&net, &bench, 2, "--workers 0 --servers 1");
    ends_well([child, other]);
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
    bench.await_no_process();
}

#[test]
fn servers_elsewhere_need_checkpoints_that_all_reach() {
    let bench = bench();
    let refused = bench.run("--servers 2 --local-servers 1");
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("--checkpoint-to"), "{}", refused.stderr);
    let none = bench.run("join 127.0.0.1:1 --workers 0");
    assert!(none.code == Some(2) && none.stderr.contains("--servers M"), "{}", none.stderr);
}
