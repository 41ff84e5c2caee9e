//! Servers that hold the same shard: one dies, training goes on, and another takes its place.

use convoy_tests::{Bench, until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    SMALL, bench,
    strikes::{end, process, send, steps, strike, verify},
};

/// Delays change nothing, but leave time to strike.
const RUN: &str = "--backend cpu --task mlp --set model.hidden=[24] --set model.dropout=0.1 --workers 2 --slices 4 \
    --servers 2 --eval-every 8 --eval-samples 200 --slow-worker any:8ms --set timeouts.restart_ms=20";

fn events(bench: &Bench, name: &str, event: &str) -> Vec<Value> {
    bench.metrics(name).into_iter().filter(|line| line["event"] == event).collect()
}

#[test]
fn a_server_may_die_at_every_step_and_nothing_is_made_again() {
    let bench = bench();
    // A checkpoint of each step: whoever writes it may die of it. Some steps more than strikes, so that none comes too late.
    let run = format!("{RUN} --steps 20 --checkpoint-every 1");
    let calm = bench.train("calm", &run.replace("--backend cpu", ""));
    for step in 1..12 {
        let name = format!("s{step}");
        let child = bench.command(&format!("{run} --replicas 1 --name {name}")).spawn().unwrap();
        strike(&bench, &name, (("server", (step % 4) as u32), step), Signal::SIGKILL);
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        for field in ["params_sha256", "eval", "final_loss", "steps", "samples"] {
            assert_eq!(summary[field], calm[field], "{name}: {field}");
        }
        verify(&bench, &name);
        let counts = ["faults", "takeovers", "rollbacks"].map(|field| summary[field].as_u64().unwrap());
        assert_eq!(counts, [1, 1, 0], "{name}: {}", ended.stderr);
        assert!(bench.metrics(&name).iter().all(|line| line["era"].as_u64().unwrap_or(0) == 0), "{name}: one era");
        assert_eq!(steps(&bench, &name, "checkpoint").last(), Some(&20), "{name}");
        assert_eq!(summary["failed_checkpoints"], 0, "{name}: {}", ended.stderr);
    }
}

/// First one copy dies, then, when another has taken the shard from the one that is left, that one, and a worker: in every
/// mode.
#[test]
fn who_comes_takes_the_shard_over_and_outlives_who_gave_it() {
    let bench = bench();
    let modes =
        ["", "--optimizer lamb --clip-norm 0.5 --ema 0.9", "--local-steps 2", "--quorum 3", "--async", "--ssp 2"];
    for (m, mode) in modes.into_iter().enumerate() {
        let run =
            format!("{RUN} --steps 160 --eval-every 40 --checkpoint-every 30 {mode}").replace("--eval-every 8 ", "");
        let name = format!("m{m}");
        let child = bench.command(&format!("{run} --replicas 1 --name {name}")).spawn().unwrap();
        strike(&bench, &name, (("server", 0), 5), Signal::SIGKILL);
        until("a server has its shard from another", || events(&bench, &name, "copied").len() == 1);
        strike(&bench, &name, (("server", 2), 5), Signal::SIGKILL);
        strike(&bench, &name, (("worker", 1), 5), Signal::SIGKILL);
        until("another has its shard, too", || events(&bench, &name, "copied").len() == 2);
        let (ended, summary) = end(&bench, &name, child);
        assert_eq!(ended.code, Some(0), "{mode}: {}", ended.stderr);
        assert_eq!(summary["faults"], 3, "{mode}: {}", ended.stderr);
        let counts = ["takeovers", "rollbacks", "lost_updates"].map(|field| summary[field].as_u64().unwrap());
        assert_eq!(counts, [2, 0, 0], "{mode}: {}", ended.stderr);
        verify(&bench, &name);
        if m < 3 {
            let calm = bench.train(&format!("calm{m}"), &run.replace("--backend cpu", ""));
            assert_eq!(summary["params_sha256"], calm["params_sha256"], "{mode}");
            assert_eq!(summary["ema"], calm["ema"], "{mode}");
        }
        assert!(summary["checkpoints"].as_u64() >= Some(4), "{mode}: whoever leads writes them: {summary}");
    }
}

#[test]
fn when_all_copies_of_a_shard_are_gone_the_run_goes_back() {
    let bench = bench();
    let run = format!("{RUN} --steps 40 --checkpoint-every 5 --set timeouts.restart_ms=1000");
    let calm = bench.train("calm", &run.replace("--backend cpu", ""));
    // The other copy dies before anybody has come in its place; or both at once; and one more while the run goes back.
    for (name, at_once, again) in [("turn", false, false), ("once", true, false), ("again", true, true)] {
        let child = bench.command(&format!("{run} --replicas 1 --name {name}")).spawn().unwrap();
        bench.await_steps(name, 12);
        let victims = [1, 3].map(|rank| process(&bench, name, ("server", rank)).unwrap());
        send(victims[0], Signal::SIGKILL);
        if !at_once {
            until("the first is missed", || events(&bench, name, "lost").len() == 1);
        }
        send(victims[1], Signal::SIGKILL);
        if again {
            until("the run goes back", || events(&bench, name, "rollback").len() == 1);
            send(process(&bench, name, ("server", 0)).unwrap(), Signal::SIGKILL);
        }
        let (ended, summary) = end(&bench, name, child);
        assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
        assert_eq!(summary["params_sha256"], calm["params_sha256"], "{name}");
        assert_eq!(summary["faults"], 2 + u64::from(again), "{name}: {}", ended.stderr);
        assert!(summary["rollbacks"].as_u64() >= Some(1), "{name}: {}", ended.stderr);
        verify(&bench, name);
    }
}

/// Who comes dies before it has the shard; or who hands it over does; or the run is told to stop.
#[test]
fn whoever_dies_during_a_takeover_nothing_is_lost() {
    let bench = bench();
    let run = format!("{RUN} --steps 60 --checkpoint-every 5");
    let calm = bench.train("calm", &run.replace("--backend cpu", ""));
    for who in ["taker", "giver", "stop"] {
        let child = bench.command(&format!("{run} --replicas 1 --name {who}")).spawn().unwrap();
        let first = process_once(&bench, who, ("server", 0), |_| true);
        strike(&bench, who, (("server", 0), 10), Signal::SIGKILL);
        let second = process_once(&bench, who, ("server", 0), |pid| pid != first);
        match who {
            "taker" => send(second, Signal::SIGKILL),
            "giver" => send(process(&bench, who, ("server", 2)).unwrap(), Signal::SIGKILL),
            _ => send(child.id() as i32, Signal::SIGINT),
        }
        if who == "taker" {
            until("a third has the shard", || events(&bench, who, "copied").len() == 1);
        }
        let (ended, summary) = end(&bench, who, child);
        if who == "stop" {
            assert_eq!(ended.code, Some(75), "{}", ended.stderr);
            bench.succeed("resume stop --replicas 0");
        } else {
            assert_eq!(ended.code, Some(0), "{who}: {}", ended.stderr);
            assert_eq!(summary["faults"], 2, "{who}: {}", ended.stderr);
        }
        let lost = ["lost_updates", "failed_checkpoints"].map(|field| summary[field].as_u64().unwrap());
        assert_eq!(lost, [0, 0], "{who}: {}", ended.stderr);
        assert_eq!(bench.summary(who)["params_sha256"], calm["params_sha256"], "{who}: {}", ended.stderr);
        verify(&bench, who);
    }
}

/// The process in a place, once there is one that fits.
fn process_once(bench: &Bench, name: &str, place: (&str, u32), fits: impl Fn(i32) -> bool) -> i32 {
    let mut found = None;
    until("the process is there", || {
        found = process(bench, name, place).filter(|pid| fits(*pid));
        found.is_some()
    });
    found.unwrap()
}

/// With nobody to take its place, the run goes on with one copy; a server that hangs is as good as dead.
#[test]
fn one_copy_is_enough() {
    let bench = bench();
    let lease = "--set timeouts.heartbeat_ms=50 --set timeouts.lease_ms=1500 --max-restarts 0";
    let run = format!("{RUN} --steps 30");
    let calm = bench.train("calm", &run.replace("--backend cpu", ""));
    let child = bench.command(&format!("{run} --replicas 1 {lease} --name hung")).spawn().unwrap();
    strike(&bench, "hung", (("server", 0), 8), Signal::SIGSTOP);
    let (ended, summary) = end(&bench, "hung", child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("server 0 has not been heard of for"), "{}", ended.stderr);
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert_eq!((summary["takeovers"].as_u64(), summary["restarts"].as_u64()), (Some(1), Some(0)));
}

#[test]
fn what_copies_cannot_do_is_refused() {
    let bench = bench();
    let refused = bench.run(&format!("--backend cpu --async --compensation 0.04 --replicas 1 --name no {SMALL}"));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("`replicas` = 1: excludes `consistency.compensation`"), "{}", refused.stderr);
    let refused = bench.run("--backend cpu --replicas 2 --name no");
    assert!(refused.code == Some(2) && refused.stderr.contains("must be between 0 and 1"), "{}", refused.stderr);
}
