//! Machines that ssh reaches: a session is started for each, and again if it ends before the run does.

use std::time::{Duration, Instant};

use convoy_proto::{ids::Role, messages::Phase};
use serde_json::json;

use super::{Session, ending::with_log, losses::again, restarts::Restarts};
use crate::{
    outcome::{Failure, exit},
    remote::{
        RunPlace,
        sessions::{SessionExit, Sessions},
    },
};

/// How long to wait with a session after one has ended, at first.
const AGAIN: Duration = Duration::from_secs(5);
/// What ssh ends with if it could not connect.
const NOT_CONNECTED: i32 = 255;
/// What a shell ends with if there is no such program.
const NO_PROGRAM: [i32; 2] = [126, 127];

/// The sessions on other machines, and those that are to be begun again.
pub(super) struct Remote {
    pub sessions: Sessions,
    pub again: Restarts,
}

impl Default for Remote {
    /// None yet.
    fn default() -> Self {
        Remote { sessions: Sessions::default(), again: Restarts::new(u32::MAX, AGAIN) }
    }
}

impl Session {
    /// Starts a launcher on each.
    pub(super) fn start_remotes(&mut self) -> Result<(), Failure> {
        (0..self.prepared.remotes.count()).try_for_each(|host| self.start_remote(host))
    }

    /// Starts a launcher on one.
    pub(super) fn start_remote(&mut self, host: usize) -> Result<(), Failure> {
        let config = &self.prepared.config;
        let root = std::path::absolute(&config.run_dir).unwrap_or_else(|_| config.run_dir.clone().into());
        let place = RunPlace {
            name: config.name.clone(),
            root: root.display().to_string(),
            coordinator: self.address.clone(),
            logs: self.run_dir.path().join("logs"),
        };
        let spec = self.prepared.remotes.session(host, &place)?;
        let name = self.prepared.remotes.name(host);
        self.remote
            .sessions
            .start(spec)
            .map_err(|problem| Failure::Environment(format!("cannot start a session on {name}: {problem}")))
    }

    /// A session has ended: before training has begun, that is an end; later, another takes its place.
    pub(super) fn session_ended(&mut self, ended: SessionExit) -> Result<(), Failure> {
        let (code, name) = (ended.status.code(), self.prepared.remotes.name(ended.host).to_string());
        let (phase, has_begun) = {
            let cluster = self.service.cluster();
            (cluster.phase(), cluster.has_begun())
        };
        if phase > Phase::Training || self.ended.is_some() {
            return Ok(());
        }
        let how = match code {
            Some(NOT_CONNECTED) => format!("ssh {name} does not get through, or lost its line"),
            Some(code) if NO_PROGRAM.contains(&code) => {
                format!("{name} has no such launcher (--remote-launcher says where it is)")
            }
            Some(code) => format!("the launcher on {name} ended with exit code {code}"),
            None => format!("the session on {name} was killed"),
        };
        if !has_begun {
            let told = with_log(&how, &ended.log);
            return Err(match code.and_then(|code| u8::try_from(code).ok()) {
                Some(exit::USAGE) => Failure::Usage(told),
                Some(exit::FAILED) => Failure::Failed(told),
                _ => Failure::Environment(told),
            });
        }
        self.fault((Role::Launcher, ended.host as u32), &how);
        self.metric(json!({ "event": "session_ended", "host": name }));
        self.begin_again(ended.host, &with_log(&how, &ended.log));
        Ok(())
    }

    /// Starts a session again after a while. A machine may be away for long: that is tried for as long as the run goes on.
    fn begin_again(&mut self, host: usize, what: &str) {
        let plan = self.remote.again.plan((Role::Launcher, host as u32), Instant::now());
        self.progress.say(&format!("{what}{}", again(plan)));
    }

    /// Starts the sessions that are due.
    pub(super) fn begin_sessions(&mut self) {
        for (_, host) in self.remote.again.take_due(Instant::now()) {
            if self.service.cluster().phase() <= Phase::Training
                && let Err(problem) = self.start_remote(host as usize)
            {
                self.begin_again(host as usize, &problem.to_string());
            }
        }
    }
}
