//! One run of this program, in a directory of its own, and what it left behind.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::outcome::Failure;

/// What is kept of a run.
pub struct Trained {
    /// When each commit was made: its number, from 1, and seconds since training began.
    pub commits: Vec<(u64, f64)>,
    /// Its summary.json.
    pub summary: Value,
}

impl Trained {
    /// Seconds between commits, without the first few.
    pub fn rounds(&self, warm: usize) -> Vec<f64> {
        let after = self.commits.get(warm..).unwrap_or_default();
        after.windows(2).map(|pair| pair[1].1 - pair[0].1).collect()
    }

    /// What a worker's summary says under some keys, by worker.
    pub fn of_workers(&self, keys: &[&str]) -> Vec<f64> {
        let value = |worker: &Value| keys.iter().fold(worker, |value, key| &value[*key]).as_f64().unwrap_or(0.0);
        self.summary["workers"].as_array().into_iter().flatten().map(value).collect()
    }
}

fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|problem| Failure::Environment(format!("where is this program? {problem}")))
}

/// A directory that is gone when it is dropped.
///
/// # Errors
/// The disk.
pub fn place() -> Result<TempDir, Failure> {
    let place = tempfile::Builder::new().prefix("convoy-bench-").tempdir();
    place.map_err(|problem| Failure::Environment(format!("cannot make a directory for measurements: {problem}")))
}

/// Runs this program in `place`; gives its standard output.
///
/// # Errors
/// It ends otherwise than well. No wait in it is without an end.
pub fn launcher(place: &Path, arguments: &[String]) -> Result<String, Failure> {
    let failed = |problem: &str| Failure::Failed(format!("launcher {}: {problem}", arguments.join(" ")));
    let mut child = Command::new(program()?)
        .args(arguments)
        .current_dir(place)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|problem| failed(&problem.to_string()))?;
    let mut errors = child.stderr.take();
    // Read beside the other, so that neither fills up.
    let told = std::thread::spawn(move || {
        let mut text = String::new();
        errors.as_mut().map(|errors| errors.read_to_string(&mut text));
        text
    });
    let mut output = String::new();
    let read = child.stdout.take().map_or(Ok(0), |mut out| out.read_to_string(&mut output));
    let ended = read.and_then(|_| child.wait()).map_err(|problem| failed(&problem.to_string()))?;
    let told = told.join().unwrap_or_default();
    match ended.success() {
        true => Ok(output),
        false => Err(failed(told.lines().last().unwrap_or("it ended without a word"))),
    }
}

/// Trains, and reads what the run left behind.
///
/// # Errors
/// It does not end well.
pub fn run(arguments: &[String]) -> Result<Trained, Failure> {
    let place = place()?;
    let fixed = ["--name", "cell", "--eval-every", "0", "--checkpoint-every", "0"].map(String::from);
    launcher(place.path(), &[arguments, &fixed].concat())?;
    let run = place.path().join("runs").join("cell");
    let read = |file: &str| {
        let problem = |problem| Failure::Failed(format!("cannot read {file} of a run: {problem}"));
        std::fs::read_to_string(run.join(file)).map_err(problem)
    };
    let (metrics, summary) = (read("metrics.jsonl")?, read("summary.json")?);
    let lines = metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let commits = lines.filter(|line| line["event"] == "step");
    let commits = commits.filter_map(|line| Some((line["commits"].as_u64()?, line["seconds"].as_f64()?))).collect();
    let summary = serde_json::from_str(&summary).map_err(|problem| Failure::Failed(problem.to_string()))?;
    Ok(Trained { commits, summary })
}
