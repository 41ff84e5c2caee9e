//! Machines that ssh reaches: a session is started for each, and again if it ends before the run does.

use std::time::Instant;

use convoy_proto::{ids::Role, messages::Phase};
use serde_json::json;

use super::{Session, ending::with_log, losses::again};
use crate::{
    outcome::{Failure, exit},
    remote::{RunPlace, sessions::SessionExit},
};

/// What ssh ends with if it could not connect.
const NOT_CONNECTED: i32 = 255;
/// What a shell ends with if there is no such program.
const NO_PROGRAM: [i32; 2] = [126, 127];

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
        self.sessions
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
        self.fault(&how);
        let plan = self.restarts.plan(place(ended.host), Instant::now());
        self.metric(json!({ "event": "session_ended", "host": name, "again": plan.map(|plan| plan.number) }));
        self.progress.say(&with_log(&format!("{how}{}", again(plan)), &ended.log));
        Ok(())
    }
}

/// What stands for a host among the places of processes that are started again.
pub(super) fn place(host: usize) -> super::Place {
    (Role::Launcher, host as u32)
}
