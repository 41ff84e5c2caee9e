//! Checkpoints in an object store: a server that speaks S3, over HTTP, with credentials from the environment.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use convoy_tests::{Bench, finish, until};
use nix::sys::signal::Signal;

use crate::{
    bench,
    strikes::{end, send, steps, strike, verify},
};

const RUN: &str = "--task mlp --set model.hidden=[24] --workers 2 --slices 4 --servers 2 --eval-every 0 \
    --eval-samples 200 --set timeouts.restart_ms=20";

/// Starts the store on a free port, makes a bucket, and stays until its input ends.
const STORE: &str = r"
import sys, urllib.request
from moto.server import ThreadedMotoServer
store = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
store.start()
host, port = store.get_host_and_port()
put = urllib.request.Request(f'http://{host}:{port}/convoy', method='PUT')
urllib.request.urlopen(put).read()
print(f'http://{host}:{port}', flush=True)
sys.stdin.read()
";

/// A store, which ends with the test.
struct Store {
    process: Child,
    endpoint: String,
}

impl Store {
    /// None where Python lacks the package, but for CI, where it must be there.
    fn start() -> Option<Store> {
        let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".into());
        let has_moto = Command::new(&python).args(["-c", "import moto.server"]).output();
        if !has_moto.is_ok_and(|output| output.status.success()) && std::env::var_os("CI").is_none() {
            println!("SKIPPED: {python} has no moto[s3,server] (TEST_PYTHON names another Python)");
            return None;
        }
        let mut command = Command::new(&python);
        command.args(["-c", STORE]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut endpoint = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut endpoint).unwrap();
        assert!(endpoint.starts_with("http://127.0.0.1:"), "the store did not start");
        Some(Store { process, endpoint: endpoint.trim().into() })
    }

    fn command(&self, bench: &Bench, arguments: &str) -> Command {
        let mut command = bench.command(arguments);
        command.env("AWS_ENDPOINT_URL", &self.endpoint).env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "an-id").env("AWS_SECRET_ACCESS_KEY", "not-to-be-told");
        command
    }

    fn succeed(&self, bench: &Bench, arguments: &str) -> String {
        let ended = finish(self.command(bench, arguments).spawn().unwrap());
        assert_eq!(ended.code, Some(0), "{arguments}\n{}", ended.stderr);
        ended.stderr
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_run_keeps_its_checkpoints_in_a_bucket_and_goes_on_from_there() {
    let Some(store) = Store::start() else { return };
    let bench = bench();
    let run = format!("{RUN} --steps 40 --slow-worker any:5ms");
    let calm = bench.train("calm", &run);
    let to = "--backend cpu --checkpoint-to s3://convoy/runs --checkpoint-every 5";

    // A server dies: back to the newest checkpoint, in place. Then the launcher is stopped, and another goes on.
    let child = store.command(&bench, &format!("{run} {to} --name r")).spawn().unwrap();
    until("there is a checkpoint", || !steps(&bench, "r", "checkpoint").is_empty());
    strike(&bench, "r", (("server", 1), 8), Signal::SIGKILL);
    until("the run goes back", || !steps(&bench, "r", "rollback").is_empty());
    let back = steps(&bench, "r", "rollback")[0];
    assert!(back >= 5 && back.is_multiple_of(5), "{back}");
    bench.await_steps("r", back + 8);
    send(child.id() as i32, Signal::SIGINT);
    let (ended, _) = end(&bench, "r", child);
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    assert!(!bench.run_dir("r").join("checkpoints").exists() && !bench.run_dir("r").join(".checkpoints").exists());
    let told = store.succeed(&bench, "resume r --servers 1 --workers 3");
    assert!(told.contains(", s3://convoy/runs/r/step-"), "{told}");
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
    verify(&bench, "r");

    // Others begin with it: by the run, by its URL, and by that of a checkpoint, which ends where it began.
    for (name, from) in [("run", "runs/r"), ("url", "s3://convoy/runs/r/"), ("one", "s3://convoy/runs/r/step-40")] {
        let longer = run.replace("--steps 40", "--steps 45");
        let told = store.succeed(&bench, &format!("{longer} --backend cpu --name {name} --resume {from}"));
        assert!(told.contains("begins with step 40, s3://convoy/runs/r/step-40"), "{told}");
        assert_eq!(bench.summary(name)["steps"], 45);
        verify(&bench, name);
    }
    assert_eq!(bench.summary("url")["params_sha256"], bench.summary("one")["params_sha256"]);

    // A name that is taken there, and a bucket that is not there; nothing is left of either.
    let refused = finish(store.command(&bench, &format!("{run} {to} --name r --run-dir other")).spawn().unwrap());
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("has checkpoints of a run r already"), "{}", refused.stderr);
    let elsewhere = to.replace("s3://convoy", "s3://nowhere");
    let refused = finish(store.command(&bench, &format!("{run} {elsewhere} --name n")).spawn().unwrap());
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("s3://nowhere/runs/n") && refused.stderr.contains("NoSuchBucket"),
        "{}",
        refused.stderr
    );
    assert!(!bench.run_dir("n").exists() && !bench.path().join("other/r").exists());

    // What the store was told is nowhere else.
    let mut files = vec![bench.path().to_path_buf()];
    while let Some(path) = files.pop() {
        if path.is_dir() && !path.is_symlink() {
            files.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(bytes) = std::fs::read(&path) {
            assert!(!String::from_utf8_lossy(&bytes).contains("not-to-be-told"), "{}", path.display());
        }
    }
}

#[test]
fn a_store_that_goes_away_is_said_and_training_goes_on() {
    let Some(store) = Store::start() else { return };
    let bench = bench();
    let run = format!("{RUN} --steps 28 --slow-worker any:20ms");
    let calm = bench.train("calm", &run);
    let to = "--backend cpu --checkpoint-to s3://convoy/runs --checkpoint-every 14 --name r";
    let longer = run.replace("--steps 28", "--steps 100000");
    let other = to.replace("--checkpoint-every 14 --name r", "--checkpoint-every 50 --name back");
    let other = store.command(&bench, &format!("{longer} {other}")).spawn().unwrap();
    until("there is another", || !steps(&bench, "back", "checkpoint").is_empty());
    let child = store.command(&bench, &format!("{run} {to}")).spawn().unwrap();
    until("there is a checkpoint", || steps(&bench, "r", "checkpoint") == [14]);
    drop(store);
    let (ended, summary) = (finish(child), bench.summary("r"));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    assert!(ended.stderr.contains("no checkpoint of step 28, training goes on"), "{}", ended.stderr);
    assert!(ended.stderr.contains("cannot write s3://convoy/runs/r/step-28/"), "{}", ended.stderr);
    assert_eq!(summary["failed_checkpoints"], 1);

    // What cannot be read may be whole: the run ends, to be resumed, rather than begin anew.
    strike(&bench, "back", (("server", 0), 1), Signal::SIGKILL);
    let (ended, summary) = end(&bench, "back", other);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("cannot go back: cannot list s3://convoy/runs/back"), "{}", ended.stderr);
    assert!(ended.stderr.contains("goes on when it can be read"), "{}", ended.stderr);
    assert_eq!(summary["rollbacks"], 0);
}
