//! Every consistency mode, with what goes along with it: clipping, layerwise rules, averages, several servers, stops.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use convoy_tests::finish;

use crate::bench;

const MODES: [&str; 5] = ["--sync", "--quorum 3", "--async", "--ssp 2", "--local-steps 5"];
const MLP: &str = "--task mlp --set model.hidden=[32] --workers 4 --servers 2";

#[test]
fn every_mode_learns_from_every_sample_once() {
    let bench = bench();
    for (m, mode) in MODES.iter().enumerate() {
        let name = format!("m{m}");
        let summary = bench.train(&name, &format!("{MLP} {mode} --epochs 1 --batch-size 200 --eval-every 50"));
        assert!(summary["eval"]["accuracy"].as_f64().unwrap() > 0.4, "{mode}: {}", summary["eval"]);
        assert_eq!(summary["steps"], 100, "{mode}");
        // A slice that a quorum was made without was computed, or not, but never twice.
        let samples = summary["samples"].as_u64().unwrap();
        let left_out = summary["dropped_slices"].as_u64().unwrap() * 50;
        assert!(samples <= 20_000 && samples + left_out >= 20_000, "{mode}: {samples} and {left_out}");
        assert_eq!(summary["exact"] == true, matches!(m, 0 | 4), "{mode}: {}", summary["exact"]);
        let steps: Vec<u64> = bench
            .metrics(&name)
            .iter()
            .filter(|line| line["event"] == "step")
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        let expected: Vec<u64> = if m == 4 { (1..=20).map(|round| round * 5).collect() } else { (1..=100).collect() };
        assert_eq!(steps, expected, "{mode}");
    }
}

#[test]
fn every_mode_goes_with_clipping_layerwise_rules_and_averages() {
    let bench = bench();
    for (m, mode) in MODES.iter().enumerate() {
        // Three servers for five blocks: one of them may have nothing to do.
        let how = "--servers 3 --steps 12 --optimizer lamb --clip-norm 0.5 --ema 0.9 --eval-every 4 --keep-best";
        let mlp = "--task mlp --set model.hidden=[32] --workers 4";
        let summary = bench.train(&format!("m{m}"), &format!("{mlp} {mode} {how} --eval-samples 200"));
        assert!(summary["ema"]["params_sha256"].is_string() && summary["best"]["params_sha256"].is_string(), "{mode}");
        assert_eq!(summary["steps"], 12, "{mode}");
    }
}

#[test]
fn every_mode_stops_when_told_to() {
    let bench = bench();
    for (m, mode) in MODES.iter().enumerate() {
        let name = format!("m{m}");
        let slow = "--slow-worker any:2ms@0.2 --eval-every 0";
        let child =
            bench.command(&format!("--backend cpu {MLP} {mode} {slow} --steps 1000000 --name {name}")).spawn().unwrap();
        bench.await_steps(&name, 3);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(finish(child).code, Some(75), "{mode}");
        let summary = bench.summary(&name);
        assert_eq!(summary["status"], "stopped", "{mode}");
        assert!(fs::exists(bench.run_dir(&name).join("model.safetensors")).unwrap(), "{mode}");
    }
}

#[test]
fn a_slow_worker_is_named_and_a_bound_on_staleness_holds() {
    let bench = bench();
    let slow = format!("{MLP} --ssp 1 --steps 20 --eval-every 0 --slow-worker 2:100ms");
    bench.train("slow", &slow);
    let metrics = bench.metrics("slow");
    let named: Vec<_> = metrics.iter().filter(|line| line["event"] == "straggler").collect();
    assert!(named.iter().any(|line| line["worker"] == 2), "{named:?}");
    // When a worker begins, each other is at most K behind it; when it is done, at most K + 1 ahead: 2·K + 1 commits.
    let stalest = metrics.iter().filter_map(|line| line["staleness"].as_u64()).max().unwrap();
    assert!(stalest <= 3 * 3, "{stalest}");
}

#[test]
fn a_worker_that_quorums_go_on_without_is_named() {
    let bench = bench();
    bench.train("slow", &format!("{MLP} --quorum 3 --steps 200 --eval-every 0 --slow-worker 2:100ms"));
    let metrics = bench.metrics("slow");
    let named = metrics.iter().find(|line| line["event"] == "straggler" && line["worker"] == 2);
    let missed = named.expect("the slow worker is named")["lag"].as_u64().unwrap();
    assert!(missed >= 4, "{missed}");
}

#[test]
fn local_steps_push_less() {
    let bench = bench();
    let train = |name: &str, mode: &str| {
        let summary = bench.train(name, &format!("{MLP} {mode} --steps 100 --eval-every 0"));
        let workers = summary["workers"].as_array().unwrap().clone();
        workers.iter().map(|worker| worker["bytes_pushed"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(train("sync", "--sync"), 50 * train("local", "--local-steps 50"));
}
