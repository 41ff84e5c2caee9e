//! Looking for GPUs in a process of its own, so that a broken driver is an answer and not a crash.

use std::{
    io::Read,
    process::{Command, ExitCode, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use convoy_proto::{config::Backend, process};
use convoy_worker::device::{self, BackendReport};
use tokio_util::sync::CancellationToken;

use crate::cli;

/// How long drivers may take to start and to compile a first kernel.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the hidden `probe` command does.
pub fn print() -> ExitCode {
    process::watch_parent(CancellationToken::new());
    let reports = device::probe();
    match serde_json::to_string(&reports) {
        Ok(text) => {
            let _ = cli::say(text);
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Runs this program's `probe` and reads its answer; once, however often that is wanted.
pub fn probe() -> Vec<BackendReport> {
    static ANSWER: OnceLock<Vec<BackendReport>> = OnceLock::new();
    let ask = || {
        ask().unwrap_or_else(|problem| {
            let report = |backend| BackendReport { backend, devices: Err(problem.clone()) };
            vec![report(Backend::Cuda), report(Backend::Wgpu)]
        })
    };
    ANSWER.get_or_init(ask).clone()
}

fn ask() -> Result<Vec<BackendReport>, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = Command::new(program);
    command.arg("probe").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("cannot start the probe: {error}"))?;
    let deadline = Instant::now() + PATIENCE;
    let (sender, answer) = std::sync::mpsc::channel();
    if let Some(mut out) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = out.read_to_string(&mut text);
            let _ = sender.send(text);
        });
    }
    let text = answer.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    if text.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("the probe was lost: {error}"))?;
    let text = text.map_err(|_| format!("a driver did not answer within {} s", PATIENCE.as_secs()))?;
    serde_json::from_str(&text).map_err(|_| format!("a driver ended the process that looked for devices ({status})"))
}
