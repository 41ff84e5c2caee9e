//! Another number of workers while training goes on: more places, or fewer that must be taken.

use convoy_proto::{
    ids::{Member, Role, WorkerId},
    messages::Phase,
};

use super::{
    super::{records::WorkerRecord, refusal::Refusal},
    Cluster,
};

impl Cluster {
    /// Checks a number of workers that is asked for; gives how many there are, or are about to be.
    ///
    /// # Errors
    /// A number that the run cannot have, or not now.
    pub fn may_scale(&self, workers: u32) -> Result<u32, Refusal> {
        let most = self.config.max_workers;
        if !(1..=most).contains(&workers) {
            return Err(Refusal::Scale(format!(
                "{workers} workers: there must be between 1 and {most} (--max-workers)"
            )));
        }
        match self.phase {
            Phase::Training => Ok(self.count()),
            _ => Err(Refusal::Scale("the run does not train now; try again while it does".into())),
        }
    }

    /// Makes room for so many workers, and lets the run go on with as few.
    pub fn scale(&mut self, workers: u32) {
        if self.workers.len() < workers as usize {
            self.workers.resize(workers as usize, None);
            self.has_grown = true;
        }
        self.scaled_to = Some(workers);
    }

    /// Places of workers up to this rank where nobody is and nobody is awaited: processes may be started there, which
    /// are awaited from now on.
    pub fn await_workers(&mut self, workers: u32) -> Vec<u32> {
        let is_free = |rank: &u32| match self.workers.get(*rank as usize) {
            Some(Some(worker)) => !worker.is_alive && !worker.is_awaited,
            Some(None) => true,
            None => false,
        };
        let free: Vec<u32> = (0..workers).filter(is_free).collect();
        for rank in &free {
            self.workers[*rank as usize].iter_mut().for_each(|worker| worker.is_awaited = true);
        }
        free
    }

    /// How many workers are wanted.
    pub fn wanted(&self) -> u32 {
        self.scaled_to.unwrap_or(self.config.workers)
    }

    /// A worker is awaited in a place that nobody is in.
    pub fn await_worker(&mut self, rank: u32) {
        let worker = self.workers.get_mut(rank as usize).and_then(Option::as_mut).filter(|worker| !worker.is_alive);
        worker.into_iter().for_each(|worker| worker.is_awaited = true);
    }

    /// Places that workers are awaited in.
    pub fn awaited_workers(&self) -> Vec<u32> {
        let awaited = |worker: &Option<WorkerRecord>| worker.as_ref().is_none_or(|worker| worker.is_awaited);
        (0..).zip(&self.workers).filter(|(_, worker)| awaited(worker)).map(|(rank, _)| rank).collect()
    }

    /// Workers beyond a number, the last first.
    pub fn beyond(&self, workers: u32) -> Vec<Member> {
        let alive = self.workers.iter().flatten().filter(|worker| worker.is_alive);
        let beyond = alive.map(|worker| worker.member).filter(|member| member.rank >= workers);
        let mut beyond: Vec<_> = beyond.collect();
        beyond.reverse();
        beyond
    }

    /// Whether another worker may join: not to stop, and not where fewer are wanted.
    pub(super) fn is_welcome(&self, rank: u32) -> Result<(), Refusal> {
        match self.scaled_to {
            _ if self.phase >= Phase::Stopping => Err(Refusal::Scale("the run stops; it takes no more workers".into())),
            Some(wanted) if rank >= wanted => Err(Refusal::NoPlace { role: Role::Worker, rank, places: wanted }),
            _ => Ok(()),
        }
    }

    /// Whether workers may be at other steps than their reports say, because one is a spare, came late or was lost; or a
    /// server with what it was to be told.
    pub(super) fn is_uneven(&self) -> bool {
        let has_spares = self.places().count() > self.config.slices as usize;
        has_spares
            || self.has_grown
            || self.config.replicas > 0
            || self.workers.iter().flatten().any(|worker| !worker.is_alive || worker.totals.restarts > 0)
    }

    /// Whether a place counts where nobody has joined yet: only until training has begun.
    pub(super) fn counts(&self, worker: WorkerId) -> bool {
        match &self.workers[worker.index()] {
            Some(worker) => worker.is_alive,
            None => !self.has_begun,
        }
    }
}
