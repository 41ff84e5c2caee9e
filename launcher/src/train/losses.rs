//! Processes that end or fall silent before their time: the run goes on if others can take over, and ends if not.

use std::{path::Path, time::Duration};

use convoy_proto::ids::{Member, Role};
use serde_json::json;

use super::{GATHER_EXITS, Session, ending::with_log, signals::Signals};
use crate::{children::ChildExit, outcome::Failure};

impl Session {
    /// A child has ended: goes on without it, or says why not.
    pub(super) async fn child_ended(&mut self, exit: ChildExit, signals: &mut Signals) -> Result<(), Failure> {
        if self.is_lost_already(&exit) {
            return Ok(());
        }
        let mut exits = vec![exit];
        if !exits[0].is_sudden() {
            // It may have given up because of another, which is then the cause.
            exits.extend(self.more_exits().await);
        }
        let replaceable: Option<Vec<Member>> = exits.iter().map(|exit| self.replaceable(exit)).collect();
        let Some(members) = replaceable else {
            exits.extend(self.more_exits().await);
            return Err(self.diagnose(exits));
        };
        for (member, exit) in members.into_iter().zip(exits) {
            // Each that goes may be the one too many.
            if self.replaceable(&exit).is_none() {
                return Err(self.diagnose(vec![exit]));
            }
            self.lose(member, (&exit.describe(), &exit.log), signals).await?;
        }
        Ok(())
    }

    /// The other children that end at about the same time.
    async fn more_exits(&mut self) -> Vec<ChildExit> {
        let deadline = tokio::time::Instant::now() + GATHER_EXITS;
        let mut exits = Vec::new();
        while let Ok(Some(exit)) = tokio::time::timeout_at(deadline, self.children.next_exit()).await {
            exits.push(exit);
        }
        exits
    }

    /// The worker that ended, if the run can do without.
    fn replaceable(&self, exit: &ChildExit) -> Option<Member> {
        let is_worker = exit.role == Role::Worker && !exit.is_misled();
        self.service.cluster().replaceable(exit.rank).filter(|_| is_worker)
    }

    /// Whether this is the process of a worker that is not counted on any more.
    fn is_lost_already(&self, exit: &ChildExit) -> bool {
        let cluster = self.service.cluster();
        let worker = cluster.workers().get(exit.rank as usize).and_then(Option::as_ref);
        exit.role == Role::Worker && worker.is_some_and(|worker| worker.pid == exit.pid && !worker.is_alive)
    }

    /// Goes on without a worker. What happened before comes first, so that steps stay in order.
    async fn lose(&mut self, member: Member, (what, log): (&str, &Path), signals: &mut Signals) -> Result<(), Failure> {
        self.notes.faults += 1;
        self.metric(&json!({ "event": "fault", "era": 0, "what": what }));
        let (lost, before) = {
            let mut cluster = self.service.cluster();
            (cluster.lose(member), self.events.len())
        };
        self.service.publish();
        let alive = self.service.cluster().alive();
        self.progress.say(&format!("{}\n{} take over what {member} had to do", with_log(what, log), workers(alive)));
        for _ in 0..before {
            if let Ok(event) = self.events.try_recv() {
                self.heed(event, signals).await?;
            }
        }
        // A stranger is nobody to lose.
        for event in lost.unwrap_or_default() {
            self.heed(event, signals).await?;
        }
        self.save_summary();
        Ok(())
    }

    /// Ends the run, or goes on without a worker, if a member has not been heard of for a lease.
    pub(super) async fn check_leases(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let silent = self.service.cluster().silent(self.service.now_ms());
        let Some((member, silence_ms)) = silent.first().copied() else { return Ok(()) };
        let silence = Duration::from_millis(silence_ms).as_secs_f64();
        let log = self.run_dir.log(&format!("{}-{}", member.role, member.rank));
        let what = format!("{member} has not been heard of for {silence:.1} s");
        let replaceable = self.service.cluster().replaceable(member.rank);
        if replaceable != Some(member) {
            return Err(Failure::Lost(with_log(&what, &log)));
        }
        // If it is only slow, it is fenced off; if it hangs, it would hang for ever.
        self.children.kill_one(member.role, member.rank);
        self.lose(member, (&what, &log), signals).await
    }
}

pub(super) fn workers(count: u32) -> String {
    if count == 1 { "1 worker".into() } else { format!("{count} workers") }
}
