//! Workers that die while others go on: the same bits where the mode is exact, an end in any case.

use std::process::Child;

use convoy_tests::{Bench, finish};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    bench,
    strikes::{self, end, verify},
};

/// Delays change nothing, but leave time to strike. Every evaluation is one more thing to take over.
const RUN: &str = "--backend cpu --task mlp --set model.hidden=[24] --set model.dropout=0.1 --workers 4 --slices 8 \
    --servers 2 --steps 24 --eval-every 4 --eval-samples 200 --slow-worker any:15ms";

fn start(bench: &Bench, name: &str, how: &str) -> Child {
    let run = if how.contains("--steps") { RUN.replace("--steps 24", "") } else { RUN.to_string() };
    bench.command(&format!("{run} {how} --name {name}")).spawn().unwrap()
}

fn strike(bench: &Bench, name: &str, (rank, step): (u32, u64), signal: Signal) {
    strikes::strike(bench, name, (("worker", rank), step), signal);
}

#[test]
fn what_the_living_take_over_ends_in_the_same_bits() {
    let bench = bench();
    let modes = ["--sync", "--clip-norm 0.1 --optimizer lamb --ema 0.9 --keep-best", "--local-steps 2"];
    for (m, mode) in modes.into_iter().enumerate() {
        let calm = format!("calm{m}");
        let (ended, calm) = end(&bench, &calm, start(&bench, &calm, mode));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        for (v, victims) in [[(1, 2), (3, 9)], [(0, 4), (2, 5)], [(3, 16), (0, 16)]].into_iter().enumerate() {
            let name = format!("m{m}v{v}");
            let child = start(&bench, &name, &format!("{mode} --min-workers 2 --max-restarts 0"));
            victims.into_iter().for_each(|victim| strike(&bench, &name, victim, Signal::SIGKILL));
            let (ended, summary) = end(&bench, &name, child);
            assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
            assert!(ended.stderr.contains("2 workers take over what worker "), "{}", ended.stderr);
            for field in ["params_sha256", "eval", "final_loss", "steps", "best", "exact"] {
                assert_eq!(summary[field], calm[field], "{name} {mode}: {field}");
            }
            assert_eq!((summary["faults"].as_u64(), summary["status"].as_str()), (Some(2), Some("done")));
            let scored = |event: &&Value| event["event"] == "eval" && event["of"] == "weights";
            let scored: Vec<_> = bench.metrics(&name).iter().filter(scored).map(|e| e["step"].clone()).collect();
            assert_eq!(scored, [4, 8, 12, 16, 20, 24], "{name}: every evaluation is complete, once");
        }
    }
}

/// Waits until a worker has been started again and its place is taken.
fn await_return(bench: &Bench, name: &str, restarts: usize) {
    convoy_tests::until("the worker is back", || {
        let events = bench.metrics(name);
        let joined =
            events.iter().filter(|e| e["event"] == "joined" && e["member"].as_str().unwrap().contains("worker"));
        joined.count() == 4 + restarts
    });
}

#[test]
fn who_is_started_again_ends_in_the_same_bits() {
    let bench = bench();
    let again = "--steps 60 --eval-every 7 --set timeouts.restart_ms=20";
    let run = RUN.replace("--steps 24 --eval-every 4", again);
    for (m, mode) in ["--sync", "--local-steps 2 --ema 0.9", "--async", "--quorum 6"].into_iter().enumerate() {
        let calm = bench.train(&format!("calm{m}"), &format!("{} {mode}", run.replace("--backend cpu", "")));
        let name = format!("m{m}");
        let child = bench.command(&format!("{run} {mode} --name {name}")).spawn().unwrap();
        for (nth, rank) in [2, 0, 2].into_iter().enumerate() {
            strike(&bench, &name, (rank, 4), Signal::SIGKILL);
            await_return(&bench, &name, nth + 1);
        }
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{mode}: {}", ended.stderr);
        assert!(ended.stderr.contains("starts again in 0.0 s (restart 2)"), "{}", ended.stderr);
        assert_eq!((summary["restarts"].as_u64(), summary["faults"].as_u64()), (Some(3), Some(3)), "{mode}");
        let workers = summary["workers"].as_array().unwrap();
        let restarts: Vec<_> = workers.iter().map(|worker| worker["restarts"].clone()).collect();
        assert_eq!(restarts, [1, 0, 2, 0]);
        assert!(workers.iter().all(|worker| worker["slices"] == 2));
        assert_eq!(summary["steps"], 60, "{mode}");
        verify(&bench, &name);
        if calm["exact"] == true {
            for field in ["params_sha256", "eval", "final_loss", "ema"] {
                assert_eq!(summary[field], calm[field], "{mode}: {field}");
            }
        }
    }
}

#[test]
fn the_only_worker_may_die() {
    let bench = bench();
    let how = format!("--workers 1 --steps 30 --slow-worker any:10ms {} --set timeouts.restart_ms=20", crate::SMALL);
    let calm = bench.train("calm", &how);
    let child = bench.command(&format!("--backend cpu --name alone {how}")).spawn().unwrap();
    strike(&bench, "alone", (0, 5), Signal::SIGKILL);
    let (ended, summary) = end(&bench, "alone", child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("nobody is left"), "{}", ended.stderr);
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert_eq!(summary["restarts"], 1);
}

#[test]
fn who_dies_too_often_ends_the_run() {
    let bench = bench();
    let run = RUN.replace("--steps 24", "--steps 100000 --max-restarts 1 --set timeouts.restart_ms=20");
    let child = bench.command(&format!("{run} --name r")).spawn().unwrap();
    strike(&bench, "r", (1, 2), Signal::SIGKILL);
    await_return(&bench, "r", 1);
    strike(&bench, "r", (1, 2), Signal::SIGKILL);
    let (ended, summary) = end(&bench, "r", child);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("error: worker 1 "), "{}", ended.stderr);
    assert_eq!((summary["restarts"].as_u64(), summary["faults"].as_u64()), (Some(1), Some(2)));
}

#[test]
fn modes_that_are_not_exact_go_on_too() {
    let bench = bench();
    for (m, mode) in ["--quorum 6", "--async", "--ssp 2 --clip-norm 0.5"].into_iter().enumerate() {
        let name = format!("m{m}");
        let child = start(&bench, &name, &format!("{mode} --min-workers 1 --max-restarts 0"));
        for victim in [(2, 3), (0, 7), (1, 12)] {
            strike(&bench, &name, victim, Signal::SIGKILL);
        }
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{mode}: {}", ended.stderr);
        assert_eq!((summary["steps"].as_u64(), summary["faults"].as_u64()), (Some(24), Some(3)), "{mode}");
        assert_eq!(summary["eval"]["step"], 24, "{mode}");
        verify(&bench, &name);
        let steps: Vec<_> =
            bench.metrics(&name).iter().filter(|e| e["event"] == "step").map(|e| e["step"].clone()).collect();
        assert_eq!(steps, (1..=24).collect::<Vec<u64>>(), "{mode}: every step is told of, in order");
    }
}

#[test]
fn a_worker_that_hangs_is_fenced_off() {
    let bench = bench();
    let (_, calm) = end(&bench, "calm", start(&bench, "calm", "--sync"));
    let lease = "--set timeouts.heartbeat_ms=50 --set timeouts.lease_ms=4000 --min-workers 3 --max-restarts 0";
    let child = start(&bench, "hung", lease);
    strike(&bench, "hung", (1, 6), Signal::SIGSTOP);
    let (ended, summary) = end(&bench, "hung", child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("worker 1 has not been heard of for"), "{}", ended.stderr);
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
}

/// A worker that the launcher cannot kill, for it has not started it, stops past its lease and goes on: others have its
/// slices by then, and what it still has in hand is taken from nobody.
#[test]
fn who_returns_after_its_lease_is_fenced_off() {
    let bench = bench();
    let long = "--steps 80 --eval-every 40";
    let (_, calm) = end(&bench, "calm", start(&bench, "calm", long));
    let lease = "--set timeouts.heartbeat_ms=50 --set timeouts.lease_ms=1500 --min-workers 3 --max-restarts 0";
    let child = start(&bench, "late", &format!("{long} {lease}"));
    strike(&bench, "late", (1, 6), Signal::SIGKILL);
    convoy_tests::until("its place is free", || lost(&bench, "late") == 1);
    let coordinator = bench.json("late", "coordinator.json")["address"].as_str().unwrap().to_string();
    let run = bench.run_dir("late");
    let join = format!("worker --run {} --rank 1 --coordinator {coordinator} --device cpu", run.display());
    let outsider = bench.command(&join).spawn().unwrap();
    await_return(&bench, "late", 1);
    let steps = bench.metrics("late").iter().filter(|event| event["event"] == "step").count() as u64;
    bench.await_steps("late", steps + 5);
    strikes::send(outsider.id() as i32, Signal::SIGSTOP);
    convoy_tests::until("it is missed", || lost(&bench, "late") == 2);
    strikes::send(outsider.id() as i32, Signal::SIGCONT);
    let returned = finish(outsider);
    assert_eq!(returned.code, Some(1), "{}", returned.stderr);
    assert!(returned.stderr.contains("is not a current member"), "{}", returned.stderr);
    let (ended, summary) = end(&bench, "late", child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert_eq!(summary["faults"], 2, "{}", ended.stderr);
    verify(&bench, "late");
}

fn lost(bench: &Bench, name: &str) -> usize {
    bench.metrics(name).iter().filter(|event| event["event"] == "lost").count()
}

#[test]
fn a_worker_that_hangs_although_its_heart_beats_is_replaced() {
    use convoy_proto::{ids::WorkerId, slow::SlowWorker};
    let bench = bench();
    // A seed under which worker 1 falls asleep in the midst of training, by the same draw that it makes itself.
    let slow: SlowWorker = "1:3600s@0.02".parse().unwrap();
    let sleeps_at = |seed: &u64| (0..).find(|count| !slow.delay(*seed, WorkerId(1), *count).is_zero());
    let seed = (0..).find(|seed| sleeps_at(seed).is_some_and(|count| (6..20).contains(&count))).unwrap();
    let lease = "--set timeouts.lease_ms=500 --set timeouts.heartbeat_ms=50";
    for (m, mode) in ["--sync", "--async"].into_iter().enumerate() {
        let how = format!(
            "{mode} --slices 3 --steps 60 --seed {seed} --max-restarts 0 --min-workers 1 {lease} {}",
            crate::SMALL
        );
        let calm = bench.train(&format!("calm{m}"), &format!("--workers 3 {how}"));
        let name = format!("hung{m}");
        let ended = bench.run(&format!("--backend cpu --name {name} --workers 3 --slow-worker {slow} {how}"));
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(ended.stderr.contains("worker 1 hangs: it has computed one step for"), "{}", ended.stderr);
        let summary = bench.summary(&name);
        assert_eq!(summary["faults"], 1);
        if mode == "--sync" {
            assert_eq!(summary["params_sha256"], calm["params_sha256"]);
        }
        verify(&bench, &name);
    }
}

#[test]
fn a_spare_takes_over() {
    let bench = bench();
    let how = format!("--slices 2 --steps 12 --slow-worker any:15ms {}", crate::SMALL);
    let calm = bench.train("calm", &format!("--workers 2 {how}"));
    let command = format!("--backend cpu --name spare --workers 3 --min-workers 2 --max-restarts 0 {how}");
    let child = bench.command(&command).spawn().unwrap();
    strike(&bench, "spare", (0, 3), Signal::SIGKILL);
    let (ended, summary) = end(&bench, "spare", child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("3 workers (1 of them spare)"), "{}", ended.stderr);
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    let slices: Vec<_> = summary["workers"].as_array().unwrap().iter().map(|worker| worker["slices"].clone()).collect();
    assert_eq!(slices, [0, 1, 1]);
}

#[test]
fn a_spare_that_falls_behind_stays() {
    let bench = bench();
    let how = format!("--backend cpu --slices 2 --steps 40 --max-restarts 0 {}", crate::SMALL);
    let summary = bench.train("r", &format!("--workers 3 --slow-worker 2:150ms {how}"));
    let restarts: Vec<_> =
        summary["workers"].as_array().unwrap().iter().map(|worker| worker["restarts"].clone()).collect();
    assert_eq!((summary["faults"].as_u64(), restarts), (Some(0), vec![0.into(), 0.into(), 0.into()]));
}

#[test]
fn a_stop_goes_on_without_the_dead() {
    let bench = bench();
    for (m, mode) in ["--sync", "--quorum 8", "--async", "--local-steps 2"].into_iter().enumerate() {
        let name = format!("m{m}");
        let child = start(&bench, &name, &format!("{mode} --steps 1000000"));
        strike(&bench, &name, (1, 3), Signal::SIGSTOP);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        convoy_tests::until("the signal is seen", || bench.metrics(&name).iter().any(|e| e["event"] == "signal"));
        strike(&bench, &name, (1, 3), Signal::SIGKILL);
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(75), "{mode}: {}", ended.stderr);
        assert_eq!((summary["status"].as_str(), summary["faults"].as_u64()), (Some("stopped"), Some(1)), "{mode}");
        assert_eq!(summary["params_sha256"], convoy_tests::recomputed_sha256(&bench.run_dir(&name)));
    }
}

#[test]
fn too_few_workers_end_the_run() {
    let bench = bench();
    let child = start(&bench, "r", "--min-workers 3 --max-restarts 0");
    strike(&bench, "r", (1, 2), Signal::SIGKILL);
    strike(&bench, "r", (2, 5), Signal::SIGKILL);
    let (ended, summary) = end(&bench, "r", child);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    assert!(ended.stderr.contains("error: worker 2 "), "{}", ended.stderr);
    assert!(ended.stderr.contains("of 3 workers before it, at least 3 must be there"), "{}", ended.stderr);
    assert_eq!((summary["status"].as_str(), summary["faults"].as_u64()), (Some("failed"), Some(2)));
}

/// Waits until so many workers are members.
fn await_members(bench: &Bench, name: &str, workers: usize) {
    convoy_tests::until("they are members", || {
        let count = |kind: &str| {
            let is_one = |event: &&Value| {
                event["event"] == kind && event["member"].as_str().is_some_and(|member| member.contains("worker"))
            };
            bench.metrics(name).iter().filter(is_one).count()
        };
        count("joined") - count("lost") == workers
    });
}

#[test]
fn workers_come_and_go_while_it_trains() {
    let bench = bench();
    for (m, (mode, steps)) in [("--sync", 200), ("--local-steps 2", 160), ("--async", 50)].into_iter().enumerate() {
        let run = RUN.replace("--workers 4", "").replace("--steps 24", &format!("--steps {steps}"));
        let calm =
            bench.train(&format!("calm{m}"), &format!("{} {mode} --workers 2", run.replace("--backend cpu", "")));
        let name = format!("m{m}");
        let child = bench.command(&format!("{run} {mode} --workers 1 --max-workers 5 --name {name}")).spawn().unwrap();
        bench.await_steps(&name, 4);
        for workers in [3, 2, 4] {
            let told = bench.succeed(&format!("scale {name} --workers {workers}")).stdout;
            assert!(told.contains(&format!("goes on with {workers} workers in place of ")), "{told}");
            convoy_tests::until("they are there", || {
                let rows = bench.processes();
                let run = format!("/{name} ");
                rows.iter().filter(|(_, line)| line.contains(" worker ") && line.contains(&run)).count() == workers
            });
            await_members(&bench, &name, workers);
        }
        let refused = bench.run(&format!("scale {name} --workers 6"));
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.contains("there must be between 1 and 5 (--max-workers)"), "{}", refused.stderr);
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{mode}: {}", ended.stderr);
        verify(&bench, &name);
        assert_eq!(summary["steps"].as_u64(), Some(steps), "{mode}");
        assert_eq!(summary["workers"].as_array().unwrap().len(), 4, "{mode}");
        assert_eq!(summary["faults"], 0, "{mode}");
        if calm["exact"] == true {
            for field in ["params_sha256", "eval", "final_loss", "samples"] {
                assert_eq!(summary[field], calm[field], "{mode}: {field}");
            }
        }
        let late = bench.run(&format!("scale {name} --workers 2"));
        assert_eq!(late.code, Some(2));
        assert!(late.stderr.contains("does not train now"), "{}", late.stderr);
    }
}
