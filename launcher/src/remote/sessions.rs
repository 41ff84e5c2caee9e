//! ssh sessions, one a host, in each a launcher that joins the run.
//!
//! A session's standard input is a pipe that this process holds open. When this ends, however it does, the pipe closes,
//! ssh passes that on, and the launcher there ends, too, and its processes with it.

use std::{path::PathBuf, process::ExitStatus};

use tokio::{io::AsyncWriteExt, process::Command, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::children;

/// What to start on a host.
#[derive(Debug)]
pub struct SessionSpec {
    /// Which host.
    pub host: usize,
    /// The program and its arguments: ssh, and what it is to run.
    pub command: Vec<String>,
    /// What the launcher there reads first.
    pub input: String,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A session that ended.
#[derive(Debug)]
pub struct SessionExit {
    /// Which host.
    pub host: usize,
    /// How it ended.
    pub status: ExitStatus,
    /// Where its output went.
    pub log: PathBuf,
}

/// Sessions that have ended and wait to be looked at.
const EXITS_AHEAD: usize = 1 << 13;

/// All sessions of a run.
#[derive(Debug)]
pub struct Sessions {
    sender: mpsc::Sender<SessionExit>,
    exits: mpsc::Receiver<SessionExit>,
    kill: CancellationToken,
    tasks: TaskTracker,
}

impl Default for Sessions {
    /// None yet.
    fn default() -> Self {
        let (sender, exits) = mpsc::channel(EXITS_AHEAD);
        Sessions { sender, exits, kill: CancellationToken::new(), tasks: TaskTracker::new() }
    }
}

impl Sessions {
    /// Starts a session.
    ///
    /// # Errors
    /// The program or the log cannot be opened.
    pub fn start(&self, spec: SessionSpec) -> std::io::Result<()> {
        let SessionSpec { host, command, input, log } = spec;
        let (program, arguments) = command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments);
        let mut child = children::spawn(command, &log)?;
        let (sender, kill, mut life_line) = (self.sender.clone(), self.kill.child_token(), child.stdin.take());
        self.tasks.spawn(async move {
            if let Some(pipe) = &mut life_line {
                // One that has ended meanwhile is seen below.
                let _ = pipe.write_all(input.as_bytes()).await;
            }
            let status = tokio::select! {
                status = child.wait() => status,
                () = kill.cancelled() => {
                    // It may end by itself now, and take what is there along.
                    drop(life_line.take());
                    child.wait().await
                }
            };
            if let Ok(status) = status {
                // Nobody listens once the run has ended.
                let _ = sender.send(SessionExit { host, status, log }).await;
            }
        });
        Ok(())
    }

    /// Waits for the next session to end.
    pub async fn next_exit(&mut self) -> Option<SessionExit> {
        self.exits.recv().await
    }

    /// Lets all end, and waits until they have.
    pub async fn end(&self) {
        self.kill.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
