//! Who leaves, where everybody stops, and when the run is over.

use std::collections::BTreeSet;

use convoy_proto::{
    ids::{Member, Step, WorkerId},
    messages::Phase,
};

use super::{super::records::WorkerRecord, super::refusal::Refusal, Cluster, Event};

impl Cluster {
    /// A worker's process is gone: its place is free, what it had to do is others', and maybe another takes the place.
    ///
    /// # Errors
    /// A caller that is not a current member.
    pub fn lose(&mut self, member: Member, is_awaited: bool) -> Result<Vec<Event>, Refusal> {
        let is_initialiser = self.initialiser() == WorkerId(member.rank);
        let worker = self.worker(member)?;
        (worker.is_alive, worker.is_awaited) = (false, is_awaited);
        self.changes += 1;
        // Some parameters may be set and others not.
        self.is_broken |= self.phase == Phase::Initialising && self.origin.restore.is_none() && is_initialiser;
        let mut events = vec![Event::Lost(member)];
        events.extend(self.engine.lose(member));
        self.engine.settle();
        self.plan_copies();
        self.settle_stop();
        events.extend(self.enough());
        Ok(events)
    }

    /// Nobody takes a place any more that somebody has left.
    pub fn give_up(&mut self, rank: u32) -> Vec<Event> {
        let worker = self.workers.get_mut(rank as usize).and_then(Option::as_mut);
        worker.into_iter().for_each(|worker| worker.is_awaited = false);
        self.enough()
    }

    /// Whether enough workers are there or awaited, and what follows from it.
    fn enough(&mut self) -> Vec<Event> {
        let count = self.count();
        if count < self.least() { vec![Event::TooFew(count)] } else { self.finished() }
    }

    /// How many workers there must be: to stop, one is enough.
    fn least(&self) -> u32 {
        let least = self.scaled_to.map_or(self.config.min_workers, |workers| workers.min(self.config.min_workers));
        if self.phase == Phase::Stopping { 1 } else { least }
    }

    /// How many workers are alive or awaited.
    pub fn count(&self) -> u32 {
        self.alive() + self.workers.iter().flatten().filter(|worker| worker.is_awaited).count() as u32
    }

    /// How many places of workers are not left.
    pub fn alive(&self) -> u32 {
        self.places().count() as u32
    }

    /// The worker in a place, if its process is there and others, or another in its place, can take over. Before training
    /// has begun, only if it was killed: what it dies of by itself, another would die of, too.
    pub fn replaceable(&self, rank: u32, may_restart: bool, is_killed: bool) -> Option<Member> {
        let worker = self.workers.get(rank as usize).and_then(Option::as_ref).filter(|worker| worker.is_alive)?;
        let is_in_time = self.phase < Phase::Ended && (self.has_begun || is_killed);
        (is_in_time && (may_restart || self.count() > self.least())).then_some(worker.member)
    }

    /// Whether training has begun, be it in another era.
    pub fn has_begun(&self) -> bool {
        self.has_begun && self.phase < Phase::Ended
    }

    /// The step that the hindmost worker is at.
    pub(super) fn hindmost(&self) -> Step {
        let steps = self.places().map(|(_, worker)| worker.map_or(Step(0), |worker| worker.at));
        steps.min().unwrap_or(Step(0))
    }

    /// The places of workers but for those that somebody left, who is not waited for.
    pub(super) fn places(&self) -> impl Iterator<Item = (WorkerId, Option<&WorkerRecord>)> {
        let places = (0..).map(WorkerId).zip(self.workers.iter().map(Option::as_ref));
        places.filter(|(worker, _)| self.counts(*worker))
    }

    /// Every worker has pushed the steps below the least of what each has pushed, so those are committed and no other. A
    /// spare pushes nothing, and may be behind.
    pub(super) fn settle_stop(&mut self) {
        let owners: BTreeSet<WorkerId> = self.owners().into_iter().collect();
        let pushes = self.places().filter(|(worker, _)| owners.contains(worker));
        let pushed: Option<Vec<Step>> = pushes.map(|(_, worker)| worker?.pushed).collect();
        if self.phase == Phase::Stopping && self.stop_at.is_none() && !self.config.mode.is_chosen() {
            self.stop_at = pushed.and_then(|pushed| pushed.into_iter().min());
        }
    }

    /// What happens when all workers have made their last step, and the last evaluation is complete.
    pub(super) fn finished(&mut self) -> Vec<Event> {
        let ends: Option<Vec<Step>> = self.places().map(|(_, worker)| worker?.finished).collect();
        let Some(ends) = ends else { return Vec::new() };
        if ends.windows(2).any(|pair| pair[0] != pair[1]) {
            let ends: Vec<_> = ends.iter().map(ToString::to_string).collect();
            let problem = format!("workers ended after different numbers of steps: {}", ends.join(", "));
            return vec![Event::Diverging(problem)];
        }
        let Some(end) = ends.first().copied().filter(|end| self.is_scored(*end)) else { return Vec::new() };
        let mut events = self.engine.catch_up(end);
        events.extend(self.engine.passed(end));
        events.push(Event::Finished(end));
        events
    }

    /// Whether an end is scored, if it is to be: a run that stops ends without.
    fn is_scored(&self, end: Step) -> bool {
        end.0 < self.engine.clock().commits() || self.engine.is_scored(end)
    }
}
