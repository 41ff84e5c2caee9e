//! The coordinator's pure core: the handshake, the phases, leases, and what members report.
//!
//! Time is an argument, in milliseconds from any start. Every call either succeeds and says what happened, or is
//! refused and changes nothing.

use std::collections::BTreeMap;

use convoy_proto::{
    config::Config,
    ids::{Era, Generation, Incarnation, Member, Role, Step, WorkerId},
    messages::{Accumulated, Admission, ClusterView, JoinOffer, JoinPart, Phase, Report, StepReport, Verdict, Weights},
    order,
    tree::SliceTree,
};

use super::{
    decision::Decisions,
    evaluation::{Evaluations, Score},
    handshake::{Reference, compare},
    records::{ServerRecord, WorkerRecord},
    refusal::Refusal,
};

/// Something that happened, for whoever watches.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A member joined.
    Joined(Member),
    /// The cluster moved on.
    Phase(Phase),
    /// A step was committed.
    Step(Verdict),
    /// The held-out data were scored, by the weights or their average.
    Evaluated(Weights, Score),
    /// All workers made their last step.
    Finished(Step),
    /// Workers ended at different steps, which must not happen.
    Diverging(String),
}

/// The state of the cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    config: Config,
    reference: Reference,
    phase: Phase,
    incarnations: u64,
    workers: Vec<Option<WorkerRecord>>,
    servers: Vec<Option<ServerRecord>>,
    steps: u64,
    stop_at: Option<Step>,
    reviewed: Step,
    decisions: Decisions,
    evaluations: Evaluations,
}

impl Cluster {
    /// An empty cluster for a run.
    pub fn new(config: Config, reference: Reference) -> Cluster {
        Cluster {
            phase: Phase::Gathering,
            incarnations: 0,
            workers: vec![None; config.workers as usize],
            servers: vec![None; config.servers as usize],
            steps: 0,
            stop_at: None,
            reviewed: Step(0),
            decisions: Decisions::new(&config, &reference.manifest),
            evaluations: Evaluations::new(SliceTree::new(config.slices), reference.kind),
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
        self.steps
    }

    /// The workers, by rank; `None` where nobody joined yet.
    pub fn workers(&self) -> &[Option<WorkerRecord>] {
        &self.workers
    }

    /// The servers, by shard.
    pub fn servers(&self) -> &[Option<ServerRecord>] {
        &self.servers
    }

    /// What members are compared with.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// What every member knows.
    pub fn view(&self) -> ClusterView {
        let slices = self.config.slices;
        let workers = self.config.workers;
        let mut owners = vec![WorkerId(0); slices as usize];
        for worker in 0..workers {
            for slice in order::share(slices.into(), worker, workers) {
                owners[slice as usize] = WorkerId(worker);
            }
        }
        let incarnation =
            |worker: &Option<WorkerRecord>| worker.as_ref().map_or(Incarnation(0), |w| w.member.incarnation);
        ClusterView {
            phase: self.phase,
            generation: Generation(self.incarnations),
            era: Era(0),
            shards: self.servers.iter().map(|s| s.as_ref().map(|s| s.address.clone()).unwrap_or_default()).collect(),
            owners,
            initialiser: WorkerId(0),
            incarnations: self.workers.iter().map(incarnation).collect(),
            stop_at: self.stop_at,
            reviewed: self.reviewed,
        }
    }

    /// Lets workers that wait for the review of an evaluation go on.
    pub fn review(&mut self, step: Step) {
        self.reviewed = self.reviewed.max(step);
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
                let place = place(&mut self.servers, role, rank)?;
                *place = Some(ServerRecord { member, pid, host, address, heard_ms: now_ms });
            }
            JoinPart::Worker(offer) => {
                let place = place(&mut self.workers, role, rank)?;
                *place = Some(WorkerRecord::new(member, (pid, host), *offer, now_ms));
            }
        }
        self.incarnations += 1;
        let mut events = vec![Event::Joined(member)];
        let complete = self.workers.iter().all(Option::is_some) && self.servers.iter().all(Option::is_some);
        if complete && self.phase == Phase::Gathering {
            events.extend(self.advance(Phase::Initialising));
        }
        let (heartbeat_ms, lease_ms) = (self.config.timeouts.heartbeat_ms, self.config.timeouts.lease_ms);
        Ok((Admission { incarnation: member.incarnation, heartbeat_ms, lease_ms }, events))
    }

    /// Notes that a member is alive.
    ///
    /// # Errors
    /// A caller that is not a current member.
    pub fn heartbeat(&mut self, member: Member, now_ms: u64) -> Result<(), Refusal> {
        match member.role {
            Role::Worker => self.worker(member)?.heard_ms = now_ms,
            Role::Server => self.server(member)?.heard_ms = now_ms,
            Role::Launcher => return Err(Refusal::Stranger(member)),
        }
        Ok(())
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

    /// Members that have not been heard of for a lease, and for how long.
    pub fn silent(&self, now_ms: u64) -> Vec<(Member, u64)> {
        let workers = self.workers.iter().flatten().map(|worker| (worker.member, worker.heard_ms));
        let servers = self.servers.iter().flatten().map(|server| (server.member, server.heard_ms));
        let lease = u64::from(self.config.timeouts.lease_ms);
        let silence = workers.chain(servers).map(|(member, heard)| (member, now_ms.saturating_sub(heard)));
        silence.filter(|(_, silence)| *silence > lease).collect()
    }

    /// Who keeps the cluster from going on, in words.
    pub fn awaited(&self) -> String {
        let missing = |records: Vec<bool>, role: Role| {
            let ranks = records.into_iter().enumerate().filter(|(_, there)| !there).map(|(rank, _)| rank.to_string());
            let ranks: Vec<_> = ranks.collect();
            if ranks.is_empty() { None } else { Some(format!("{role} {}", ranks.join(", "))) }
        };
        let who: Vec<_> = match self.phase {
            Phase::Gathering => [
                missing(self.servers.iter().map(Option::is_some).collect(), Role::Server),
                missing(self.workers.iter().map(Option::is_some).collect(), Role::Worker),
            ]
            .into_iter()
            .flatten()
            .collect(),
            Phase::Initialising => vec![format!("worker {} to initialise", self.view().initialiser)],
            _ => {
                let behind = self.workers.iter().flatten().filter(|worker| worker.steps < self.steps);
                let mut who: Vec<_> = behind.map(|w| format!("{} at step {}", w.member, w.steps)).collect();
                who.extend(self.decisions.awaited().iter().map(|shard| format!("server {shard}'s gradient norm")));
                if who.is_empty() {
                    who.push(format!("every worker, all at step {}", self.steps));
                }
                who
            }
        };
        who.join("; ")
    }

    /// Takes in what a worker reports.
    ///
    /// # Errors
    /// A caller that is not a current member, or a report out of place.
    pub fn report(&mut self, member: Member, report: Report) -> Result<Vec<Event>, Refusal> {
        let (phase, steps, slices) = (self.phase, self.reference.horizon.steps, self.config.slices);
        let worker = self.worker(member)?;
        let out_of_place = |what| Err(Refusal::OutOfPlace { member, what });
        match report {
            Report::Initialised if phase == Phase::Initialising && member.rank == 0 => {
                Ok(self.advance(Phase::Training).into_iter().collect())
            }
            Report::Initialised => out_of_place("that it initialised"),
            _ if phase < Phase::Training => out_of_place("training"),
            Report::Step(report) if report.verdict.step.0 == worker.steps => Ok(self.step(member, report)),
            Report::Step(_) => out_of_place("a step out of order"),
            Report::Evaluation { step, parts, .. }
                if step.0 > steps || parts.iter().any(|part| part.slice.0 >= slices) =>
            {
                out_of_place("an evaluation that the run does not have")
            }
            Report::Evaluation { step, weights, parts } => {
                let score = self.evaluations.add(step, weights, parts);
                Ok(score.map(|score| Event::Evaluated(weights, score)).into_iter().collect())
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
                Ok(self.finished().into_iter().collect())
            }
        }
    }

    fn step(&mut self, member: Member, report: StepReport) -> Vec<Event> {
        let Ok(worker) = self.worker(member) else { return Vec::new() };
        worker.add(&report);
        if worker.steps <= self.steps {
            return Vec::new();
        }
        self.steps += 1;
        vec![Event::Step(report.verdict)]
    }

    /// Every worker has pushed the steps below the least of what each has pushed, so those are committed and no other.
    fn settle_stop(&mut self) {
        let pushed: Option<Vec<Step>> = self.workers.iter().map(|w| w.as_ref().and_then(|w| w.pushed)).collect();
        if self.phase == Phase::Stopping && self.stop_at.is_none() {
            self.stop_at = pushed.and_then(|pushed| pushed.into_iter().min());
        }
    }

    fn finished(&self) -> Option<Event> {
        let ends: Option<Vec<Step>> = self.workers.iter().map(|w| w.as_ref().and_then(|w| w.finished)).collect();
        let ends = ends?;
        if ends.windows(2).all(|pair| pair[0] == pair[1]) {
            return ends.first().map(|step| Event::Finished(*step));
        }
        let ends: Vec<_> = ends.iter().map(ToString::to_string).collect();
        Some(Event::Diverging(format!("workers ended after different numbers of steps: {}", ends.join(", "))))
    }

    /// Adds a shard's part of a decision; gives the verdict once all are there.
    ///
    /// # Errors
    /// A caller that is not a current member, or a part that does not belong.
    pub fn decide(&mut self, member: Member, part: Accumulated) -> Result<Option<Verdict>, Refusal> {
        self.server(member)?;
        Ok(self.decisions.add(part)?)
    }

    /// Moves on to a later phase; nothing happens if the cluster is there or further.
    pub fn advance(&mut self, phase: Phase) -> Option<Event> {
        if phase <= self.phase {
            return None;
        }
        self.phase = phase;
        self.settle_stop();
        Some(Event::Phase(phase))
    }

    /// By backend and class, how workers compute: one entry if all can compute the same bits.
    pub fn numeric_classes(&self) -> BTreeMap<String, Vec<u32>> {
        let mut classes: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for worker in self.workers.iter().flatten() {
            classes.entry(worker.offer.numeric_class.clone()).or_default().push(worker.member.rank);
        }
        classes
    }

    fn worker(&mut self, member: Member) -> Result<&mut WorkerRecord, Refusal> {
        let record = self.workers.get_mut(member.rank as usize).and_then(Option::as_mut);
        record.filter(|record| record.member == member).ok_or(Refusal::Stranger(member))
    }

    fn server(&mut self, member: Member) -> Result<&mut ServerRecord, Refusal> {
        let record = self.servers.get_mut(member.rank as usize).and_then(Option::as_mut);
        record.filter(|record| record.member == member).ok_or(Refusal::Stranger(member))
    }
}

fn place<T>(places: &mut [Option<T>], role: Role, rank: u32) -> Result<&mut Option<T>, Refusal> {
    let count = places.len() as u32;
    let place = places.get_mut(rank as usize).ok_or(Refusal::NoPlace { role, rank, places: count })?;
    if place.is_some() { Err(Refusal::Taken(format!("{role} {rank}"))) } else { Ok(place) }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
