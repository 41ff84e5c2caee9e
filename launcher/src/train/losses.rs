//! Processes that end or fall silent before their time: the run goes on if others can take over, and ends if not.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use convoy_proto::{
    ids::{Member, Role},
    messages::Phase,
};
use serde_json::json;

use super::{GATHER_EXITS, Session, ending::with_log, restarts::Plan, signals::Signals};
use crate::{children::ChildExit, outcome::Failure};

/// What a process was when it ended.
enum Standing {
    /// A member of the cluster, or about to be one from the beginning.
    Member,
    /// On its way into the place of one that died.
    Starting,
    /// Not counted on any more.
    Gone,
}

impl Session {
    /// A child has ended: goes on without it, or with another in its place, or says why not.
    pub(super) async fn child_ended(&mut self, exit: ChildExit, signals: &mut Signals) -> Result<(), Failure> {
        match self.standing(&exit) {
            Standing::Gone => return Ok(()),
            Standing::Starting => return self.restart_failed(&exit, signals).await,
            Standing::Member => {}
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

    /// What a process was when it ended.
    fn standing(&self, exit: &ChildExit) -> Standing {
        let cluster = self.service.cluster();
        let worker = cluster.workers().get(exit.rank as usize).and_then(Option::as_ref);
        let Some(worker) = worker.filter(|_| exit.role == Role::Worker) else { return Standing::Member };
        if worker.pid == exit.pid {
            return if worker.is_alive { Standing::Member } else { Standing::Gone };
        }
        // Not who is in the place now: on the way there, or there before.
        if self.starting.get(&exit.rank) == Some(&exit.pid) { Standing::Starting } else { Standing::Gone }
    }

    /// Takes note of a process that died.
    pub(super) fn fault(&mut self, what: &str) {
        self.notes.faults += 1;
        self.metric(&json!({ "event": "fault", "era": 0, "what": what }));
    }

    /// Tries once more, or gives the place up.
    async fn restart_failed(&mut self, exit: &ChildExit, signals: &mut Signals) -> Result<(), Failure> {
        let what = exit.describe();
        self.fault(&what);
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
        if self.is_stopping() { None } else { self.restarts.plan(rank, Instant::now()) }
    }

    fn may_restart(&self, rank: u32) -> bool {
        !self.is_stopping() && self.restarts.may(rank)
    }

    /// Whether the run is to end soon: then nobody is started again.
    fn is_stopping(&self) -> bool {
        self.service.cluster().phase() > Phase::Training
    }

    /// Starts what is due.
    pub(super) fn restart(&mut self) -> Result<(), Failure> {
        for rank in self.restarts.take_due(Instant::now()) {
            let spec = self.children_of_run().into_iter().find(|spec| (spec.role, spec.rank) == (Role::Worker, rank));
            let Some(spec) = spec.filter(|_| !self.is_stopping()) else { continue };
            self.metric(&json!({ "event": "restart", "era": 0, "member": format!("worker {rank}") }));
            let pid = self.children.start(spec)?;
            self.starting.insert(rank, pid);
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
        let may_restart = self.may_restart(exit.rank);
        self.service.cluster().replaceable(exit.rank, may_restart).filter(|_| is_worker)
    }

    /// Goes on without a worker. What happened before comes first, so that steps stay in order.
    async fn lose(&mut self, member: Member, (what, log): (&str, &Path), signals: &mut Signals) -> Result<(), Failure> {
        self.fault(what);
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
        // A stranger is nobody to lose; and once all have made their last step, it takes no more workers.
        for event in lost.unwrap_or_default() {
            if self.ended.is_none() {
                self.heed(event, signals).await?;
            }
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
        let may_restart = self.may_restart(member.rank);
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
