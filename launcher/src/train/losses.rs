//! Processes that end or fall silent before their time: the run goes on if others can take over, and ends if not.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use convoy_proto::{
    ids::{Member, Role, ServerId},
    messages::Phase,
};
use serde_json::json;

use super::{
    GATHER_EXITS, Session,
    advice::Way,
    ending::with_log,
    restarts::{Place, Plan},
    signals::Signals,
};
use crate::{
    children::{ChildExit, exit_status},
    coordinator::{node_service::NodeEvent, nodes::Home},
    outcome::Failure,
};

/// What wait(2) tells of a process that SIGKILL ended.
const KILLED: i32 = 9;

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
        let has_copy = exit.role == Role::Server && self.service.cluster().has_copy(ServerId(exit.rank));
        if let (Role::Server, Some(signal), Some(_), false) = (exit.role, self.stopping, self.saving.newest, has_copy) {
            // What it had since the newest checkpoint is gone; another launcher makes it again.
            self.fault((exit.role, exit.rank), &exit.describe());
            return Err(self.stopped(signal));
        }
        let (mut exits, mut coming) = (vec![exit], Vec::new());
        if !exits[0].is_sudden() {
            // It may have given up because of another, which is then the cause.
            self.more_exits(&mut exits, &mut coming).await;
        }
        if !exits.iter().all(|exit| self.is_replaceable(exit)) {
            if self.ended.is_some() && exits.iter().all(|exit| exit.role == Role::Worker) {
                exits.iter().for_each(|exit| self.lose_at_end(exit.rank, &exit.describe()));
                return Ok(());
            }
            self.more_exits(&mut exits, &mut coming).await;
            return Err(self.diagnose(exits));
        }
        for exit in exits {
            // Each that goes may be the one too many.
            if !self.is_replaceable(&exit) {
                return Err(self.diagnose(vec![exit]));
            }
            let (what, log) = (exit.describe(), exit.log.clone());
            match self.replaceable(&exit) {
                Some(member) => self.lose(member, (&what, &log), signals).await?,
                None => self.lose_server(exit.rank, (&what, &log))?,
            }
        }
        for exit in coming {
            self.restart_failed(&exit, signals).await?;
        }
        Ok(())
    }

    /// What a process was when it ended.
    fn standing(&self, exit: &ChildExit) -> Standing {
        let cluster = self.service.cluster();
        let at = exit.rank as usize;
        let (pid, is_alive) = match exit.role {
            Role::Worker => cluster.workers()[at].as_ref().map(|worker| (worker.pid, worker.is_alive)).unzip(),
            _ => cluster.servers()[at].as_ref().map(|server| (server.pid, true)).unzip(),
        };
        if pid == Some(exit.pid) && is_alive == Some(true) {
            return Standing::Member;
        }
        // Not who is in the place now: on the way there, or there before.
        match self.starting.get(&(exit.role, exit.rank)) {
            // Processes of different machines may have the same number.
            Some((pid, _)) if *pid == exit.pid => Standing::Starting,
            _ if pid == Some(exit.pid) => Standing::Gone,
            // It never came to join.
            None if pid.is_none() && !cluster.has_begun() && exit.signal().is_some() => Standing::Starting,
            None if pid.is_none() && !cluster.has_begun() => Standing::Member,
            _ => Standing::Gone,
        }
    }

    /// Takes note of a process that died.
    pub(super) fn fault(&mut self, place: Place, what: &str) {
        self.notes.faults += 1;
        self.watched.pulse.fault(place, what);
        self.metric(json!({ "event": "fault", "member": format!("{} {}", place.0, place.1), "what": what }));
    }

    /// Tries once more, or gives the place up.
    async fn restart_failed(&mut self, exit: &ChildExit, signals: &mut Signals) -> Result<(), Failure> {
        let (what, place) = (exit.describe(), (exit.role, exit.rank));
        self.starting.remove(&place);
        let is_needed = exit.role == Role::Server && !self.service.cluster().has_copy(ServerId(exit.rank));
        let next = if exit.is_misled() { None } else { self.plan_restart(place, is_needed) };
        if next.is_none() && (is_needed || !self.service.cluster().has_begun()) {
            return Err(self.diagnose(vec![exit.clone()]));
        }
        self.fault(place, &what);
        self.progress.say(&with_log(&format!("{what}{}", again(next)), &exit.log));
        if next.is_none() && exit.role == Role::Server {
            self.service.cluster().abandon_server(exit.rank);
        } else if next.is_none() {
            let events = self.service.cluster().give_up(exit.rank);
            for event in events {
                self.heed(event, signals).await?;
            }
        }
        Ok(())
    }

    /// Decides whether another process takes a place, and when: not while the run stops, unless it is needed for that.
    pub(super) fn plan_restart(&mut self, place: Place, is_needed: bool) -> Option<Plan> {
        let may_be = is_needed || !self.is_stopping();
        let plan = if may_be { self.restarts.plan(place, Instant::now()) } else { None };
        let (delay, number) = plan.map(|plan| (plan.delay.as_secs_f64(), plan.number)).unzip();
        let why = match plan {
            Some(_) => None,
            None if !may_be => Some("the run stops"),
            None => Some("it was started again as often as --max-restarts allows"),
        };
        let member = format!("{} {}", place.0, place.1);
        self.metric(json!({
            "event": "restart_decided", "member": member, "delay_seconds": delay, "number": number, "not_because": why,
        }));
        plan
    }

    fn may_restart(&self, rank: u32) -> bool {
        !self.is_stopping() && self.restarts.may((Role::Worker, rank))
    }

    /// Whether the run is to end soon: then nobody is started again.
    fn is_stopping(&self) -> bool {
        self.service.cluster().phase() > Phase::Training
    }

    /// Starts what is due.
    pub(super) fn restart(&mut self) -> Result<(), Failure> {
        for place in self.restarts.take_due(Instant::now()) {
            if !self.is_stopping() {
                self.metric(json!({ "event": "restart", "member": format!("{} {}", place.0, place.1) }));
                if place.0 == Role::Server {
                    *self.notes.server_restarts.entry(place.1).or_default() += 1;
                }
                self.start(place)?;
            }
        }
        Ok(())
    }

    /// Starts a process in a place that is free.
    pub(super) fn start(&mut self, place: Place) -> Result<(), Failure> {
        let pid = match self.nodes.order(place) {
            Home::Here => {
                let spec = self.children_of_run().into_iter().find(|spec| (spec.role, spec.rank) == place);
                let Some(spec) = spec else { return Ok(()) };
                self.children.start(spec)?
            }
            // The node tells.
            Home::Node(_) => 0,
            Home::Nowhere => {
                let patience = Duration::from_millis(self.prepared.config.timeouts.start_ms.into());
                self.away.insert(place, Instant::now() + patience);
                return Ok(());
            }
        };
        self.starting.insert(place, (pid, Instant::now()));
        Ok(())
    }

    /// Ends the process in a place, wherever that is.
    pub(super) fn kill_one(&self, place: Place) {
        if !self.nodes.cancel(place) {
            self.children.kill_one(place.0, place.1);
        }
    }

    /// Ends processes that do not come to join: others take their places.
    pub(super) async fn check_starting(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let limit = Duration::from_millis(self.prepared.config.timeouts.start_ms.into());
        let late = self.starting.iter().filter(|(_, (_, since))| since.elapsed() > limit);
        let late: Vec<(Place, u32)> = late.map(|(place, (pid, _))| (*place, *pid)).collect();
        for ((role, rank), pid) in late {
            self.progress.say(&format!("{role} {rank} (process {pid}) did not join within {limit:?}"));
            if self.nodes.cancel((role, rank)) {
                // A node does not tell of the end of what is cancelled.
                let log = self.run_dir.log(&format!("{role}-{rank}"));
                let exit = ChildExit { role, rank, pid, status: exit_status(KILLED), log };
                self.restart_failed(&exit, signals).await?;
            } else {
                self.children.kill_one(role, rank);
                // Its end is told in a moment.
                self.starting.insert((role, rank), (pid, Instant::now()));
            }
        }
        Ok(())
    }

    /// A worker is gone that has nothing to do any more.
    pub(super) fn lose_at_end(&mut self, rank: u32, what: &str) {
        self.fault((Role::Worker, rank), what);
        self.progress.say(&format!("{what}, after its last step"));
        let member = self.service.cluster().workers()[rank as usize].as_ref().map(|worker| worker.member);
        // What follows from it does not matter any more.
        member.into_iter().for_each(|member| drop(self.service.cluster().lose(member, false)));
    }

    /// The other children that end at about the same time: members, and those that were about to be.
    async fn more_exits(&mut self, members: &mut Vec<ChildExit>, coming: &mut Vec<ChildExit>) {
        let deadline = tokio::time::Instant::now() + GATHER_EXITS;
        while let Ok(Some(exit)) = tokio::time::timeout_at(deadline, self.next_exit()).await {
            match self.standing(&exit) {
                Standing::Member => members.push(exit),
                Standing::Starting => coming.push(exit),
                Standing::Gone => {}
            }
        }
    }

    /// The next process to end, here or on a node; what else nodes tell is kept for later.
    async fn next_exit(&mut self) -> Option<ChildExit> {
        loop {
            let event = tokio::select! {
                exit = self.children.next_exit() => return exit,
                Some(event) = self.node_events.recv() => event,
            };
            match event {
                NodeEvent::Ended(exit) => return Some(exit),
                NodeEvent::Started(place, pid) => self.started(place, pid),
                other => self.put_off.push_back(other),
            }
        }
    }

    /// Whether the run can do without a process, or with another in its place.
    fn is_replaceable(&self, exit: &ChildExit) -> bool {
        match exit.role {
            Role::Server => !exit.is_misled() && self.may_replace_server(exit.rank, exit.signal().is_some()),
            _ => self.replaceable(exit).is_some(),
        }
    }

    /// The worker that ended, if the run can do without.
    fn replaceable(&self, exit: &ChildExit) -> Option<Member> {
        let is_worker = exit.role == Role::Worker && !exit.is_misled();
        let (may_restart, is_killed) = (self.may_restart(exit.rank), exit.signal().is_some());
        self.service.cluster().replaceable(exit.rank, may_restart, is_killed).filter(|_| is_worker)
    }

    /// Goes on without a worker. What happened before comes first, so that steps stay in order.
    async fn lose(&mut self, member: Member, (what, log): (&str, &Path), signals: &mut Signals) -> Result<(), Failure> {
        let since = Instant::now();
        self.fault((Role::Worker, member.rank), what);
        let next = self.plan_restart((Role::Worker, member.rank), false);
        let told = with_log(&format!("{what}{}", again(next)), log);
        self.progress.say(&told);
        self.go_on_without(member, next.is_some(), signals).await?;
        self.struck.get_or_insert((Role::Worker, since));
        // It may have left the first parameters half set.
        if self.service.cluster().is_broken() { self.begin_era() } else { Ok(()) }
    }

    /// Gives what a worker had to do to others; maybe another is to take its place.
    pub(super) async fn go_on_without(
        &mut self,
        member: Member,
        is_awaited: bool,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let (lost, before, era) = {
            let mut cluster = self.service.cluster();
            (cluster.lose(member, is_awaited), self.events.len(), cluster.era())
        };
        self.service.publish();
        let heirs = match self.service.cluster().alive() {
            0 => "nobody is left".to_string(),
            1 => format!("1 worker takes over what {member} had to do"),
            alive => format!("{} take over what {member} had to do", workers(alive)),
        };
        self.progress.say(&heirs);
        for _ in 0..before {
            if let Ok(event) = self.events.try_recv() {
                self.heed(event, signals).await?;
            }
        }
        // A stranger is nobody to lose; and once all have made their last step, it takes no more workers.
        for event in lost.unwrap_or_default() {
            if self.ended.is_none() && self.service.cluster().era() == era {
                self.heed(event, signals).await?;
            }
        }
        self.save_summary();
        Ok(())
    }

    /// Goes on without a worker that hangs in what it computes, if others can take over.
    async fn check_hung(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let hung = self.service.cluster().hung();
        let Some((member, computing_ms, limit_ms)) = hung else { return Ok(()) };
        let may_restart = self.may_restart(member.rank);
        if self.service.cluster().replaceable(member.rank, may_restart, false) != Some(member) {
            return Ok(());
        }
        let (computing, limit) = (seconds(computing_ms), seconds(limit_ms));
        let what = format!("{member} hangs: it has computed one step for {computing:.1} s, {limit:.1} s is its limit");
        let log = self.run_dir.log(&format!("{}-{}", member.role, member.rank));
        self.kill_one((member.role, member.rank));
        self.lose(member, (&what, &log), signals).await
    }

    /// Ends the run, or goes on without a worker, if a member has not been heard of for a lease.
    pub(super) async fn check_leases(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let silent = self.service.cluster().silent(self.service.now_ms());
        // Where a whole node is silent, it is the node that is lost, in a moment.
        let mut silent = silent.into_iter().filter(|(member, _)| !self.is_out_of_touch((member.role, member.rank)));
        let Some((member, silence_ms)) = silent.next() else { return self.check_hung(signals).await };
        drop(silent);
        let silence = seconds(silence_ms);
        let log = self.run_dir.log(&format!("{}-{}", member.role, member.rank));
        let what = format!("{member} has not been heard of for {silence:.1} s");
        if member.role == Role::Server && self.may_replace_server(member.rank, false) {
            self.kill_one((member.role, member.rank));
            return self.lose_server(member.rank, (&what, &log));
        }
        let may_restart = self.may_restart(member.rank);
        let replaceable = self.service.cluster().replaceable(member.rank, may_restart, false);
        if self.ended.is_some() && member.role == Role::Worker && replaceable.is_none() {
            self.kill_one((member.role, member.rank));
            self.lose_at_end(member.rank, &what);
            return Ok(());
        }
        if replaceable != Some(member) {
            let more = self.first_failure((member.role, member.rank), Way::Silent);
            return Err(Failure::Lost(format!("{}\n{more}", with_log(&what, &log))));
        }
        // If it is only slow, it is fenced off; if it hangs, it would hang for ever.
        self.kill_one((member.role, member.rank));
        self.lose(member, (&what, &log), signals).await
    }
}

/// Milliseconds, for people.
fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

pub(super) fn again(next: Option<Plan>) -> String {
    next.map(|plan| format!(", starts again in {:.1} s (restart {})", plan.delay.as_secs_f64(), plan.number))
        .unwrap_or_default()
}

pub(super) fn servers(count: u32) -> String {
    if count == 1 { "1 server".into() } else { format!("{count} servers") }
}

/// What a machine has, for people.
pub(crate) fn processes(of_workers: u32, of_servers: u32) -> String {
    match (of_workers, of_servers) {
        (_, 0) => workers(of_workers),
        (0, _) => servers(of_servers),
        _ => format!("{} and {}", workers(of_workers), servers(of_servers)),
    }
}

pub(crate) fn workers(count: u32) -> String {
    if count == 1 { "1 worker".into() } else { format!("{count} workers") }
}
