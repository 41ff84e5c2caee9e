//! Servers and launchers that die: the run goes on from a checkpoint, and an exact one ends in the same bits.

use convoy_tests::{Bench, finish};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    bench,
    strikes::{end, process, send, steps, strike, verify},
};

/// Delays change nothing, but leave time to strike.
const RUN: &str = "--backend cpu --task mlp --set model.hidden=[24] --set model.dropout=0.1 --workers 2 --slices 4 \
    --servers 2 --steps 12 --eval-every 5 --eval-samples 200 --checkpoint-every 4 --slow-worker any:15ms \
    --set timeouts.restart_ms=20";

/// Fields that tell whether two runs ended alike.
const RESULT: [&str; 6] = ["params_sha256", "eval", "final_loss", "steps", "samples", "status"];

fn calm(bench: &Bench, name: &str, how: &str) -> Value {
    let (ended, summary) = end(bench, name, bench.command(&format!("{RUN} {how} --name {name}")).spawn().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    summary
}

fn assert_alike(summary: &Value, calm: &Value, what: &str) {
    for field in RESULT {
        assert_eq!(summary[field], calm[field], "{what}: {field}");
    }
}

#[test]
fn a_server_may_die_at_every_step() {
    let bench = bench();
    let calm = calm(&bench, "calm", "--sync");
    for step in 1..12 {
        let name = format!("s{step}");
        let child = bench.command(&format!("{RUN} --name {name}")).spawn().unwrap();
        strike(&bench, &name, (("server", (step % 2) as u32), step), Signal::SIGKILL);
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        assert_alike(&summary, &calm, &name);
        verify(&bench, &name);
        let counts = ["restarts", "faults", "rollbacks", "lost_updates"].map(|field| summary[field].as_u64().unwrap());
        assert_eq!(counts, [1, 1, 1, 0], "{name}");
        assert_eq!(summary["servers"][step as usize % 2]["restarts"], 1);
        // The newest that was whole when the server died, or one that was completed in that moment.
        let back = steps(&bench, &name, "rollback");
        assert!(back.len() == 1 && back[0].is_multiple_of(4) && back[0] <= step + 1, "{name}: back to {back:?}");
        let again = bench.metrics(&name).into_iter().filter(|event| event["event"] == "step" && event["era"] == 1);
        let again: Vec<_> = again.map(|event| event["step"].as_u64().unwrap()).collect();
        assert_eq!(again, (back[0] + 1..=12).collect::<Vec<_>>(), "{name}: steps of the new era");
    }
}

#[test]
fn a_launcher_may_die_at_every_step() {
    let bench = bench();
    let calm = calm(&bench, "calm", "--sync --optimizer lamb --clip-norm 0.5 --ema 0.9");
    for step in 1..12 {
        let name = format!("s{step}");
        let how = format!("{RUN} --optimizer lamb --clip-norm 0.5 --ema 0.9 --name {name}");
        let child = bench.command(&how).spawn().unwrap();
        bench.await_steps(&name, step);
        send(child.id() as i32, Signal::SIGKILL);
        assert_eq!(finish(child).code, None);
        bench.await_no_process();
        // On another number of processes each time.
        let (workers, servers) = (1 + step % 4, 1 + step % 3);
        let ended = bench.succeed(&format!("resume {name} --workers {workers} --servers {servers}"));
        // The newest that was whole: that of a moment ago may not be.
        let from = (0..=(step + 1) / 4).rev().take(2).map(|nth| match nth * 4 {
            0 => "begins anew".to_string(),
            from => format!("goes on from step {from}, "),
        });
        assert!({ from }.any(|from| ended.stderr.contains(&from)), "{name}: {}", ended.stderr);
        let summary = bench.summary(&name);
        assert_alike(&summary, &calm, &name);
        verify(&bench, &name);
        assert_eq!((summary["resumes"].as_u64(), summary["ema"] == calm["ema"]), (Some(1), true));
        assert_eq!(summary["workers"].as_array().unwrap().len() as u64, workers);
    }
}

#[test]
fn several_may_die_at_once_and_again() {
    let bench = bench();
    let long = "--steps 40 --eval-every 10";
    let run = RUN.replace("--steps 12 --eval-every 5", long);
    for (m, mode) in ["--sync", "--local-steps 2", "--optimizer lamb --keep-best"].into_iter().enumerate() {
        let calm = bench.train(&format!("calm{m}"), &format!("{} {mode}", run.replace("--backend cpu", "")));
        let name = format!("m{m}");
        let child = bench.command(&format!("{run} {mode} --name {name}")).spawn().unwrap();
        strike(&bench, &name, (("server", 0), 6), Signal::SIGKILL);
        strike(&bench, &name, (("worker", 1), 6), Signal::SIGKILL);
        strike(&bench, &name, (("server", 1), 6), Signal::SIGKILL);
        // One that dies as soon as it is started again is a death during the roll-back.
        convoy_tests::until("a server is started again", || {
            bench.metrics(&name).iter().filter(|e| e["event"] == "restart").count() > 1
        });
        strike(&bench, &name, (("server", 0), 6), Signal::SIGKILL);
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{mode}: {}", ended.stderr);
        assert_alike(&summary, &calm, mode);
        verify(&bench, &name);
        assert_eq!(summary["best"], calm["best"], "{mode}");
        assert_eq!(summary["faults"], 4, "{mode}");
    }
}

#[test]
fn asynchronous_updates_that_are_lost_are_counted() {
    let bench = bench();
    for (m, mode) in ["--async", "--ssp 2", "--quorum 3"].into_iter().enumerate() {
        let name = format!("m{m}");
        let child = bench.command(&format!("{RUN} {mode} --name {name}")).spawn().unwrap();
        strike(&bench, &name, (("server", 1), 7), Signal::SIGKILL);
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{mode}: {}", ended.stderr);
        let field = |name: &str| summary[name].as_u64().unwrap();
        let back = bench.metrics(&name).into_iter().find(|event| event["event"] == "rollback").unwrap();
        assert_eq!(back["undone"].as_u64(), Some(field("lost_updates")), "{mode}");
        assert_eq!((field("steps"), field("rollbacks")), (12, 1), "{mode}");
        verify(&bench, &name);
        if mode != "--quorum 3" {
            assert_eq!(field("samples"), 12 * 128, "{mode}: each sample once in the end");
        }
    }
}

#[test]
fn a_server_that_hangs_is_replaced() {
    let bench = bench();
    let calm = calm(&bench, "calm", "");
    let lease = "--set timeouts.heartbeat_ms=50 --set timeouts.lease_ms=4000";
    let child = bench.command(&format!("{RUN} {lease} --name hung")).spawn().unwrap();
    strike(&bench, "hung", (("server", 1), 5), Signal::SIGSTOP);
    let (ended, summary) = end(&bench, "hung", child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("server 1 has not been heard of for"), "{}", ended.stderr);
    assert_alike(&summary, &calm, "hung");
}

#[test]
fn who_dies_before_the_first_step_is_started_again() {
    let bench = bench();
    let calm = calm(&bench, "calm", "");
    for (p, place) in [("worker", 0), ("worker", 1), ("server", 0), ("server", 1)].into_iter().enumerate() {
        let name = format!("p{p}");
        let child = bench.command(&format!("{RUN} --name {name}")).spawn().unwrap();
        convoy_tests::until("it is there", || {
            process(&bench, &name, place).is_some_and(|pid| {
                send(pid, Signal::SIGKILL);
                true
            })
        });
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{place:?}: {}", ended.stderr);
        assert_alike(&summary, &calm, &name);
        assert_eq!(summary["faults"], 1, "{place:?}");
    }
}

#[test]
fn faults_on_purpose_come_once_and_change_nothing() {
    let bench = bench();
    let calm = calm(&bench, "calm", "--steps 30");
    let faults = "kill-worker:1@3,kill-server:0@9,disk-full@10,torn-checkpoint@22,kill-server@23,kill-worker@26";
    let lease = "--set timeouts.heartbeat_ms=50 --set timeouts.lease_ms=2000";
    let child = bench.command(&format!("{RUN} --steps 30 {lease} --chaos {faults} --name r")).spawn().unwrap();
    let (ended, summary) = end(&bench, "r", child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_alike(&summary, &calm, "chaos");
    verify(&bench, "r");
    let events = bench.metrics("r");
    let fired: Vec<_> = events.iter().filter(|event| event["event"] == "chaos").collect();
    assert!(fired.iter().all(|event| event["done"] == true) && fired.len() == 6, "{fired:?}");
    assert_eq!((summary["faults"].as_u64(), summary["rollbacks"].as_u64()), (Some(4), Some(2)));
    assert_eq!(summary["failed_checkpoints"], 1, "{}", ended.stderr);
    for (role, count) in [("worker", 2), ("server", 2)] {
        assert_eq!(summary["recoveries"][role]["count"], count, "{role}: {}", summary["recoveries"]);
    }
    assert!(ended.stderr.contains("passed over a checkpoint: "), "{}", ended.stderr);
    let random = "--chaos kill-worker,kill-server --mtbf 400ms --chaos-seed 3 --max-restarts 1000 --steps 80";
    let calm = self::calm(&bench, "calm80", "--steps 80");
    bench.succeed(&format!("{RUN} {random} --name random"));
    assert_alike(&bench.summary("random"), &calm, "random");
    assert!(bench.summary("random")["faults"].as_u64() >= Some(1));
    for (chaos, why) in [
        ("kill-worker", "says no time"),
        ("melt-server@3", "with a kind of"),
        ("kill-worker@3 --mtbf 3s", "comes at a step"),
    ] {
        let ended = bench.run(&format!("{RUN} --chaos {chaos} --name x"));
        assert_eq!(ended.code, Some(2), "{chaos}");
        assert!(ended.stderr.contains(why), "{chaos}: {}", ended.stderr);
    }
}
