//! Deaths and signals: the run ends, says who died, and leaves no process behind.

use convoy_tests::{Bench, Ended, finish};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{SMALL, bench};

/// Starts a long run, does something to it once it trains, and waits for its end.
fn disturb(bench: &Bench, disturbance: impl FnOnce(i32)) -> Ended {
    let arguments = format!("--backend cpu --workers 2 --servers 2 --steps 1000000 --max-restarts 0 --name r {SMALL}");
    let child = bench.command(&arguments).spawn().unwrap();
    let pid = child.id() as i32;
    bench.await_steps("r", 5);
    disturbance(pid);
    let ended = finish(child);
    bench.await_no_process();
    ended
}

fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn process(bench: &Bench, words: &str) -> i32 {
    let processes = bench.processes();
    processes.iter().find(|(_, line)| line.contains(words)).unwrap_or_else(|| panic!("no {words}: {processes:?}")).0
}

#[test]
fn a_killed_worker_or_server_ends_the_run_and_is_named() {
    for role in ["worker", "server"] {
        let bench = bench();
        let ended = disturb(&bench, |_| send(process(&bench, &format!(" {role} --run")), Signal::SIGKILL));
        assert_eq!(ended.code, Some(4), "{}", ended.stderr);
        assert!(ended.stderr.contains(&format!("error: {role} ")), "{}", ended.stderr);
        assert!(ended.stderr.contains("was killed by signal 9 (SIGKILL); the last lines of "), "{}", ended.stderr);
        let summary = bench.summary("r");
        assert_eq!((summary["status"].as_str(), summary["exit_code"].as_u64()), (Some("failed"), Some(4)));
        assert_eq!(summary["faults"].as_u64(), Some(1));
    }
}

#[test]
fn a_worker_that_hangs_is_noticed_by_its_lease() {
    let bench = bench();
    let arguments = format!(
        "--backend cpu --workers 2 --steps 1000000 --max-restarts 0 --name r {SMALL} --set timeouts.heartbeat_ms=50 --set timeouts.lease_ms=4000"
    );
    let child = bench.command(&arguments).spawn().unwrap();
    bench.await_steps("r", 5);
    send(process(&bench, " worker --run"), Signal::SIGSTOP);
    let ended = finish(child);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("has not been heard of for"), "{}", ended.stderr);
    bench.await_no_process();
}

#[test]
fn one_interrupt_finishes_the_step_and_saves_the_model() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let bench = bench();
        let ended = disturb(&bench, |launcher| send(launcher, signal));
        assert_eq!(ended.code, Some(75), "{}", ended.stderr);
        let summary = bench.summary("r");
        assert_eq!(summary["status"], "stopped");
        assert_eq!(summary["params_sha256"], convoy_tests::recomputed_sha256(&bench.run_dir("r")));
        let steps = summary["steps"].as_u64().unwrap();
        assert_eq!(summary["samples"].as_u64(), Some(steps * 128), "no step is left half done");
    }
}

#[test]
fn two_interrupts_end_at_once() {
    let bench = bench();
    let ended = disturb(&bench, |launcher| {
        // A stopped worker cannot finish its step, so only the second signal can end the run.
        let worker = process(&bench, " worker --run");
        send(worker, Signal::SIGSTOP);
        send(launcher, Signal::SIGINT);
        convoy_tests::until("the first signal is seen", || {
            bench.metrics("r").iter().any(|event| event["event"] == "signal")
        });
        send(launcher, Signal::SIGINT);
    });
    assert_eq!(ended.code, Some(130), "{}", ended.stderr);
    assert_eq!(bench.summary("r")["status"], "stopped");
}

#[test]
fn no_child_outlives_a_killed_launcher() {
    let bench = bench();
    let ended = disturb(&bench, |launcher| send(launcher, Signal::SIGKILL));
    assert_eq!(ended.code, None);
    assert_eq!(bench.summary("r")["status"], "running", "nobody was left to write another");
}
