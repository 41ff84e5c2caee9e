//! Hundreds of kills over all roles, by seeds: workers and servers by `--chaos`, launchers from here. Exact runs end in the
//! bits of a calm run, every run's samples are verified, and how long it took to get over each is collected.

use std::{
    collections::BTreeMap,
    thread::sleep,
    time::{Duration, Instant},
};

use convoy_proto::order::{Purpose, below, stream};
use convoy_tests::{Bench, finish};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::bench;

const RUN: &str = "--backend cpu --task mlp --set model.hidden=[24] --slices 8 --batch-size 64 --eval-every 50 \
    --eval-samples 200 --slow-worker any:4ms --checkpoint-every 20 --steps 400 --max-restarts 1000 \
    --set timeouts.restart_ms=20";
const MODES: [&str; 6] = [
    "--sync",
    "--clip-norm 0.1 --optimizer lamb --ema 0.9",
    "--local-steps 4",
    "--quorum 6",
    "--async",
    "--ssp 2 --clip-norm 0.5",
];

/// How often to kill, unless `SOAK_KILLS` says.
const KILLS: u64 = 300;
/// Nothing takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Tally {
    runs: u64,
    kills: BTreeMap<String, u64>,
    seconds: BTreeMap<String, Vec<f64>>,
    lost_updates_exact: u64,
    lost_updates_others: u64,
    takeovers: u64,
    rollbacks: u64,
}

impl Tally {
    fn total(&self) -> u64 {
        self.kills.values().sum()
    }

    fn json(&self) -> Value {
        let recovery = self.seconds.iter().map(|(role, seconds)| {
            let mut seconds = seconds.clone();
            seconds.sort_by(f64::total_cmp);
            let (median, worst) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
            (role.clone(), json!({ "count": seconds.len(), "median_seconds": median, "worst_seconds": worst }))
        });
        json!({
            "runs": self.runs, "kills": self.kills, "total": self.total(), "recovery": recovery.collect::<Value>(),
            "takeovers": self.takeovers, "rollbacks": self.rollbacks,
            "lost_updates": { "exact": self.lost_updates_exact, "others": self.lost_updates_others },
            "lost_or_repeated_samples": 0, "different_bits": 0,
        })
    }
}

/// Runs to the end, whatever is killed; launchers at moments of a seed.
fn run(bench: &Bench, name: &str, (how, has_copies): (&str, bool), seed: u64, tally: &mut Tally) {
    let mut random = stream(seed, Purpose::Order, 0, 0);
    let start = Instant::now();
    let mut child = bench.command(&format!("{how} --name {name}")).spawn().unwrap();
    bench.await_steps(name, 1);
    let launchers = below(&mut random, 3);
    for _ in 0..launchers {
        sleep(Duration::from_millis(300 + below(&mut random, 2000)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        let steps = bench.metrics(name).len();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        if finish(child).code.is_none() {
            *tally.kills.entry("launcher".into()).or_default() += 1;
        }
        bench.await_no_process();
        let (workers, servers) = (1 + below(&mut random, 4), 1 + below(&mut random, 3));
        child = bench.command(&format!("resume {name} --workers {workers} --servers {servers}")).spawn().unwrap();
        convoy_tests::until("it goes on, or is done", || {
            let goes_on = bench.metrics(name).iter().skip(steps).any(|event| event["event"] == "step");
            goes_on || bench.summary(name)["status"] == "done"
        });
        tally.seconds.entry("launcher".into()).or_default().push(killed.elapsed().as_secs_f64());
    }
    let ended = finish(child);
    assert_eq!(ended.code, Some(0), "{name}: {}", ended.stderr);
    assert!(start.elapsed() < PATIENCE, "{name} took {:?}", start.elapsed());
    bench.succeed(&format!("verify {name}"));
    for event in bench.metrics(name) {
        if event["event"] == "recovered" {
            let role = event["of"].as_str().unwrap();
            let what = if has_copies && role == "server" { "server with a copy" } else { role };
            let seconds = tally.seconds.entry(what.into()).or_default();
            seconds.push(event["seconds"].as_f64().unwrap());
        }
        if event["event"] == "chaos" && event["done"] == true {
            let role = event["fault"].as_str().unwrap().trim_start_matches("kill-").to_string();
            *tally.kills.entry(role).or_default() += 1;
        }
    }
    tally.runs += 1;
}

/// Takes about six minutes for 300.
#[test]
fn kills() {
    let bench = bench();
    let wanted = std::env::var("SOAK_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let calm: Vec<_> = (0..).zip(MODES).map(|(m, mode)| bench.train(&format!("calm{m}"), &calm_of(mode))).collect();
    let mut tally = Tally::default();
    for seed in 0.. {
        if tally.total() >= wanted {
            break;
        }
        let m = seed as usize % MODES.len();
        let mut random = stream(seed, Purpose::Order, 1, 0);
        let (workers, servers) = (1 + below(&mut random, 4), 1 + below(&mut random, 3));
        let replicas = seed / MODES.len() as u64 % 2;
        let chaos = format!("--chaos kill-worker,kill-server --mtbf 800ms --chaos-seed {seed}");
        let processes = format!("--workers {workers} --servers {servers} --replicas {replicas}");
        let how = format!("{RUN} {} {processes} {chaos}", MODES[m]);
        let name = format!("s{seed}");
        eprintln!("seed {seed}: {} {processes}; {} kills so far", MODES[m], tally.total());
        run(&bench, &name, (&how, replicas > 0), seed, &mut tally);
        let summary = bench.summary(&name);
        tally.takeovers += summary["takeovers"].as_u64().unwrap();
        tally.rollbacks += summary["rollbacks"].as_u64().unwrap();
        assert_eq!((summary["steps"].as_u64(), summary["eval"]["step"].as_u64()), (Some(400), Some(400)), "{name}");
        let lost = summary["lost_updates"].as_u64().unwrap();
        if calm[m]["exact"] == true {
            for field in ["params_sha256", "eval", "final_loss", "ema", "samples"] {
                assert_eq!(summary[field], calm[m][field], "{name}: {field}");
            }
            tally.lost_updates_exact += lost;
        } else {
            tally.lost_updates_others += lost;
        }
        std::fs::remove_dir_all(bench.run_dir(&name)).unwrap();
    }
    assert_eq!(tally.lost_updates_exact, 0);
    println!("{:#}", tally.json());
}

fn calm_of(mode: &str) -> String {
    format!("{} {mode} --workers 2", RUN.replace("--backend cpu", "").replace("--slow-worker any:4ms", ""))
}
