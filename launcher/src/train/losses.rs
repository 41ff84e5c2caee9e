//! Processes that end or fall silent before their time: the run goes on if others can take over, and ends if not.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use convoy_proto::ids::{Member, Role};
use serde_json::json;

use super::{GATHER_EXITS, Session, ending::with_log, restarts::Plan, signals::Signals};
use crate::{children::ChildExit, outcome::Failure};

impl Session {
    /// A child has ended: goes on without it, or with another in its place, or says why not.
    pub(super) async fn child_ended(&mut self, exit: ChildExit, signals: &mut Signals) -> Result<(), Failure> {
        if self.is_lost_already(&exit) {
            return Ok(());
        }
        if self.never_joined(&exit) {
            return self.restart_failed(&exit, signals).await;
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

    /// Whether this process was to take the place of one that died, and did not come so far.
    fn never_joined(&self, exit: &ChildExit) -> bool {
        let cluster = self.service.cluster();
        let worker = cluster.workers().get(exit.rank as usize).and_then(Option::as_ref);
        exit.role == Role::Worker && worker.is_some_and(|worker| worker.is_awaited && worker.pid != exit.pid)
    }

    /// Tries once more, or gives the place up.
    async fn restart_failed(&mut self, exit: &ChildExit, signals: &mut Signals) -> Result<(), Failure> {
        self.notes.faults += 1;
        let what = exit.describe();
        self.metric(&json!({ "event": "fault", "era": 0, "what": what }));
        let next = if exit.is_misled() { None } else { self.plan_restart(exit.rank) };
        self.progress.say(&format!("{}{}", with_log(&what, &exit.log), again(next)));
        if next.is_none() {
            let events = self.service.cluster().give_up(exit.rank);
            for event in events {
                self.heed(event, signals).await?;
            }
        }
        Ok(())
    }

    fn plan_restart(&mut self, rank: u32) -> Option<Plan> {
        if self.stopping.is_some() { None } else { self.restarts.plan(rank, Instant::now()) }
    }

    /// Starts what is due.
    pub(super) fn restart(&mut self) -> Result<(), Failure> {
        for rank in self.restarts.take_due(Instant::now()) {
            let spec = self.children_of_run().into_iter().find(|spec| (spec.role, spec.rank) == (Role::Worker, rank));
            self.metric(&json!({ "event": "restart", "era": 0, "member": format!("worker {rank}") }));
            spec.map_or(Ok(()), |spec| self.children.start(spec))?;
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
        let may_restart = self.stopping.is_none() && self.restarts.may(exit.rank);
        self.service.cluster().replaceable(exit.rank, may_restart).filter(|_| is_worker)
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
        let next = self.plan_restart(member.rank);
        let (lost, before) = {
            let mut cluster = self.service.cluster();
            (cluster.lose(member, next.is_some()), self.events.len())
        };
        self.service.publish();
        let heirs = match self.service.cluster().alive() {
            0 => "nobody is left".to_string(),
            alive => format!("{} take over what {member} had to do", workers(alive)),
        };
        self.progress.say(&format!("{}\n{heirs}{}", with_log(what, log), again(next)));
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
        let may_restart = self.stopping.is_none() && self.restarts.may(member.rank);
        let replaceable = self.service.cluster().replaceable(member.rank, may_restart);
        if replaceable != Some(member) {
            return Err(Failure::Lost(with_log(&what, &log)));
        }
        // If it is only slow, it is fenced off; if it hangs, it would hang for ever.
        self.children.kill_one(member.role, member.rank);
        self.lose(member, (&what, &log), signals).await
    }
}

fn again(next: Option<Plan>) -> String {
    next.map(|plan| format!("; it starts again in {:.1} s, for the {}. time", plan.delay.as_secs_f64(), plan.number))
        .unwrap_or_default()
}

pub(super) fn workers(count: u32) -> String {
    if count == 1 { "1 worker".into() } else { format!("{count} workers") }
}
