//! What the end-to-end tests share: starting the program in a directory of its own and reading what it leaves behind.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says why it skips")]

pub mod cable;
pub mod net;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Longer than anything here takes on a slow machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(600);

/// A place to run the program in.
#[derive(Debug)]
pub struct Bench {
    program: PathBuf,
    dir: TempDir,
}

/// How a command ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Drop for Bench {
    /// Ends what a failed test has left running, so that it takes no time from others.
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            // It may have ended by itself.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Bench {
    /// An empty place for a program.
    pub fn new(program: &str) -> Bench {
        Bench { program: program.into(), dir: TempDir::new().expect("a temporary directory") }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The program with arguments separated by white space, in this place, its output piped.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments.split_whitespace()).current_dir(self.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &str) -> Ended {
        finish(self.command(arguments).spawn().expect("the program starts"))
    }

    /// Runs a command that must succeed.
    pub fn succeed(&self, arguments: &str) -> Ended {
        let ended = self.run(arguments);
        assert_eq!(ended.code, Some(0), "{arguments}\n{}", ended.stderr);
        ended
    }

    /// Trains under a name and returns the summary.
    pub fn train(&self, name: &str, arguments: &str) -> Value {
        self.succeed(&format!("--backend cpu --name {name} {arguments}"));
        self.summary(name)
    }

    /// The directory of a run.
    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.path().join("runs").join(name)
    }

    /// A JSON file of a run.
    pub fn json(&self, name: &str, file: &str) -> Value {
        let text = fs::read_to_string(self.run_dir(name).join(file)).expect(file);
        serde_json::from_str(&text).expect(file)
    }

    /// The summary of a run.
    pub fn summary(&self, name: &str) -> Value {
        self.json(name, "summary.json")
    }

    /// The events of a run so far, complete lines only.
    pub fn metrics(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.run_dir(name).join("metrics.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Whether a run has told of an event of a kind.
    pub fn has_event(&self, name: &str, kind: &str) -> bool {
        self.metrics(name).iter().any(|event| event["event"] == kind)
    }

    /// Waits until a run has committed so many steps.
    pub fn await_steps(&self, name: &str, steps: u64) {
        until("steps are committed", || self.metrics(name).iter().any(|event| event["step"].as_u64() >= Some(steps)));
    }

    /// Processes whose command line names this place: `(process, command line)`.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let place = self.path().display().to_string();
        let ours = |entry: fs::DirEntry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
            line.contains(&place).then_some((pid, line))
        };
        fs::read_dir("/proc").expect("/proc").flatten().filter_map(ours).collect()
    }

    /// Waits until no process of a run in this place is left.
    pub fn await_no_process(&self) {
        until("no process is left", || self.processes().is_empty());
    }
}

/// Waits for a command, which must end, and takes its output.
pub fn finish(child: Child) -> Ended {
    let output = child.wait_with_output().expect("the program's output");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Looks until something holds; gives up only when it will never.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The tensors of a run's model in manifest order, as little-endian bytes, and what the manifest says of each.
pub fn parameters(run: &Path) -> Vec<(String, Vec<f32>)> {
    let bytes = fs::read(run.join("model.safetensors")).expect("the model");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let manifest: Value =
        serde_json::from_slice(&fs::read(run.join("manifest.json")).expect("manifest")).expect("JSON");
    let entries = manifest.as_array().expect("a list of tensors");
    let read = |entry: &Value| {
        let name = entry["name"].as_str().expect("a name").to_string();
        let view = file.tensor(&name).expect("a tensor of the manifest");
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (name, values)
    };
    entries.iter().map(read).collect()
}

/// The hash of a run's parameters, computed from its files alone.
pub fn recomputed_sha256(run: &Path) -> String {
    let mut hash = Sha256::new();
    for (_, values) in parameters(run) {
        values.iter().for_each(|value| hash.update(value.to_le_bytes()));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a program of other people's is on this machine. Says so where it is not; in CI it must be.
pub fn has(program: &str) -> bool {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    let is_there = places.iter().any(|place| Path::new(place).join(program).exists());
    assert!(is_there || std::env::var("CI").is_err(), "{program} is not on this machine; .ci/run installs it");
    if !is_there {
        println!("SKIPPED: {program} is not on this machine");
    }
    is_there
}

/// The shared data set with this name, if it is on this machine. Says so where it is not.
pub fn shared_data(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if !path.exists() {
        println!("SKIPPED: {} is not on this machine", path.display());
    }
    path.canonicalize().ok()
}
