//! What every consistency mode costs and gains: accuracy for equal samples, time with slow workers, bytes on the wire.

use serde_json::Value;

use crate::bench;

/// Steps of a synchronous run of eight epochs.
const STEPS: u64 = 1256;
const RUN: &str = "--workers 4 --task mlp --set model.hidden=[128] --batch-size 128 --schedule cosine --eval-every 0";
/// How slow the workers are, and which modes must then take less time than `--sync`.
const CALM: &str = "";
const ONE_SLOW: &str = "--slow-worker 3:50ms";
const ANY_SLOW: &str = "--slow-worker any:50ms@0.25";

/// A mode, and how it is given as many samples as the others.
struct Case {
    mode: &'static str,
    lr: f64,
    steps: u64,
    beats_sync_under: &'static [&'static str],
}

/// A commit of one slice moves the parameters as far as one of four: a quarter of the rate. A quorum of three uses three
/// quarters of a step's samples: a third more steps.
const CASES: [Case; 5] = [
    Case { mode: "--sync", lr: 0.004, steps: STEPS, beats_sync_under: &[] },
    Case { mode: "--quorum 3", lr: 0.004, steps: STEPS * 4 / 3, beats_sync_under: &[ONE_SLOW, ANY_SLOW] },
    Case { mode: "--async", lr: 0.001, steps: STEPS, beats_sync_under: &[ONE_SLOW] },
    Case { mode: "--ssp 3", lr: 0.001, steps: STEPS, beats_sync_under: &[ANY_SLOW] },
    Case { mode: "--local-steps 50", lr: 0.004, steps: STEPS, beats_sync_under: &[] },
];

fn bytes(summary: &Value, what: &str) -> f64 {
    summary["workers"].as_array().unwrap().iter().map(|worker| worker[what].as_f64().unwrap()).sum()
}

/// Takes ten minutes.
#[test]
fn modes() {
    let bench = bench();
    let mut faults = Vec::new();
    let mut sync: Vec<Value> = Vec::new();
    println!("| mode | slow | accuracy | time | time of sync / time | pushed: sync / mode | pulled: sync / mode |");
    println!("|---|---|---|---|---|---|---|");
    for (c, case) in CASES.iter().enumerate() {
        for (s, slow) in [CALM, ONE_SLOW, ANY_SLOW].into_iter().enumerate() {
            let how = format!("{RUN} {} --lr {} --steps {} {slow}", case.mode, case.lr, case.steps);
            let summary = bench.train(&format!("c{c}s{s}"), &how);
            if c == 0 {
                sync.push(summary.clone());
            }
            let ratio = |of: &dyn Fn(&Value) -> f64| of(&sync[s]) / of(&summary);
            let time = ratio(&|summary| summary["wall_seconds"].as_f64().unwrap());
            let [pushed, pulled] = ["bytes_pushed", "bytes_pulled"].map(|what| ratio(&|summary| bytes(summary, what)));
            let accuracy = summary["eval"]["accuracy"].as_f64().unwrap();
            println!(
                "| {} | {slow} | {accuracy:.4} | {:.1} s | {time:.2} | {pushed:.1} | {pulled:.1} |",
                case.mode,
                summary["wall_seconds"].as_f64().unwrap(),
            );
            let within = sync[s]["eval"]["accuracy"].as_f64().unwrap() - accuracy < 0.01;
            let quick = time > 1.0 || !case.beats_sync_under.contains(&slow);
            let thrifty = case.mode != "--local-steps 50" || pushed.min(pulled) >= 40.0;
            if !(within && quick && thrifty) {
                faults.push(format!("{} {slow}", case.mode));
            }
        }
    }
    assert!(faults.is_empty(), "not as promised: {faults:?}");
}
