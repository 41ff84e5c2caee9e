//! The coordinator's pure core: the handshake, the phases, leases, and what members report.
//!
//! Time is an argument, in milliseconds from any start. Every call either succeeds and says what happened, or is
//! refused and changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use convoy_proto::{
    config::Config,
    ids::{Era, Generation, Incarnation, Member, Role, Step, WorkerId},
    layout::Layout,
    messages::{
        Admission, ClusterView, JoinOffer, JoinPart, Phase, Report, ServerView, Since, Verdict, Vitals, Weights,
    },
};

use super::{
    durations::Durations,
    engine::Engine,
    evaluation::Score,
    handshake::{Reference, compare},
    records::{ServerRecord, Totals, WorkerRecord},
    refusal::Refusal,
    stragglers::Straggler,
};

mod committing;
mod copies;
mod endings;
mod eras;
mod owners;
mod reading;
mod scaling;

pub use eras::{Origin, SaveEvent};

/// How far behind a slow worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// All others wait for it.
    None,
    /// Where slices are dealt out, so many pushes behind the quickest.
    Pushes(u64),
    /// Where a quorum goes on, so many steps were made without it.
    Missed(u64),
}

/// Something that happened, for whoever watches.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A member joined.
    Joined(Member),
    /// The cluster moved on.
    Phase(Phase),
    /// A member is gone.
    Lost(Member),
    /// So few workers are alive, fewer than there must be.
    TooFew(u32),
    /// A step, or as many commits as make one, was committed.
    Step(Verdict),
    /// A worker has become slow, and how far behind it is.
    Straggler(Straggler, Lag),
    /// The held-out data were scored, by the weights or their average, after so many commits.
    Evaluated(Weights, Step, Score),
    /// All workers made their last step.
    Finished(Step),
    /// Workers ended at different steps, which must not happen.
    Diverging(String),
    /// A checkpoint was written, or not.
    Save(SaveEvent),
    /// A server could not take its shard from the era's checkpoint.
    NotRestored(Member, String),
    /// A server has its shard from another copy, as it was when this commit was the next.
    Copied(Member, Step),
    /// A person asks for so many workers.
    Scale(u32),
}

/// The state of the cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    config: Config,
    reference: Reference,
    phase: Phase,
    era: Era,
    /// Where the era began.
    origin: Origin,
    /// Servers that have taken their shard from the era's checkpoint.
    restored: BTreeSet<u32>,
    /// Whether training began, be it in another era.
    has_begun: bool,
    /// Whether there are more places than at first, and how many workers a person asked for.
    has_grown: bool,
    scaled_to: Option<u32>,
    /// Whether the parameters are lost, in part, and the era with them.
    is_broken: bool,
    /// Who sets the first parameters of the era, once all are there.
    initialiser: Option<WorkerId>,
    incarnations: u64,
    /// Changes of the membership.
    changes: u64,
    workers: Vec<Option<WorkerRecord>>,
    servers: Vec<Option<ServerRecord>>,
    /// Servers' places that nobody takes any more, and when who comes takes part.
    abandoned: BTreeSet<u32>,
    copying: copies::Plan,
    /// By rank, what workers did before this launcher was there.
    earlier: BTreeMap<u32, Totals>,
    stop_at: Option<Step>,
    reviewed: Step,
    engine: Engine,
    durations: Durations,
}

impl Cluster {
    /// An empty cluster for a run.
    pub fn new(config: Config, reference: Reference) -> Cluster {
        Cluster {
            phase: Phase::Gathering,
            era: Era(0),
            origin: Origin::default(),
            restored: BTreeSet::new(),
            has_begun: false,
            has_grown: false,
            scaled_to: None,
            is_broken: false,
            initialiser: None,
            incarnations: 0,
            changes: 0,
            workers: vec![None; config.workers as usize],
            servers: vec![None; Layout::of(&config).servers() as usize],
            abandoned: BTreeSet::new(),
            copying: copies::Plan::default(),
            earlier: BTreeMap::new(),
            stop_at: None,
            reviewed: Step(0),
            engine: Engine::new(&config, &reference),
            durations: Durations::default(),
            reference,
            config,
        }
    }

    /// Where the cluster stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many steps are committed.
    pub fn steps(&self) -> u64 {
        self.engine.clock().steps_after(self.engine.commits())
    }

    /// What is trained.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The workers, by rank; `None` where nobody joined yet.
    pub fn workers(&self) -> &[Option<WorkerRecord>] {
        &self.workers
    }

    /// The servers, by rank; `None` where nobody is.
    pub fn servers(&self) -> &[Option<ServerRecord>] {
        &self.servers
    }

    /// What members are compared with.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// What every member knows.
    pub fn view(&self) -> ClusterView {
        let is_alive = |worker: &&WorkerRecord| worker.is_alive;
        let incarnation = |worker: &Option<WorkerRecord>| {
            worker.as_ref().filter(is_alive).map_or(Incarnation(0), |worker| worker.member.incarnation)
        };
        ClusterView {
            phase: self.phase,
            generation: Generation(self.changes),
            era: self.era,
            shards: self.config.servers,
            servers: self
                .servers
                .iter()
                .map(|server| server.as_ref().map(ServerView::from).unwrap_or_default())
                .collect(),
            owners: self.owners(),
            initialiser: self.initialiser(),
            incarnations: self.workers.iter().map(incarnation).collect(),
            stop_at: self.stop_at,
            reviewed: self.reviewed,
            restore: self.origin.restore.clone(),
            save_at: self.engine.saves().wanted(),
            saved: self.engine.saves().saved(),
        }
    }

    /// Lets workers that wait for the review of an evaluation go on.
    pub fn review(&mut self, step: Step) {
        self.reviewed = self.reviewed.max(step);
        self.engine.review(step);
        self.engine.settle();
    }

    /// Admits a process, or names what differs.
    ///
    /// # Errors
    /// A difference, or no place.
    pub fn join(&mut self, offer: JoinOffer, now_ms: u64) -> Result<(Admission, Vec<Event>), Refusal> {
        compare(&offer, &self.config, &self.reference)?;
        let (role, rank) = (offer.role, offer.rank);
        let member = Member { role, rank, incarnation: Incarnation(self.incarnations + 1) };
        let (pid, host) = (offer.pid, offer.host);
        match offer.part {
            JoinPart::Server { address } => {
                let place = place(&mut self.servers, (role, rank), |_| true)?;
                let since = if self.phase == Phase::Gathering { Since::Beginning } else { Since::Waits };
                *place = Some(ServerRecord {
                    member,
                    pid,
                    host,
                    address,
                    since,
                    is_filled: false,
                    heard_ms: now_ms,
                    vitals: None,
                });
                self.tell_engine();
                self.plan_copies();
            }
            JoinPart::Worker(offer) => {
                self.is_welcome(rank)?;
                let place = place(&mut self.workers, (role, rank), |worker| worker.is_alive)?;
                let before = place.take();
                let earlier = self.earlier.get(&rank).copied().unwrap_or_default();
                *place = Some(
                    WorkerRecord::new(member, (pid, host), *offer, now_ms)
                        .after(before, earlier)
                        .from(self.origin.commits),
                );
                self.engine.join(WorkerId(rank));
            }
        }
        self.incarnations += 1;
        self.changes += 1;
        let mut events = vec![Event::Joined(member)];
        events.extend(self.gather());
        let (heartbeat_ms, lease_ms) = (self.config.timeouts.heartbeat_ms, self.config.timeouts.lease_ms);
        Ok((Admission { incarnation: member.incarnation, heartbeat_ms, lease_ms, guard: None }, events))
    }

    /// Notes that a member is alive, and how long it has computed what it is computing.
    ///
    /// # Errors
    /// A caller that is not a current member.
    pub fn heartbeat(&mut self, member: Member, now_ms: u64, computing_ms: u64) -> Result<(), Refusal> {
        match member.role {
            Role::Worker => {
                let worker = self.worker(member)?;
                (worker.heard_ms, worker.computing_ms) = (now_ms, computing_ms);
            }
            Role::Server => self.server(member)?.heard_ms = now_ms,
            Role::Launcher => return Err(Refusal::Stranger(member)),
        }
        Ok(())
    }

    /// Takes note of what a member uses; of a stranger, nothing.
    pub fn note_vitals(&mut self, member: Member, vitals: Vitals) {
        match member.role {
            Role::Worker => self.worker(member).map(|worker| worker.vitals = Some(vitals)),
            Role::Server => self.server(member).map(|server| server.vitals = Some(vitals)),
            Role::Launcher => Ok(()),
        }
        .unwrap_or_default();
    }

    /// How long steps took, of all workers.
    pub fn durations(&self) -> &Durations {
        &self.durations
    }

    /// Whether a caller is a current member.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&mut self, member: Member) -> Result<(), Refusal> {
        match member.role {
            Role::Worker => self.worker(member).map(drop),
            Role::Server => self.server(member).map(drop),
            Role::Launcher => Err(Refusal::Stranger(member)),
        }
    }

    /// Takes in what a worker reports.
    ///
    /// # Errors
    /// A caller that is not a current member, or a report out of place. What belongs to an era that is over is no error.
    pub fn report(&mut self, member: Member, era: Era, report: Report) -> Result<Vec<Event>, Refusal> {
        if era < self.era {
            return Ok(Vec::new());
        }
        let (initialiser, is_empty) = (self.initialiser(), self.origin.restore.is_none());
        let (phase, last, slices) = (self.phase, Step(self.engine.clock().commits()), self.config.slices);
        // A quorum may go on without a worker. So may others without a spare, or one whose part they have taken over.
        let may_skip = self.config.mode.is_chosen() || self.is_uneven();
        let own_slices = self.slices_in_hand(WorkerId(member.rank));
        let worker = self.worker(member)?;
        let out_of_place = |what| Err(Refusal::OutOfPlace { member, what });
        match report {
            Report::Initialised if phase == Phase::Initialising && is_empty && WorkerId(member.rank) == initialiser => {
                Ok(self.advance(Phase::Training).into_iter().collect())
            }
            Report::Initialised => out_of_place("that it initialised"),
            _ if phase < Phase::Training => out_of_place("training"),
            Report::Step(report)
                if report.verdict.step == worker.at || (may_skip && report.verdict.step > worker.at) =>
            {
                worker.add(&report.effort, report.verdict.step.next());
                self.durations.note(&report.effort.times);
                let mut events = self.engine.step(member, report, own_slices);
                events.extend(self.engine.passed(self.hindmost()));
                Ok(events)
            }
            Report::Step(_) => out_of_place("a step out of order"),
            Report::Missed { next, effort } if may_skip && next > worker.at => {
                worker.missed += 1;
                let missed = worker.missed;
                worker.add(&effort, next);
                Ok(self.engine.missed((WorkerId(member.rank), own_slices), &effort, missed).into_iter().collect())
            }
            Report::Missed { .. } => out_of_place("that it missed a step"),
            Report::Evaluation { step, parts, .. }
                if step > last || parts.iter().any(|part| part.slice.0 >= slices) =>
            {
                out_of_place("an evaluation that the run does not have")
            }
            Report::Evaluation { step, weights, parts } => {
                let mut events: Vec<_> = self.engine.evaluation(step, weights, parts).into_iter().collect();
                self.engine.settle();
                if !events.is_empty() {
                    events.extend(self.finished());
                }
                Ok(events)
            }
            Report::Pausing { pushed } => {
                worker.pushed = Some(pushed);
                self.settle_stop();
                Ok(Vec::new())
            }
            Report::Finished { step } => {
                worker.finished = Some(step);
                worker.pushed = Some(step);
                self.settle_stop();
                Ok(self.finished())
            }
        }
    }

    /// Moves on to a later phase; nothing happens if the cluster is there or further.
    pub fn advance(&mut self, phase: Phase) -> Option<Event> {
        if phase <= self.phase {
            return None;
        }
        self.phase = phase;
        self.has_begun |= phase == Phase::Training;
        if phase == Phase::Stopping {
            self.stop_at = self.engine.stop();
        }
        self.settle_stop();
        self.plan_copies();
        Some(Event::Phase(phase))
    }

    fn check_era(&self, theirs: Era) -> Result<(), Refusal> {
        if theirs == self.era { Ok(()) } else { Err(Refusal::Era { ours: self.era, theirs }) }
    }

    fn worker(&mut self, member: Member) -> Result<&mut WorkerRecord, Refusal> {
        let record = self.workers.get_mut(member.rank as usize).and_then(Option::as_mut);
        record.filter(|record| record.member == member && record.is_alive).ok_or(Refusal::Stranger(member))
    }

    fn server(&mut self, member: Member) -> Result<&mut ServerRecord, Refusal> {
        let record = self.servers.get_mut(member.rank as usize).and_then(Option::as_mut);
        record.filter(|record| record.member == member).ok_or(Refusal::Stranger(member))
    }
}

fn place<T>(
    places: &mut [Option<T>],
    (role, rank): (Role, u32),
    is_taken: impl Fn(&T) -> bool,
) -> Result<&mut Option<T>, Refusal> {
    let count = places.len() as u32;
    let place = places.get_mut(rank as usize).ok_or(Refusal::NoPlace { role, rank, places: count })?;
    if place.as_ref().is_some_and(is_taken) { Err(Refusal::Taken(format!("{role} {rank}"))) } else { Ok(place) }
}

#[cfg(test)]
mod tests;
