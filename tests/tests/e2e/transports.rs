//! Shared memory, connections and codecs: the same bits where that is promised, and nothing left behind.

use std::fs;

use convoy_tests::{Bench, finish, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{SMALL, bench};

fn hash(bench: &Bench, name: &str, how: &str) -> Value {
    let summary = bench.train(name, how);
    assert_eq!(summary["exact"], true, "{how}");
    assert!(summary["params_sha256"].is_string());
    summary["params_sha256"].clone()
}

/// Which ways a run's workers say they took.
fn ways(bench: &Bench, name: &str) -> (usize, usize) {
    let logs = fs::read_dir(bench.run_dir(name).join("logs")).unwrap().flatten();
    let text: String = logs.map(|log| fs::read_to_string(log.path()).unwrap()).collect();
    (text.matches("through shared memory").count(), text.matches("through the connection").count())
}

#[test]
fn shared_memory_and_connections_give_the_same_bits() {
    let bench = bench();
    let runs = [
        "--task mlp --set model.hidden=[300] --workers 1",
        "--task mlp --set model.hidden=[300,40] --workers 3 --servers 2 --optimizer adamw --clip-norm 0.5",
        "--task mlp --set model.hidden=[300] --workers 2 --replicas 1 --optimizer lamb --ema 0.9",
        "--task mlp --set model.hidden=[64] --workers 2 --local-steps 2 --optimizer momentum",
        "--task resnet --set model.channels=[4] --set model.blocks=[1] --workers 2 --servers 3",
    ];
    for (number, run) in runs.iter().enumerate() {
        let run = format!("{run} --slices 4 --batch-size 32 --steps 6 --eval-samples 100 --eval-every 2");
        let [shared, apart, auto] = ["shm", "grpc", "auto"].map(|transport| {
            let name = format!("{transport}{number}");
            (hash(&bench, &name, &format!("{run} --transport {transport}")), ways(&bench, &name))
        });
        assert_eq!((&shared.0, &auto.0), (&apart.0, &apart.0), "{run}");
        assert!(
            shared.1.0 > 0 && shared.1 == auto.1 && shared.1.1 == 0 && apart.1.0 == 0,
            "{run}: {shared:?} {apart:?}"
        );
    }
}

#[test]
fn every_parameter_of_every_round_is_what_it_should_be() {
    let bench = bench();
    for transport in ["shm", "grpc"] {
        for mode in ["--sync", "--async", "--ssp 2", "--quorum 2 --slices 3"] {
            let name = format!("{transport}{}", mode.replace([' ', '-'], ""));
            let size =
                "--task synthetic --set model.width=300000 --set model.layers=3 --optimizer sgd --lr 0.0009765625";
            let arguments = format!("{size} {mode} --workers 3 --servers 2 --batch-size 3 --steps 40 --eval-every 7");
            // Its workers panic at the first that is not.
            let summary = bench.train(&name, &format!("{arguments} --transport {transport}"));
            assert_eq!((&summary["status"], &summary["faults"]), (&"done".into(), &0.into()), "{name}");
        }
    }
}

/// How many segments of shared memory a process has mapped.
fn segments(pid: i32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.lines().filter(|line| line.contains("/memfd:convoy")).count()
}

#[test]
fn a_dead_workers_memory_is_free_at_once() {
    let bench = bench();
    let arguments = format!(
        "--backend cpu --workers 3 --min-workers 1 --max-restarts 0 --steps 1000000 --name r --transport shm {SMALL}"
    );
    let child = bench.command(&arguments).spawn().unwrap();
    bench.await_steps("r", 5);
    let process = |words: &str| bench.processes().iter().find(|(_, line)| line.contains(words)).unwrap().0;
    let server = process(" server --run");
    // Its large blocks, its parameters, and what workers show it.
    until("the server sees three workers", || segments(server) == 5);
    let worker = process("--rank 1 --coordinator");
    assert_eq!(segments(worker), 2, "a worker has its own and the server's");
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    until("the server sees two workers", || segments(server) == 4);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(finish(child).code, Some(75));
    bench.await_no_process();
}

#[test]
fn a_codec_gives_one_result_for_any_number_of_workers_in_fewer_bytes() {
    let bench = bench();
    let run = "--task mlp --set model.hidden=[300] --slices 4 --batch-size 64 --steps 12 --eval-samples 200";
    let pushed = |name: &str| -> u64 {
        bench.summary(name)["workers"].as_array().unwrap().iter().map(|w| w["bytes_pushed"].as_u64().unwrap()).sum()
    };
    let plain = hash(&bench, "f32", &format!("{run} --workers 4"));
    for (codec, share) in [("bf16", 0.5), ("f16", 0.5), ("int8", 0.25), ("topk:0.01", 0.015)] {
        let size = |workers: u32, servers: u32| {
            let name = format!("{codec}-{workers}").replace([':', '.'], "");
            let size = format!("--workers {workers} --servers {servers} --codec {codec}");
            (hash(&bench, &name, &format!("{run} {size}")), pushed(&name))
        };
        let (one, two, four) = (size(1, 1), size(2, 2), size(4, 1));
        assert!(one == two && one == four, "{codec}");
        assert_ne!(one.0, plain, "{codec}");
        let ratio = one.1 as f64 / pushed("f32") as f64;
        assert!((share * 0.99..share * 1.05).contains(&ratio), "{codec}: {ratio} of the bytes");
    }
}

#[test]
fn codecs_go_with_every_mode_and_say_when_a_result_is_not_exact() {
    let bench = bench();
    for (number, mode) in ["--async", "--ssp 2", "--quorum 2", "--local-steps 3"].iter().enumerate() {
        for codec in ["int8", "topk:0.05"] {
            let name = format!("{number}{}", &codec[..4]);
            let run = format!("--workers 3 --servers 2 --steps 30 {mode} --codec {codec} --optimizer adamw {SMALL}");
            assert_eq!(bench.train(&name, &run)["status"], "done", "{mode} {codec}");
        }
    }
    let killed = format!("--workers 2 --steps 20 --chaos kill-worker:1@5 --codec int8 {SMALL}");
    let exact = bench.train("killed", &killed)["exact"].clone();
    assert!(exact.as_str().unwrap().contains("--codec int8"), "{exact}");
    let halves = format!("--workers 2 --steps 20 --chaos kill-worker:1@5 --codec bf16 {SMALL}");
    assert_eq!(bench.train("halves", &halves)["exact"], true, "nothing is fed back");
}

/// The most that a process has had of memory, in bytes.
fn peak(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

#[test]
fn a_server_takes_no_more_than_it_says() {
    const BYTES: u64 = 64 << 20;
    let bench = bench();
    // One worker is slow, and the others would run ahead of it with all that they have.
    let run = "--name m --task synthetic --set model.width=1048576 --set model.layers=16 --optimizer sgd --lr 0.0009765625 \
               --workers 5 --batch-size 5 --steps 4 --eval-every 0 --checkpoint-every 0 --transport grpc --slow-worker 4:600ms";
    let child = bench.command(run).spawn().unwrap();
    let server = || bench.processes().into_iter().find(|(_, line)| line.contains(" server --run"));
    until("there is a server", || server().is_some());
    let (server, mut most) = (server().unwrap().0, 0);
    until("the server has ended", || {
        let peak = peak(server);
        most = most.max(peak.unwrap_or(0));
        peak.is_none()
    });
    assert_eq!(finish(child).code, Some(0));
    // Two versions, partial sums as large as the shard, and the rest.
    let least = 2 * BYTES;
    assert!(most > least && most <= 3 * BYTES + (64 << 20), "{} MiB", most >> 20);
}
