//! What the cluster trains, as the coordinator sees it: commits, slices in hand, scores, and the steps that they make.
//!
//! Knows workers by rank only; who they are and whether they may speak is the cluster's to know ([`super::core`]).

use std::collections::{BTreeMap, BTreeSet};

use convoy_proto::{
    clock::Clock,
    config::Config,
    fates::Fate,
    ids::{Member, ServerId, SliceId, Step, WorkerId},
    messages::{Accumulated, Effort, EvaluationPart, PushHeader, PushId, Since, Staged, StepReport, Verdict, Weights},
    tree::SliceTree,
};

use super::{
    commits::{CommitError, Commits},
    core::{Event, Lag, Origin},
    deadlines::Deadlines,
    dealer::{Deal, Dealer},
    decision::{DecisionError, Decisions},
    evaluation::{Evaluations, Lacking, Score},
    handshake::Reference,
    history::History,
    saves::{Saves, Standing},
    stragglers::Stragglers,
};

/// The state of training.
#[derive(Clone, Debug)]
pub struct Engine {
    clock: Clock,
    is_dealt: bool,
    /// Whether the coordinator chooses which slices close a step.
    has_quorum: bool,
    eval_every: u64,
    reviews: bool,
    reviewed: Step,
    is_stopping: bool,
    commits: Commits,
    dealer: Dealer,
    decisions: Decisions,
    evaluations: Evaluations,
    history: History,
    /// What was chosen here and no worker has reported yet.
    chosen: BTreeMap<Step, Verdict>,
    stragglers: Stragglers,
    deadlines: Deadlines,
    saves: Saves,
}

impl Engine {
    /// Nothing is trained yet.
    pub fn new(config: &Config, reference: &Reference) -> Engine {
        let (clock, tree) = (Clock::new(config, reference.horizon.steps), SliceTree::new(config.slices));
        Engine {
            clock,
            is_dealt: config.mode.is_dealt(),
            has_quorum: config.mode.is_chosen() && !config.mode.is_dealt(),
            eval_every: config.eval_every,
            reviews: config.reviews_evaluations(),
            reviewed: Step(0),
            is_stopping: false,
            commits: Commits::new(config, reference.horizon),
            dealer: Dealer::new(config, reference.horizon.steps),
            decisions: Decisions::new(config, &reference.manifest),
            evaluations: Evaluations::new(tree, reference.kind, config.optimizer.ema.is_some()),
            chosen: BTreeMap::new(),
            history: History::new(clock.commits_a_step()),
            stragglers: Stragglers::default(),
            deadlines: Deadlines::default(),
            saves: Saves::new(config, clock),
        }
    }

    /// The same, in place of another, after so many commits.
    pub fn in_place_of(mut self, before: &Engine, origin: &Origin) -> Engine {
        let commits = origin.commits;
        // What was observed of workers stays true.
        self.deadlines = before.deadlines.clone();
        self.dealer.number_from(before.dealer.sequence());
        self.commits.resume(commits, origin.standing.left_out);
        self.dealer.resume(commits, &origin.standing.cursor);
        self.history.resume(commits);
        // If an evaluation is due here, it is made again.
        self.review(Step(commits.0.saturating_sub(1)));
        self
    }

    /// Counts on these servers, each from its commit on.
    pub fn count_on(&mut self, servers: BTreeMap<ServerId, Since>) {
        self.commits.count_on(servers.clone());
        self.decisions.count_on(servers);
    }

    /// The verdict on a decision of which all servers have brought their parts.
    pub fn settle_decision(&mut self) -> Option<Verdict> {
        let verdict = self.decisions.settle()?;
        self.note_verdict(&verdict);
        Some(verdict)
    }

    /// Deals no slice for the time being, or goes on.
    pub fn hold(&mut self, is_held: bool) {
        self.dealer.hold(is_held);
    }

    /// Whether no slice that was dealt is in anybody's hand.
    pub fn is_idle(&self) -> bool {
        self.dealer.is_idle()
    }

    /// How long a slice usually takes to compute.
    pub fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    /// The checkpoints in the making.
    pub fn saves(&self) -> &Saves {
        &self.saves
    }

    /// The checkpoints in the making.
    pub fn saves_mut(&mut self) -> &mut Saves {
        &mut self.saves
    }

    /// Asks for a commit to be kept for a checkpoint, if it is not kept anyway.
    pub fn save_at(&mut self, commit: Step) {
        self.saves.want(commit);
        self.note_standing();
    }

    /// The commit that is open, as far as is known here.
    pub fn open(&self) -> Step {
        if self.is_dealt || self.has_quorum { self.commits.open() } else { self.history.commits() }
    }

    /// Where checkpoints need it, notes what was committed before the commit that is open.
    fn note_standing(&mut self) {
        let open = self.open();
        if self.saves.is_kept(open) {
            let standing = Standing { cursor: self.dealer.cursor(), left_out: self.commits.left_out() };
            self.saves.note(open, standing);
        }
    }

    /// How commits relate to steps.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The steps, and the commits, that are made when this commit is.
    pub fn made(&self, commit: Step) -> (u64, u64) {
        (self.clock.steps_after(commit.next()), commit.next().0)
    }

    /// How many commits some worker has seen on all servers, without a gap.
    pub fn commits(&self) -> Step {
        self.history.commits()
    }

    /// Whether a worker keeps the others waiting.
    pub fn is_straggler(&self, worker: WorkerId) -> bool {
        self.stragglers.is_slow(worker)
    }

    /// How many slices quorums were made without.
    pub fn left_out(&self) -> u64 {
        self.commits.left_out()
    }

    /// A worker is there.
    pub fn join(&mut self, worker: WorkerId) {
        self.dealer.join(worker);
    }

    /// A worker's process is gone. What it pushed and was committed counts, although it cannot report that any more.
    pub fn lose(&mut self, member: Member) -> Vec<Event> {
        let worker = WorkerId(member.rank);
        self.dealer.lose(worker);
        self.commits.lose(worker, member.incarnation);
        self.stragglers.forget(worker);
        let its = |push: &PushId| push.worker == worker && push.incarnation == member.incarnation;
        let (its, others) = std::mem::take(&mut self.chosen)
            .into_iter()
            .partition::<BTreeMap<_, _>, _>(|(_, verdict)| verdict.push.as_ref().is_some_and(its));
        self.chosen = others;
        self.tell(its.into_values())
    }

    /// Takes note that a server has staged a push, and commits what may be committed.
    ///
    /// # Errors
    /// A push that does not belong.
    pub fn stage(&mut self, staged: Staged) -> Result<Vec<Verdict>, CommitError> {
        let id = staged.header.id();
        if self.is_dealt && !self.dealer.has_dealt(id) {
            // A worker that is gone pushed what has been dealt again.
            self.commits.refuse(&staged.header);
            return Ok(Vec::new());
        }
        self.commits.add(staged)?;
        Ok(self.settle())
    }

    /// Commits what may be committed.
    pub fn settle(&mut self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        while let Some(verdict) = if self.is_held() { None } else { self.commits.settle() } {
            verdict.push.into_iter().for_each(|push| self.dealer.committed(push));
            self.chosen.insert(verdict.step, verdict.clone());
            verdicts.push(verdict);
            self.note_standing();
        }
        verdicts
    }

    /// A quorum does not run away from an evaluation that others still have to make, nor from a stop.
    fn is_held(&self) -> bool {
        let open = self.commits.open();
        let is_scored = self.is_scored(open) && (!self.reviews || self.reviewed >= open);
        self.has_quorum && (self.is_stopping || (self.clock.is_due(open, self.eval_every) && !is_scored))
    }

    /// Whether a step's evaluation is complete.
    pub fn is_scored(&self, step: Step) -> bool {
        self.evaluations.lacking(step, &BTreeSet::new()) == Lacking::Nothing
    }

    /// What becomes of a push.
    pub fn fate(&self, header: &PushHeader) -> Fate {
        self.commits.fate(header)
    }

    /// What a worker is to do that has heard of slices up to number `after`, and owns these slices of an evaluation.
    pub fn deal(&mut self, (worker, after): (WorkerId, u64), owned: &BTreeSet<SliceId>) -> Deal {
        self.dealer.deal(worker, after, |step| self.evaluations.lacking(step, owned))
    }

    /// Starts no other step. Gives the first that nobody makes, where that is the coordinator's to say.
    pub fn stop(&mut self) -> Option<Step> {
        self.is_stopping = true;
        self.dealer.stop();
        self.has_quorum.then(|| self.commits.open())
    }

    /// An evaluation was reviewed: training may go on from it.
    pub fn review(&mut self, step: Step) {
        self.reviewed = self.reviewed.max(step);
        self.dealer.review(step);
    }

    /// Adds a server's part of a decision; gives the verdict once all are there.
    ///
    /// # Errors
    /// A part that does not belong.
    pub fn decide(&mut self, part: Accumulated) -> Result<Option<Verdict>, DecisionError> {
        let verdict = self.decisions.add(part)?;
        verdict.iter().for_each(|verdict| self.note_verdict(verdict));
        Ok(verdict)
    }

    fn note_verdict(&mut self, verdict: &Verdict) {
        if let Some(chosen) = self.chosen.get_mut(&verdict.step) {
            chosen.clone_from(verdict);
        }
    }

    /// Adds a worker's part of a score.
    pub fn evaluation(&mut self, step: Step, weights: Weights, parts: Vec<EvaluationPart>) -> Option<Event> {
        let score = self.evaluations.add(step, weights, parts)?;
        let score = Score { step: self.clock.steps_after(step), ..score };
        Some(Event::Evaluated(weights, step, score))
    }

    /// Takes in what a worker, which has so many slices, did of a commit.
    pub fn step(&mut self, member: Member, report: StepReport, slices: usize) -> Vec<Event> {
        let worker = WorkerId(member.rank);
        let lag = if self.is_dealt { Lag::Pushes(self.dealer.lag(worker)) } else { Lag::None };
        let mut events: Vec<_> = self.judge((worker, slices), &report.effort, lag).into_iter().collect();
        if self.has_quorum {
            // A step proves those before it, also if who would have reported them is dead.
            events.extend(self.catch_up(report.verdict.step));
        }
        self.chosen.remove(&report.verdict.step);
        events.extend(self.tell([report.verdict]));
        events
    }

    /// A step was made without a worker, which has so many slices, as so many before.
    pub fn missed(&mut self, worker: (WorkerId, usize), effort: &Effort, steps: u64) -> Option<Event> {
        self.judge(worker, effort, Lag::Missed(steps))
    }

    /// Names a worker that has become slow.
    fn judge(&mut self, (worker, slices): (WorkerId, usize), effort: &Effort, lag: Lag) -> Option<Event> {
        if effort.samples == 0 {
            // A spare has nothing to be measured by.
            return None;
        }
        let seconds = effort.times.data + effort.times.compute;
        self.deadlines.note(seconds / slices as f64);
        let straggler = self.stragglers.note(worker, seconds);
        straggler.map(|straggler| Event::Straggler(straggler, lag))
    }

    /// All workers that are alive are past a step. Where nothing was chosen here, what nobody has told of by now, nobody
    /// will.
    pub fn passed(&mut self, step: Step) -> Vec<Event> {
        if self.is_dealt || self.has_quorum {
            return Vec::new();
        }
        self.history.skip_to(step).into_iter().map(Event::Step).collect()
    }

    /// Takes in what was chosen here and committed before a step, whoever was to report it.
    pub fn catch_up(&mut self, before: Step) -> Vec<Event> {
        let later = self.chosen.split_off(&before);
        let proven = std::mem::replace(&mut self.chosen, later);
        self.tell(proven.into_values())
    }

    /// Takes in commits; tells of the steps that they make.
    fn tell(&mut self, commits: impl IntoIterator<Item = Verdict>) -> Vec<Event> {
        commits.into_iter().flat_map(|verdict| self.history.add(verdict)).map(Event::Step).collect()
    }

    /// Whom a step waits for, in words, if it is not simply the workers that are behind.
    pub fn awaited(&self) -> Vec<String> {
        let norms = self.decisions.awaited();
        let mut who: Vec<_> = norms.iter().map(|server| format!("server {server}'s gradient norm")).collect();
        who.extend(self.commits.awaited());
        if self.is_dealt {
            who.push(self.dealer.holders());
        }
        who
    }
}
