//! Runs on several machines: who comes when, who is lost and returns, and whose run it is.

use std::process::Child;

use convoy_tests::{Bench, finish, net::Net, until};
use nix::sys::signal::Signal;

use crate::{SMALL, bench, strikes::send};

/// Leases that are over soon.
pub const QUICK: &str = "--set timeouts.heartbeat_ms=100 --set timeouts.lease_ms=1500";
pub const PORT: u16 = 7000;

fn run(steps: u64, delay_ms: u64) -> String {
    format!("--backend cpu --workers 3 --slices 4 --steps {steps} --slow-worker any:{delay_ms}ms {SMALL} {QUICK}")
}

/// The machine that coordinates, with one of the workers.
fn head(net: &Net, bench: &Bench, arguments: &str) -> Child {
    let listen = format!("--listen {}:{PORT} --local-workers 1", Net::address(0));
    net.command(bench, 0, &format!("{arguments} {listen}")).spawn().unwrap()
}

pub fn join(net: &Net, bench: &Bench, machine: u32, arguments: &str) -> Child {
    let join = format!("join {}:{PORT} --run-dir machine-{machine} --wait 60 {arguments}", Net::address(0));
    net.command(bench, machine, &join).spawn().unwrap()
}

#[test]
fn machines_come_in_any_order_and_the_bits_are_those_of_one() {
    let Some(net) = Net::new(3) else { return };
    let bench = bench();
    let calm = bench.train("calm", &run(60, 5).replace("--backend cpu", ""));
    bench.succeed("certs certs --host 10.77.0.1 --host 10.77.0.2 --host 10.77.0.3");
    bench.succeed("certs node --from certs --host node2");
    let orders: [(&str, [u32; 3]); 3] = [("first", [0, 1, 2]), ("last", [1, 2, 0]), ("between", [2, 0, 1])];
    for (name, order) in orders {
        let started: Vec<Child> = order
            .into_iter()
            .map(|machine| match machine {
                0 => head(&net, &bench, &format!("{} --certs certs --name {name}", run(60, 5))),
                machine => join(&net, &bench, machine, &format!("--workers 1 --certs node --id {name}")),
            })
            .collect();
        for child in started {
            let ended = finish(child);
            assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        }
        let summary = bench.summary(name);
        assert_eq!(summary["params_sha256"], calm["params_sha256"], "{name}");
        assert_eq!((summary["restarts"].as_u64(), summary["faults"].as_u64()), (Some(0), Some(0)), "{name}");
        bench.succeed(&format!("verify {name}"));
    }
    bench.await_no_process();
}

#[test]
fn a_machine_that_is_lost_and_returns_changes_no_bit() {
    let Some(net) = Net::new(3) else { return };
    let bench = bench();
    let calm = bench.train("calm", &run(120, 20).replace("--backend cpu", ""));
    let child = head(&net, &bench, &format!("{} --insecure --name r", run(120, 20)));
    let (kept, lost) = (join(&net, &bench, 1, "--workers 1"), join(&net, &bench, 2, "--workers 1"));
    bench.await_steps("r", 10);
    send(lost.id() as i32, Signal::SIGKILL);
    finish(lost);
    until("the machine is lost", || bench.has_event("r", "node_lost"));
    let returned = join(&net, &bench, 2, "--workers 1");
    for child in [child, kept, returned] {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    let summary = bench.summary("r");
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert!(summary["faults"].as_u64() >= Some(1));
    bench.succeed("verify r");
    bench.await_no_process();
}

#[test]
fn a_machine_that_is_back_before_it_is_missed_gets_its_places_again() {
    let Some(net) = Net::new(2) else { return };
    let bench = bench();
    let calm = bench.train("calm", &run(150, 20).replace("--backend cpu", ""));
    // There is room for no more, so what it offers at once cannot be taken.
    let child = head(&net, &bench, &format!("{} --max-workers 3 --insecure --name r", run(150, 20)));
    let lost = join(&net, &bench, 1, "--workers 2");
    bench.await_steps("r", 10);
    send(lost.id() as i32, Signal::SIGKILL);
    finish(lost);
    let returned = join(&net, &bench, 1, "--workers 2");
    for child in [child, returned] {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    let summary = bench.summary("r");
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert!(bench.has_event("r", "node_lost") && summary["workers"].as_array().map(Vec::len) == Some(3));
    bench.succeed("verify r");
    bench.await_no_process();
}

#[test]
fn the_coordinator_may_have_no_worker_of_its_own() {
    let Some(net) = Net::new(2) else { return };
    let bench = bench();
    let two = run(40, 0).replace("--workers 3", "--workers 2");
    let calm = bench.train("calm", &two.replace("--backend cpu", ""));
    let listen = format!("--listen {}:{PORT} --local-workers 0 --insecure --name r", Net::address(0));
    let child = net.command(&bench, 0, &format!("{two} {listen}")).spawn().unwrap();
    let other = join(&net, &bench, 1, "--workers 2");
    for child in [child, other] {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
}

#[test]
fn the_same_command_on_each_machine_makes_one_run() {
    let Some(net) = Net::new(3) else { return };
    let bench = bench();
    let one = run(60, 5).replace("--workers 3", "--workers 1");
    let calm = bench.train("calm", &one.replace("--backend cpu", "").replace("--slices 4", "--slices 3"));
    let place = format!("--rdzv-endpoint {}:{PORT} --rdzv-id r", Net::address(0));
    let same = format!("{} --nnodes 2:3 {place} --insecure", one.replace("--slices 4", ""));
    let start = |machine: u32| {
        let root = if machine == 0 { String::new() } else { format!("--run-dir machine-{machine}") };
        net.command(&bench, machine, &format!("{same} {root}")).spawn().unwrap()
    };
    for child in [2, 0, 1].map(start) {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
    bench.succeed("verify r");
}

#[test]
fn a_line_that_is_cut_and_healed_changes_no_bit() {
    let Some(net) = Net::new(2) else { return };
    let bench = bench();
    let calm = bench.train("calm", &run(200, 20).replace("--backend cpu", ""));
    let child = head(&net, &bench, &format!("{} --insecure --name r", run(200, 20)));
    let other = join(&net, &bench, 1, "--workers 2");
    bench.await_steps("r", 10);
    net.cut(1);
    until("the machine is lost", || bench.has_event("r", "node_lost"));
    net.heal(1);
    for child in [child, other] {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    let joined = bench.metrics("r").iter().filter(|line| line["event"] == "node_joined").count();
    assert!(joined >= 2, "it came back");
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
    bench.succeed("verify r");
    bench.await_no_process();
}

#[test]
fn two_runs_side_by_side_do_not_mix() {
    let Some(net) = Net::new(3) else { return };
    let bench = bench();
    let other = |arguments: &str| {
        let listen = format!("--listen {}:{PORT} --local-workers 1 --insecure", Net::address(2));
        net.command(&bench, 2, &format!("{arguments} {listen}")).spawn().unwrap()
    };
    let two = |name: &str| format!("{} --name {name}", run(60, 5).replace("--workers 3", "--workers 2"));
    let heads = [head(&net, &bench, &format!("{} --insecure", two("red"))), other(&two("blue"))];
    let wrong = finish(join(&net, &bench, 1, "--workers 1 --rdzv-id blue"));
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    assert!(wrong.stderr.contains("its run is blue, the cluster's is red"), "{}", wrong.stderr);
    let red = join(&net, &bench, 1, "--workers 1 --rdzv-id red");
    let blue = format!("join {}:{PORT} --run-dir machine-1b --workers 1 --rdzv-id blue", Net::address(2));
    let blue = net.command(&bench, 1, &blue).spawn().unwrap();
    for child in heads.into_iter().chain([red, blue]) {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert_eq!(bench.summary("red")["params_sha256"], bench.summary("blue")["params_sha256"]);
}

#[test]
fn a_machine_that_comes_late_brings_more_workers() {
    let Some(net) = Net::new(2) else { return };
    let bench = bench();
    let one = run(150, 20).replace("--workers 3", "--workers 1");
    let calm = bench.train("calm", &one.replace("--backend cpu", ""));
    let child = head(&net, &bench, &format!("{one} --insecure --name r"));
    bench.await_steps("r", 5);
    let other = join(&net, &bench, 1, "--workers 2");
    for child in [child, other] {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    let summary = bench.summary("r");
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert_eq!(summary["workers"].as_array().map(Vec::len), Some(3));
    assert!(summary["workers"][2]["samples"].as_u64() > Some(0));
    bench.succeed("verify r");
}

#[test]
fn machines_join_again_by_themselves_when_the_coordinator_is_resumed() {
    let Some(net) = Net::new(3) else { return };
    let bench = bench();
    let long = format!("{} --checkpoint-every 5", run(200, 20));
    let calm = bench.train("calm", &long.replace("--backend cpu", ""));
    let child = head(&net, &bench, &format!("{long} --insecure --name r"));
    let others = [1, 2].map(|machine| join(&net, &bench, machine, "--workers 1"));
    bench.await_steps("r", 20);
    send(child.id() as i32, Signal::SIGKILL);
    finish(child);
    let resumed = net.command(&bench, 0, "resume r").spawn().unwrap();
    for child in others.into_iter().chain([resumed]) {
        let ended = finish(child);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
    bench.succeed("verify r");
    bench.await_no_process();
}

#[test]
fn who_joins_nobody_ends_in_time_and_says_why() {
    let bench = bench();
    let nobody = bench.run("join 127.0.0.1:1 --wait 0");
    assert_eq!(nobody.code, Some(3), "{}", nobody.stderr);
    assert!(nobody.stderr.contains("no run at 127.0.0.1:1 within 0 s"), "{}", nobody.stderr);
    let unknown = bench.run("join no.such.host.invalid:7000 --wait 0");
    assert_eq!(unknown.code, Some(3), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("no.such.host.invalid"), "{}", unknown.stderr);
    let waits = bench.run(&format!("{} --local-workers 1 --set timeouts.start_ms=300 --name w", run(5, 0)));
    assert_eq!(waits.code, Some(1), "{}", waits.stderr);
    assert!(
        waits.stderr.contains("waiting for worker 1, 2; 2 workers wait for other machines: `launcher join"),
        "{}",
        waits.stderr
    );
}
