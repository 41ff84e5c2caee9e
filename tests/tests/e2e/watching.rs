//! What a person sees of a run, and what other programs read of it: also with programs of other people's.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use convoy_tests::{Bench, Ended, finish, has, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::bench;

/// A model that trains in no time.
const SMALL: &str = "--task mlp --set model.hidden=[16] --set eval_every=10";

/// A run in which worker 2 is slow, long enough to be looked at.
const SLOW: &str = "--backend cpu --workers 3 --steps 100000 --slow-worker 2:40ms --checkpoint-every 20 --name r";

/// A script of this directory, run by a Python that has a package; nothing where there is none, but for CI, where it must
/// be.
fn python(script: &str, package: &str) -> Option<Command> {
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", &format!("import {package}")]).output();
    let is_there = there.is_ok_and(|output| output.status.success());
    assert!(is_there || std::env::var_os("CI").is_none(), "{python} has no {package}; .ci/run installs it");
    if !is_there {
        println!("SKIPPED: {python} has no {package} (TEST_PYTHON names another Python)");
        return None;
    }
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/python").join(script));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Some(command)
}

fn succeeded(ended: Ended) -> String {
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stdout, ended.stderr);
    ended.stdout
}

fn status(bench: &Bench) -> Value {
    serde_json::from_str(&bench.succeed("status r --json").stdout).unwrap()
}

fn worker(status: &Value, rank: usize) -> &Value {
    &status["workers"][rank]
}

/// The process in a worker's place.
fn pid(bench: &Bench, rank: usize) -> i32 {
    let line = " worker --run".to_string();
    let of_rank = format!("--rank {rank} ");
    let processes = bench.processes();
    processes.iter().find(|(_, process)| process.contains(&line) && process.contains(&of_rank)).unwrap().0
}

/// Waits until a run says where its dashboard is.
fn dashboard(bench: &Bench) -> String {
    let mut url = String::new();
    until("there is a dashboard", || {
        let said = fs::read_to_string(bench.path().join("err.txt")).unwrap_or_default();
        url = said.lines().find_map(|line| line.strip_prefix("dashboard ")).unwrap_or_default().into();
        !url.is_empty()
    });
    url
}

fn start(bench: &Bench, arguments: &str) -> std::process::Child {
    let err = fs::File::create(bench.path().join("err.txt")).unwrap();
    bench.command(arguments).stderr(err).spawn().unwrap()
}

fn get(url: &str) -> Ended {
    finish(
        Command::new("curl")
            .args(["-sS", "-m", "20", url])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    )
}

#[test]
fn a_straggler_and_a_fault_are_seen_from_everywhere() {
    let bench = bench();
    let run = start(&bench, &format!("{SLOW} {SMALL} --dashboard 127.0.0.1:0"));
    bench.await_steps("r", 10);
    kill(Pid::from_raw(pid(&bench, 1)), Signal::SIGKILL).unwrap();
    until("both are told", || {
        let status = status(&bench);
        let has_worked = status["servers"][0]["work_seconds"].as_f64() > Some(0.0);
        has_worked && worker(&status, 2)["straggler"] == true && worker(&status, 1)["last_fault"].is_string()
    });
    let status = status(&bench);
    assert_eq!((status["live"].as_bool(), status["status"].as_str()), (Some(true), Some("running")));
    assert!(worker(&status, 0)["straggler"] == false && worker(&status, 0)["last_fault"].is_null());
    assert!(worker(&status, 1)["last_fault"].as_str().unwrap().contains("killed by signal 9 (SIGKILL)"));
    assert_eq!(status["last_fault"], worker(&status, 1)["last_fault"]);
    for key in ["memory_bytes", "heartbeat_age_seconds", "step_seconds_p99"] {
        assert!(worker(&status, 0)[key].as_f64().is_some_and(|value| value >= 0.0), "{key}");
    }
    let server = &status["servers"][0];
    assert!(server["memory_bytes"].as_u64() > Some(1 << 20), "{server}");
    let told = bench.succeed("status").stdout;
    assert!(
        told.contains("straggler") && told.contains("had a fault") && told.contains("last fault: worker 1"),
        "{told}"
    );
    let url = dashboard(&bench);
    until("worker 1 is back", || {
        get(&format!("{url}/metrics")).stdout.contains("convoy_restarts_total{run=\"r\",role=\"worker\",rank=\"1\"} 1")
    });
    let metrics = get(&format!("{url}/metrics")).stdout;
    assert!(
        metrics.contains("convoy_worker_straggler{run=\"r\",rank=\"2\"} 1")
            && metrics.contains("convoy_faults_total{run=\"r\"} 1")
    );
    assert_eq!(get(&format!("{url}/api/runs/no")).stdout, "{\"error\":\"there is no run no\"}");
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(finish(run).code, Some(75));
    let status: Value = serde_json::from_str(&bench.succeed("status --json").stdout).unwrap();
    assert_eq!((status["live"].as_bool(), status["status"].as_str()), (Some(false), Some("stopped")));
    assert!(status["exit_code"] == 75 && worker(&status, 2)["straggler"] == true, "what was known at the last stays");
}

#[test]
fn prometheus_takes_the_metrics_and_the_alerts() {
    if !has("promtool") || !has("curl") {
        return;
    }
    let bench = bench();
    let run = start(&bench, &format!("{SLOW} {SMALL} --servers 2 --clip-norm 1 --dashboard 127.0.0.1:0"));
    bench.await_steps("r", 25);
    let url = dashboard(&bench);
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/grafana");
    let texts = ["alerts.yml", "dashboard.json"].map(|file| fs::read_to_string(configs.join(file)).unwrap());
    let words = texts.iter().flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let names: Vec<_> = words.filter(|word| word.starts_with("convoy_") && !word.contains("gpu")).collect();
    let mut metrics = String::new();
    // Checkpoints and what processes use come a moment later.
    until("everything is told that dashboard and alerts name", || {
        metrics = get(&format!("{url}/metrics")).stdout;
        names.iter().all(|name| metrics.contains(name))
    });
    kill(Pid::from_raw(run.id() as i32), Signal::SIGTERM).unwrap();
    finish(run);
    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    succeeded(finish(check));
    let rules = Command::new("promtool")
        .args(["check", "rules"])
        .arg(configs.join("alerts.yml"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    succeeded(finish(rules.unwrap()));
}

#[test]
fn tensorboard_and_dvc_have_what_they_read() {
    let bench = bench();
    bench.train("r", &format!("--workers 2 --steps 30 {SMALL} --clip-norm 1"));
    let dvc = bench.run_dir("r").join("dvclive");
    let metrics: Value = serde_json::from_str(&fs::read_to_string(dvc.join("metrics.json")).unwrap()).unwrap();
    let summary = bench.summary("r");
    assert_eq!((&metrics["step"], &metrics["eval"]["accuracy"]), (&30.into(), &summary["eval"]["accuracy"]));
    let table = fs::read_to_string(dvc.join("plots/metrics/train/loss.tsv")).unwrap();
    assert_eq!((table.lines().next(), table.lines().count()), (Some("step\tloss"), 31));
    assert!(fs::read_to_string(dvc.join("params.yaml")).unwrap().contains("optimizer:\n"));
    let Some(mut script) = python("tensorboard_reads.py", "tensorboard") else { return };
    let told = succeeded(finish(script.arg(bench.path().join("runs")).spawn().unwrap()));
    let read: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
    let losses: Vec<f64> = bench
        .metrics("r")
        .iter()
        .filter(|event| event["event"] == "step")
        .map(|e| e["loss"].as_f64().unwrap())
        .collect();
    let theirs: Vec<f64> = read["train/loss"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
    assert_eq!(theirs.len(), 30);
    assert!(losses.iter().zip(&theirs).all(|(ours, theirs)| (ours - theirs).abs() < 1e-5), "{losses:?} {theirs:?}");
    assert_eq!(read["eval/accuracy"].as_array().map(Vec::len), Some(3));
    assert_eq!(read["served"], true, "TensorBoard itself serves the run");
}

#[test]
fn a_browser_shows_a_run_as_it_trains() {
    if !has("chromium") || !has("chromedriver") {
        return;
    }
    let Some(mut script) = python("dashboard.py", "selenium") else { return };
    let bench = bench();
    bench.train("before", &format!("--workers 1 --steps 40 {SMALL} --seed 9"));
    let token = bench.path().join("token");
    fs::write(&token, "a token of some length\n").unwrap();
    let tokens = format!("--dashboard 127.0.0.1:0 --dashboard-token {}", token.display());
    let run = start(&bench, &format!("{SLOW} {SMALL} --servers 2 {tokens}"));
    bench.await_steps("r", 12);
    let url = dashboard(&bench);
    kill(Pid::from_raw(pid(&bench, 1)), Signal::SIGKILL).unwrap();
    // It ends with the run stopped, by the button.
    let told = finish(script.arg(url).arg(bench.path()).arg("a token of some length").spawn().unwrap());
    succeeded(told);
    assert_eq!(finish(run).code, Some(75));
}

#[test]
fn a_terminal_shows_a_run_and_is_left_as_it_was() {
    let Some(mut script) = python("terminal.py", "pyte") else { return };
    let bench = bench();
    let run = bench.command(&format!("{SLOW} {SMALL}"));
    let program: Vec<PathBuf> = std::iter::once(run.get_program()).chain(run.get_args()).map(PathBuf::from).collect();
    script.arg(bench.path()).args(program);
    succeeded(finish(script.spawn().unwrap()));
    bench.await_no_process();
}

#[test]
fn lines_are_objects_if_that_is_asked_for() {
    let bench = bench();
    let ended = bench.succeed(&format!("--backend cpu --workers 1 --steps 5 {SMALL} --log-format json --name r"));
    let lines: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().all(|line| line["time"].as_f64() > Some(1e9)), "{}", ended.stderr);
    assert!(lines.iter().any(|line| line["step"] == 5 && line["loss"].is_f64()), "{}", ended.stderr);
}

#[test]
fn a_trace_joins_workers_and_servers() {
    let bench = bench();
    bench.train("r", &format!("--workers 2 --servers 2 --steps 20 {SMALL} --trace t.json"));
    let text = fs::read_to_string(bench.path().join("t.json")).unwrap();
    let events: Vec<Value> = serde_json::from_str(&text).unwrap();
    let of = |kind: &str| events.iter().filter(|event| event["ph"] == kind).collect::<Vec<_>>();
    let names: Vec<_> = of("M").iter().filter_map(|event| event["args"]["name"].as_str()).collect();
    for name in ["launcher 0", "server 0", "server 1", "worker 0", "worker 1"] {
        assert_eq!(
            names.iter().filter(|known| known.starts_with(&format!("{name} ("))).count(),
            1,
            "{name}: {names:?}"
        );
    }
    let count = |name: &str| of("X").iter().filter(|event| event["name"] == name).count();
    // Twenty steps of two workers, to two servers each.
    assert_eq!((count("exchange"), count("push-pull"), count("step"), count("load")), (40, 80, 20, 40));
    assert!(count("compute") >= 40 && count("wait") == 40);
    let begun: Vec<_> = of("s").iter().map(|event| event["id"].clone()).collect();
    assert!(
        of("f").len() == 80 && of("f").iter().all(|event| begun.contains(&event["id"])),
        "every call has its caller"
    );
    assert!(bench.run("--trace /no/such/place/t.json --steps 1 --backend cpu").code == Some(3));
}

#[test]
fn a_failure_ends_in_what_failed_first_and_what_to_try() {
    let bench = bench();
    let run = bench
        .command(&format!("--backend cpu --workers 2 --max-restarts 0 --steps 100000 {SMALL} --name r"))
        .spawn()
        .unwrap();
    bench.await_steps("r", 3);
    kill(Pid::from_raw(pid(&bench, 1)), Signal::SIGKILL).unwrap();
    let ended = finish(run);
    assert_eq!(ended.code, Some(4), "{}", ended.stderr);
    for words in [
        "first failure: worker 1 on ",
        ", signal 9 (SIGKILL), after step ",
        "to try: if nobody killed it, the system did for want of memory",
        "all it said: launcher logs runs/r --role worker --rank 1",
    ] {
        assert!(ended.stderr.contains(words), "{words}: {}", ended.stderr);
    }
    let shown = bench.succeed("logs runs/r --role worker --rank 1").stdout;
    assert!(shown.contains("worker-1 | "), "{shown}");
}

#[test]
fn the_doctor_looks_at_everything() {
    let bench = bench();
    let told = bench.succeed("doctor").stdout;
    for what in [
        "cores",
        "memory",
        "CUDA",
        "Vulkan (wgpu)",
        "NVML",
        "shared memory",
        "open files",
        "ports",
        "loopback",
        "disk",
        "clock",
    ] {
        assert!(told.lines().any(|line| line.contains(what)), "{what}: {told}");
    }
    let findings: Value = serde_json::from_str(&bench.succeed("doctor --json").stdout).unwrap();
    assert!(
        findings.as_array().unwrap().iter().all(|finding| finding["state"] == "good" || finding["advice"].is_string())
    );
    assert_eq!(bench.run("doctor --run-dir /proc/none").code, Some(3));
}

#[test]
fn shells_complete_and_pages_are_written() {
    let bench = bench();
    for shell in ["bash", "zsh", "fish"] {
        assert!(bench.succeed(&format!("completions {shell}")).stdout.contains("dashboard-token"), "{shell}");
    }
    bench.succeed("man pages");
    let pages = fs::read_dir(bench.path().join("pages")).unwrap().count();
    let page = fs::read_to_string(bench.path().join("pages/launcher-status.1")).unwrap();
    assert!(pages > 20 && page.contains(".TH launcher-status 1"), "{page}");
}
