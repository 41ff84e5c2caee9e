//! Checkpoints: when they are written, what is kept, what is taken up, and what a full disk or a torn file does.

use std::{fs, path::PathBuf};

use convoy_tests::{Bench, finish, until};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    bench,
    strikes::{end, send, steps, verify},
};

const RUN: &str = "--backend cpu --task mlp --set model.hidden=[24] --workers 2 --slices 4 --servers 2 \
    --eval-every 0 --eval-samples 200";

fn checkpoints(bench: &Bench, name: &str) -> Vec<String> {
    let entries = fs::read_dir(bench.run_dir(name).join("checkpoints")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn stop_at(bench: &Bench, name: &str, how: &str, step: u64) -> Value {
    let child = bench.command(&format!("{RUN} {how} --name {name}")).spawn().unwrap();
    bench.await_steps(name, step);
    send(child.id() as i32, Signal::SIGINT);
    let (ended, summary) = end(bench, name, child);
    assert_eq!(ended.code, Some(75), "{how}: {}", ended.stderr);
    assert!(ended.stderr.contains(&format!("`launcher resume runs/{name}` goes on")), "{}", ended.stderr);
    assert_eq!(summary["status"], "stopped");
    summary
}

#[test]
fn a_run_that_is_stopped_goes_on_to_the_same_end() {
    let bench = bench();
    let modes = ["--sync", "--optimizer lamb --ema 0.9", "--local-steps 2", "--async", "--ssp 1", "--quorum 3"];
    for (m, mode) in modes.into_iter().enumerate() {
        let how = format!("{mode} --steps 30 --slow-worker any:5ms");
        let (calm, name) = (format!("calm{m}"), format!("m{m}"));
        bench.succeed(&format!("{RUN} {how} --name {calm}"));
        let stopped = stop_at(&bench, &name, &format!("{how} --checkpoint-every 0"), 5);
        assert!(stopped["steps"].as_u64() < Some(30), "{mode}");
        assert_eq!(checkpoints(&bench, &name).len(), 1, "{mode}");
        bench.succeed(&format!("resume {name}"));
        let (calm, summary) = (bench.summary(&calm), bench.summary(&name));
        assert_eq!((summary["steps"].as_u64(), summary["resumes"].as_u64()), (Some(30), Some(1)), "{mode}");
        verify(&bench, &name);
        if !mode.contains("quorum") {
            assert_eq!(summary["samples"], 30 * 128, "{mode}: each sample once");
        }
        if calm["exact"] == true {
            for field in ["params_sha256", "eval", "final_loss", "ema"] {
                assert_eq!(summary[field], calm[field], "{mode}: {field}");
            }
        }
        // What is done stays as it is.
        let before = fs::read(bench.run_dir(&name).join("summary.json")).unwrap();
        assert!(bench.succeed(&format!("resume {name}")).stdout.contains("is done"));
        assert_eq!(fs::read(bench.run_dir(&name).join("summary.json")).unwrap(), before);
    }
}

#[test]
fn they_come_by_step_by_time_and_by_signal() {
    let bench = bench();
    bench.succeed(&format!("{RUN} --steps 50 --checkpoint-every 10 --keep-last 3 --name steps"));
    assert_eq!(steps(&bench, "steps", "checkpoint"), [10, 20, 30, 40, 50]);
    assert_eq!(checkpoints(&bench, "steps"), ["step-30", "step-40", "step-50"]);
    assert_eq!(bench.summary("steps")["checkpoints"], 5);
    for mode in ["--sync", "--async"] {
        let name = mode.replace('-', "");
        let how = format!("{RUN} {mode} --steps 1000000 --slow-worker any:2ms --checkpoint-every 300ms");
        let child = bench.command(&format!("{how} --name {name}")).spawn().unwrap();
        until("three are there", || steps(&bench, &name, "checkpoint").len() >= 3);
        send(child.id() as i32, Signal::SIGINT);
        assert_eq!(finish(child).code, Some(75));
        assert_eq!(checkpoints(&bench, &name).len(), 2);
    }
    let how = format!("{RUN} --steps 1000000 --slow-worker any:2ms --checkpoint-every 0 --name signal");
    let child = bench.command(&how).spawn().unwrap();
    bench.await_steps("signal", 5);
    assert_eq!(checkpoints(&bench, "signal").len(), 0);
    send(child.id() as i32, Signal::SIGUSR1);
    until("it is there", || steps(&bench, "signal", "checkpoint").len() == 1);
    send(child.id() as i32, Signal::SIGTERM);
    assert_eq!(finish(child).code, Some(75));
}

#[test]
fn the_newest_whole_one_is_taken() {
    let bench = bench();
    let calm = bench.train("calm", &format!("{} --steps 50", RUN.replace("--backend cpu", "")));
    let how = "--steps 50 --slow-worker any:10ms --checkpoint-every 5 --keep-last 9";
    stop_at(&bench, "r", how, 17);
    let all = bench.run_dir("r").join("checkpoints");
    let mut kept: Vec<u64> = checkpoints(&bench, "r").iter().map(|name| name[5..].parse().unwrap()).collect();
    kept.sort_unstable();
    // The newest has a torn manifest, the next a changed file, the third lacks one.
    let [.., third, second, first] = kept.as_slice() else { panic!("{kept:?}") };
    let file = |step: &u64, part: &str| -> PathBuf {
        let entries = fs::read_dir(all.join(format!("step-{step}"))).unwrap().flatten();
        entries.map(|entry| entry.path()).find(|path| path.display().to_string().contains(part)).unwrap()
    };
    let torn = file(first, "manifest");
    let text = fs::read(&torn).unwrap();
    fs::write(&torn, &text[..text.len() / 2]).unwrap();
    let changed = file(second, "blocks-");
    let mut bytes = fs::read(&changed).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&changed, bytes).unwrap();
    fs::remove_file(file(third, "blocks-")).unwrap();
    let ended = bench.succeed("resume r --workers 3");
    let whole = kept[kept.len() - 4];
    assert!(ended.stderr.contains(&format!("goes on from step {whole}, ")), "{}", ended.stderr);
    for what in ["it is not whole", "does not have the hash", "No such file"] {
        assert!(ended.stderr.contains(what), "{what}: {}", ended.stderr);
    }
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
}

#[test]
fn a_full_disk_is_said_and_training_goes_on() {
    let bench = bench();
    let place = bench.path().join("small");
    fs::create_dir(&place).unwrap();
    let mount =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=600k", "tmpfs"]).arg(&place).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI mounts a small disk");
        println!("SKIPPED: a small disk cannot be mounted here");
        return;
    }
    // One checkpoint of three vectors of 19 000 numbers fits, two do not.
    let how = format!("{RUN} --steps 40 --checkpoint-every 5 --keep-last 5 --run-dir small --name r");
    let ended = bench.run(&how);
    let text = fs::read_to_string(place.join("r/summary.json")).unwrap();
    let whole: Vec<_> = fs::read_dir(place.join("r/checkpoints")).unwrap().flatten().collect();
    let umount = std::process::Command::new("umount").arg("-l").arg(&place).status().unwrap();
    assert!(umount.success());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("no checkpoint of step"), "{}", ended.stderr);
    assert!(ended.stderr.contains("No space left on device"), "{}", ended.stderr);
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((summary["status"].as_str(), summary["steps"].as_u64()), (Some("done"), Some(40)));
    assert!(summary["failed_checkpoints"].as_u64() >= Some(1) && summary["checkpoints"].as_u64() >= Some(1));
    assert!(!whole.is_empty());
}

#[test]
fn resume_says_what_it_goes_on_with() {
    let bench = bench();
    let how = "--steps 96 --slow-worker any:15ms --checkpoint-every 4";
    let calm = bench.train("calm", &format!("{} {how}", RUN.replace("--backend cpu", "")));
    // A command that is run again and again until the run is done.
    let auto = format!("{RUN} {how} --resume auto --name r");
    let child = bench.command(&auto).spawn().unwrap();
    bench.await_steps("r", 9);
    let busy = bench.run("resume r");
    assert_eq!(busy.code, Some(2));
    assert!(busy.stderr.contains("another launcher is at work on the run"), "{}", busy.stderr);
    send(child.id() as i32, Signal::SIGTERM);
    assert_eq!(finish(child).code, Some(75));
    let other = bench.run(&format!("{auto} --lr 0.5"));
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("`optimizer.lr` is 0.001 there and 0.5 now"), "{}", other.stderr);
    bench.succeed(&auto);
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
    assert!(bench.succeed(&auto).stdout.contains("is done"));
    // A new run that begins with a checkpoint of another.
    bench.succeed(&format!("{RUN} {how} --resume runs/r/checkpoints/step-92 --name from --chaos kill-server@94"));
    let summary = bench.summary("from");
    assert_eq!((&summary["params_sha256"], summary["rollbacks"].as_u64()), (&calm["params_sha256"], Some(1)));
    verify(&bench, "from");
    // Its launcher dies before that checkpoint is its own.
    let cut = bench.run_dir("cut");
    fs::create_dir_all(cut.join("checkpoints/step-92")).unwrap();
    for file in ["config.toml", "begins-with"] {
        fs::copy(bench.run_dir("from").join(file), cut.join(file)).unwrap();
    }
    let told = bench.succeed("resume cut").stderr;
    assert!(told.contains("begins with step 92"), "{told}");
    assert_eq!(bench.summary("cut")["params_sha256"], calm["params_sha256"]);
    for (resume, why) in [
        ("--resume auto", "--resume auto needs --name"),
        ("--resume nowhere --name x", "there is no checkpoint at nowhere"),
        ("--resume runs/r --set model.hidden=[5] --name x", "is of another model"),
        ("--checkpoint-every 5parsecs --name x", "must be a number of steps, or a time"),
    ] {
        let ended = bench.run(&format!("{RUN} {how} {resume}"));
        assert_eq!(ended.code, Some(2), "{resume}: {}", ended.stderr);
        assert!(ended.stderr.contains(why), "{resume}: {}", ended.stderr);
    }
    assert!(bench.run("resume nobody").stderr.contains("there is no run nobody"));
}

#[test]
fn what_was_trained_is_not_thrown_away_unasked() {
    let bench = bench();
    let run = bench.command(&format!("{RUN} --steps 300 --slow-worker any:5ms --checkpoint-every 5 --name r")).spawn();
    let run = run.unwrap();
    bench.await_steps("r", 12);
    // As when the terminal is closed.
    send(run.id() as i32, Signal::SIGHUP);
    let (ended, _) = end(&bench, "r", run);
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    let config = bench.run_dir("r").join("config.toml");
    let whole = fs::read_to_string(&config).unwrap();
    fs::write(&config, "").unwrap();
    let ended = bench.run("resume r");
    assert!(ended.code == Some(2) && ended.stderr.contains("config.toml is cut off"), "{}", ended.stderr);
    fs::write(&config, whole).unwrap();
    fs::remove_dir_all(bench.run_dir("r").join("checkpoints")).unwrap();
    let ended = bench.run("resume r");
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("the run had checkpoints, and none is whole"), "{}", ended.stderr);
    assert!(bench.succeed("resume r --begin-anew").stderr.contains("begins anew"));
    verify(&bench, "r");
}

#[test]
fn checkpoints_at_every_step_are_none_too_many() {
    let bench = bench();
    let summary = bench.train("r", &format!("{} --steps 150 --checkpoint-every 1", RUN.replace("--backend cpu", "")));
    assert_eq!((summary["failed_checkpoints"].as_u64(), checkpoints(&bench, "r").len()), (Some(0), 2));
}

#[test]
fn a_sample_that_is_lost_or_used_twice_is_found() {
    let bench = bench();
    bench.succeed(&format!("{RUN} --steps 20 --name r"));
    verify(&bench, "r");
    let file = bench.run_dir("r").join("ledger.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    for (what, text) in [
        ("commit 7 is missing", text.replacen("\"commit\":7,", "\"commit\":70,", 1)),
        ("was used 0 times, not 1", text.replacen("\"slices\":[0,1,2,3]", "\"slices\":[0,1,3]", 1)),
        ("was used 2 times, not 1", text.replacen("\"step\":8,", "\"step\":9,", 1)),
        (
            "the ledger tells of 9 steps, but 20 were made: it is cut off",
            text.lines().take(10).collect::<Vec<_>>().join("\n"),
        ),
        ("the ledger tells of 0 steps, but 20 were made: it is cut off", String::new()),
    ] {
        fs::write(&file, text).unwrap();
        let ended = bench.run("verify r");
        assert_eq!(ended.code, Some(1), "{what}: {}", ended.stdout);
        assert!(ended.stderr.contains(what), "{what}: {}", ended.stderr);
    }
}
