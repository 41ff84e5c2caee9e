//! Signals to the processes of a run, at a step.

use std::process::Child;

use convoy_tests::{Bench, Ended, finish};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

pub fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// The process in a place of a run; there may be none between two.
pub fn process(bench: &Bench, name: &str, (role, rank): (&str, u32)) -> Option<i32> {
    let (run, rank, role) = (format!("/{name} "), format!("--rank {rank} "), format!(" {role} "));
    let is_it = |line: &str| [&run, &rank, &role].iter().all(|word| line.contains(*word));
    bench.processes().into_iter().find(|(_, line)| is_it(line)).map(|(pid, _)| pid)
}

/// Sends a signal to a process once the run has come to a step.
pub fn strike(bench: &Bench, name: &str, (place, step): ((&str, u32), u64), signal: Signal) {
    bench.await_steps(name, step);
    let mut victim = None;
    convoy_tests::until("the victim is there", || {
        victim = process(bench, name, place);
        victim.is_some()
    });
    send(victim.unwrap(), signal);
}

/// Waits for the end of a run, and until nothing of it is left.
pub fn end(bench: &Bench, name: &str, child: Child) -> (Ended, Value) {
    let ended = finish(child);
    bench.await_no_process();
    (ended, bench.summary(name))
}

/// Recomputes that every sample was used as often as it should be.
pub fn verify(bench: &Bench, name: &str) {
    let told = bench.succeed(&format!("verify {name}")).stdout;
    assert!(told.starts_with("verified: "), "{told}");
}

/// The steps of all events of a kind, in order.
pub fn steps(bench: &Bench, name: &str, kind: &str) -> Vec<u64> {
    let events = bench.metrics(name).into_iter().filter(|event| event["event"] == kind);
    events.map(|event| event["step"].as_u64().unwrap()).collect()
}
