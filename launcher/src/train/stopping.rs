//! How a run ends before its time because a person or a scheduler asks for it.

use std::time::{Duration, Instant};

use convoy_proto::{ids::Role, messages::Phase};
use serde_json::json;

use super::{Session, signals::Request};
use crate::outcome::Failure;

impl Session {
    /// The first request to stop finishes the step in progress, the second ends at once.
    pub(super) fn request(&mut self, request: Request) -> Result<(), Failure> {
        let Request::Stop(signal) = request else {
            self.save_soon(None);
            return Ok(());
        };
        self.metric(json!({ "event": "signal", "signal": signal }));
        if self.stopping.replace(signal).is_some() {
            return Err(Failure::Signal(signal));
        }
        self.stop_by = Instant::now() + Duration::from_millis(self.prepared.config.timeouts.stop_ms.into());
        if self.service.cluster().phase() < Phase::Training {
            return Err(self.stopped(signal));
        }
        self.progress.say("stopping after the step in progress; once more stops at once");
        self.stop_training()
    }

    /// Finishes the step in progress; nobody is started any more.
    pub(super) fn stop_training(&mut self) -> Result<(), Failure> {
        self.service.advance(Phase::Stopping);
        let awaited = self.service.cluster().awaited_workers();
        for rank in awaited {
            self.restarts.cancel((Role::Worker, rank));
            if self.starting.remove(&(Role::Worker, rank)).is_some() {
                self.kill_one((Role::Worker, rank));
            }
            self.away.remove(&(Role::Worker, rank));
            let events = self.service.cluster().give_up(rank);
            self.service.publish();
            for event in events {
                self.follow(event)?;
            }
        }
        Ok(())
    }

    /// How a run ends that was told to stop: it can be resumed if there is a checkpoint.
    pub(super) fn stopped(&self, signal: i32) -> Failure {
        match self.saving.newest {
            Some(_) => Failure::Stopped(self.run_dir.path().display().to_string()),
            None => Failure::Signal(signal),
        }
    }
}
