//! Child processes: started from this same program, logged each to its file, and never left behind.
//!
//! A child's standard input is a pipe that this process holds open; when it ends, however it ends, the pipe closes and
//! the child ends itself. Children are their own process groups, so that a Ctrl-C at the terminal reaches only the
//! launcher, which decides what it means.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use convoy_proto::ids::Role;
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::outcome::Failure;

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSpec {
    /// Its role.
    pub role: Role,
    /// Its rank.
    pub rank: u32,
    /// Arguments after the role.
    pub arguments: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A child that ended.
#[derive(Clone, Debug)]
pub struct ChildExit {
    /// Its role.
    pub role: Role,
    /// Its rank.
    pub rank: u32,
    /// Its process.
    pub pid: u32,
    /// How it ended.
    pub status: ExitStatus,
    /// Where its output went.
    pub log: PathBuf,
}

/// Exits that wait to be looked at: more than there can be children at once, for at the end nobody looks.
const EXITS_AHEAD: usize = 1 << 13;

/// All children of a run.
#[derive(Debug)]
pub struct Children {
    sender: mpsc::Sender<ChildExit>,
    exits: mpsc::Receiver<ChildExit>,
    kill: CancellationToken,
    /// By role and rank, what kills one.
    kills: BTreeMap<(Role, u32), CancellationToken>,
    tasks: TaskTracker,
}

impl Default for Children {
    /// None yet.
    fn default() -> Self {
        let (sender, exits) = mpsc::channel(EXITS_AHEAD);
        let (kill, kills) = (CancellationToken::new(), BTreeMap::new());
        Children { sender, exits, kill, kills, tasks: TaskTracker::new() }
    }
}

impl Children {
    /// Starts a child; gives its process.
    ///
    /// # Errors
    /// The program or the log cannot be opened.
    pub fn start(&mut self, spec: ChildSpec) -> Result<u32, Failure> {
        let ChildSpec { role, rank, arguments, log } = spec;
        let cannot = |problem: std::io::Error| Failure::Environment(format!("cannot start {role} {rank}: {problem}"));
        let mut command = Command::new(std::env::current_exe().map_err(cannot)?);
        command.arg(role.to_string()).args(arguments);
        let mut child = spawn(command, &log).map_err(cannot)?;
        let pid = child.id().unwrap_or_default();
        // Waiting would close it, and with it the child's life-line.
        let life_line = child.stdin.take();
        let (sender, kill) = (self.sender.clone(), self.kill.child_token());
        self.kills.insert((role, rank), kill.clone());
        self.tasks.spawn(async move {
            let status = tokio::select! {
                status = child.wait() => status,
                () = kill.cancelled() => {
                    // It may have ended by itself in this moment.
                    let _ = child.start_kill();
                    child.wait().await
                }
            };
            drop(life_line);
            if let Ok(status) = status {
                // Nobody listens once the run has ended.
                let _ = sender.send(ChildExit { role, rank, pid, status, log }).await;
            }
        });
        Ok(pid)
    }

    /// Waits for the next child to end.
    pub async fn next_exit(&mut self) -> Option<ChildExit> {
        self.exits.recv().await
    }

    /// Kills one, if it is there.
    pub fn kill_one(&self, role: Role, rank: u32) {
        self.kills.get(&(role, rank)).inspect(|kill| kill.cancel());
    }

    /// Kills those that are left and waits until none is.
    pub async fn kill(&self) {
        self.kill.cancel();
        self.all_ended().await;
    }

    /// Waits until all have ended.
    pub async fn all_ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Starts a process of its own group, so that a Ctrl-C at the terminal stays the launcher's to follow; its standard input is
/// a pipe, its output goes to the end of a log.
///
/// # Errors
/// The program or the log cannot be opened.
pub fn spawn(mut command: Command, log: &Path) -> std::io::Result<Child> {
    // Another in its place writes on.
    let output = OpenOptions::new().create(true).append(true).open(log)?;
    command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    command.spawn()
}

/// How a process ended, from what wait(2) told of it.
#[cfg(unix)]
pub fn exit_status(wait_status: i32) -> ExitStatus {
    std::os::unix::process::ExitStatusExt::from_raw(wait_status)
}

/// What wait(2) told of how a process ended.
#[cfg(unix)]
pub fn wait_status(status: ExitStatus) -> i32 {
    std::os::unix::process::ExitStatusExt::into_raw(status)
}

impl ChildExit {
    /// The signal that killed it.
    #[cfg(unix)]
    pub fn signal(&self) -> Option<i32> {
        use std::os::unix::process::ExitStatusExt;
        self.status.signal()
    }

    /// The signal that killed it.
    #[cfg(not(unix))]
    pub fn signal(&self) -> Option<i32> {
        None
    }

    /// Whether it ended without a word: killed, or by a panic.
    pub fn is_sudden(&self) -> bool {
        self.signal().is_some() || self.status.code() == Some(101)
    }

    /// Whether it ended because of what it was told, or where: others would, too.
    pub fn is_misled(&self) -> bool {
        matches!(self.status.code(), Some(0 | 2 | 3))
    }

    /// Who ended, and how.
    pub fn describe(&self) -> String {
        let who = format!("{} {} (process {})", self.role, self.rank, self.pid);
        match (self.signal(), self.status.code()) {
            (Some(signal), _) => {
                let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", |signal| signal.as_str());
                format!("{who} was killed by signal {signal} ({name})")
            }
            (None, Some(101)) => format!("{who} panicked"),
            (None, code) => format!("{who} ended with exit code {}", code.unwrap_or(-1)),
        }
    }

    /// How likely it is the first cause when several ended at about the same time: lower is likelier.
    pub fn suspicion(&self) -> u8 {
        match (self.signal(), self.status.code()) {
            (Some(_), _) => 0,
            (None, Some(101)) => 1,
            (None, Some(2 | 3)) => 2,
            _ => 3,
        }
    }
}
