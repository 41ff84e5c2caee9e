//! Workers killed at any moment, by seeds: what is exact ends in the bits of a calm run, the rest ends well.

use std::{thread::sleep, time::Duration};

use convoy_proto::order::{Purpose, below, stream};
use convoy_tests::{Bench, finish};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::bench;

const RUN: &str = "--backend cpu --task mlp --set model.hidden=[24] --workers 4 --slices 8 --servers 2 --steps 24 \
    --eval-every 3 --eval-samples 200 --slow-worker any:5ms@0.5";
const MODES: [&str; 6] = [
    "--sync",
    "--clip-norm 0.1 --optimizer lamb --ema 0.9 --keep-best",
    "--local-steps 3",
    "--quorum 5 --ema 0.9",
    "--async --clip-norm 0.1",
    "--ssp 1",
];
const SEEDS: u64 = 40;

/// Kills some of the workers, each after a while of its own.
fn strike(bench: &Bench, name: &str, (seed, most): (u64, u64)) -> u64 {
    let mut random = stream(seed, Purpose::Order, 0, 0);
    bench.await_steps(name, 1);
    let victims = 1 + below(&mut random, most);
    let mut killed = 0;
    for _ in 0..victims {
        sleep(Duration::from_millis(below(&mut random, 120)));
        let run = format!("/{name} ");
        let is_worker = |(_, line): &(i32, String)| line.contains(" worker ") && line.contains(&run);
        let workers: Vec<_> = bench.processes().into_iter().filter(is_worker).collect();
        if workers.len() > 1 || (most > 3 && !workers.is_empty()) {
            let victim = workers[below(&mut random, workers.len() as u64) as usize].0;
            killed += u64::from(kill(Pid::from_raw(victim), Signal::SIGKILL).is_ok());
        }
    }
    killed
}

/// Runs every mode with every seed; gives what was killed and what was noticed.
fn disturb(how: &str, most: u64) {
    let bench = bench();
    for (m, mode) in MODES.iter().enumerate() {
        let calm = bench.train(&format!("calm{m}"), &format!("{RUN} {mode}"));
        let (mut killed, mut noticed, mut restarts) = (0, 0, 0);
        for seed in 0..SEEDS {
            println!("{mode}: seed {seed}");
            let name = format!("m{m}s{seed}");
            let child = bench.command(&format!("{RUN} {how} {mode} --name {name}")).spawn().unwrap();
            killed += strike(&bench, &name, (seed, most));
            let ended = finish(child);
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            let summary = bench.summary(&name);
            noticed += summary["faults"].as_u64().unwrap();
            restarts += summary["restarts"].as_u64().unwrap();
            assert_eq!(summary["steps"], 24);
            assert_eq!(summary["eval"]["step"], 24);
            if calm["exact"] == true {
                for field in ["params_sha256", "eval", "final_loss", "best", "ema"] {
                    assert_eq!(summary[field], calm[field], "{field}");
                }
            }
        }
        println!(
            "{mode}: {killed} workers killed, {noticed} before the end of their run, {restarts} started again in time"
        );
    }
}

/// The living take over. Takes five minutes.
#[test]
fn elastic() {
    disturb("--max-restarts 0 --min-workers 1", 3);
}

/// Whoever dies is started again. Takes ten minutes.
#[test]
fn restarts() {
    disturb("--max-restarts 1000 --set timeouts.restart_ms=5", 8);
}
