//! A block's cell: its parameters in two versions, its sum in progress and its optimizer's state.
//!
//! In a step, a cell first completes its sum. Then it carries out the verdict: at once, or, under a layerwise rule, in
//! two halves, the direction first and the step when the tensor's factor is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use convoy_proto::{
    blocks::Block,
    config::TensorSettings,
    ids::{SliceId, Step, WorkerId},
    manifest::TensorRole,
    messages::{Action, GradientBlock, PushId, Squares, Verdict, Weights},
    optimizer::{Optimizer, Update},
    shared::Buffer,
    sum,
    tree::{Node, SliceTree},
};

use super::{
    accumulator::{Accumulator, Inserted},
    kept::{Keeping, Kept},
    versions::{Lookup, Rooms, Version, Versions},
    waiting::Waiting,
};

/// How far a cell has come with a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Its sum is not complete, or the verdict says too little.
    Waiting,
    /// It has just found its direction, and waits for its tensor's factor.
    Directed,
    /// It has a new version.
    Applied,
}

/// One block of the shard.
#[derive(Debug)]
pub struct Cell {
    block: Block,
    settings: TensorSettings,
    parameters: Option<Versions>,
    rooms: Rooms,
    /// A moving average of the parameters, where one is kept.
    average: Option<Versions>,
    waiting: Waiting,
    /// What workers pulled last, where that is needed to correct their gradients.
    pulled: BTreeMap<WorkerId, Version>,
    accumulator: Accumulator,
    /// Whether the open step's sum has been found complete.
    complete: bool,
    /// Where a layerwise rule wants to go in the open step.
    direction: Option<Buffer>,
    /// Shared with a checkpoint that is being written.
    state: Arc<Vec<Vec<f32>>>,
    updates: u64,
    /// Commits that are kept for checkpoints.
    kept: Vec<(Step, Kept)>,
    /// Those that are to be kept when they are made.
    to_keep: BTreeSet<Step>,
}

impl Cell {
    /// An empty cell: no parameters yet.
    pub fn new(block: Block, settings: TensorSettings) -> Cell {
        Cell {
            block,
            settings,
            parameters: None,
            rooms: Rooms::default(),
            average: None,
            waiting: Waiting::default(),
            pulled: BTreeMap::new(),
            accumulator: Accumulator::default(),
            complete: false,
            direction: None,
            state: Arc::default(),
            updates: 0,
            kept: Vec::new(),
            to_keep: BTreeSet::new(),
        }
    }

    /// From now on, versions are made in these rooms.
    pub fn share(&mut self, rooms: Rooms) {
        self.rooms = rooms;
    }

    /// The block it holds.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// The step that its newest parameters are the input of.
    pub fn step(&self) -> Step {
        self.parameters.as_ref().map_or(Step(0), Versions::step)
    }

    /// Whether it has parameters.
    pub fn is_initialised(&self) -> bool {
        self.parameters.is_some()
    }

    /// Sets the parameters of step 0 from a payload of the block's size.
    pub fn initialise(&mut self, payload: &[u8], optimizer: &Optimizer) {
        let mut values = vec![0.0; self.block.len as usize];
        sum::read_payload(&mut values, payload);
        if self.block.role == TensorRole::Trainable {
            self.state = Arc::new(vec![vec![0.0; values.len()]; optimizer.rule.slots()]);
            self.average = optimizer.ema.map(|_| Versions::new(Step(0), Arc::new(values.clone().into())));
        }
        let values = self.rooms.hold(Step(0), Arc::new(values.into()));
        self.parameters = Some(Versions::new(Step(0), values));
    }

    /// Takes over what a checkpoint kept of this block, where `step` starts from.
    pub fn restore(&mut self, step: Step, kept: Kept, optimizer: &Optimizer) {
        if self.block.role == TensorRole::Trainable {
            // An average that was not kept yet begins here.
            let average = kept.average.unwrap_or_else(|| kept.parameters.clone());
            self.average = optimizer.ema.map(|_| Versions::new(step, average));
            (self.state, self.updates) = (kept.state, kept.updates);
        }
        self.parameters = Some(Versions::new(step, self.rooms.hold(step, kept.parameters)));
    }

    /// Keeps the block as it is, for a checkpoint of the commit that starts from it.
    fn keep(&mut self) {
        let step = self.step();
        self.to_keep.remove(&step);
        if !self.kept.iter().any(|(kept, _)| *kept == step) {
            self.kept.extend(self.as_it_is().map(|kept| (step, kept)));
        }
    }

    fn as_it_is(&self) -> Option<Kept> {
        let parameters = self.parameters.as_ref()?.newest().clone();
        let average = self.average.as_ref().map(|average| average.newest().clone());
        Some(Kept { block: self.block.id, parameters, average, state: self.state.clone(), updates: self.updates })
    }

    /// Keeps a commit, now or when it is made.
    pub fn keep_at(&mut self, step: Step) -> Keeping {
        // With a direction, the state is beyond the parameters.
        let is_whole = self.direction.is_none();
        if self.kept.iter().any(|(kept, _)| *kept == step) {
            Keeping::Kept
        } else if self.step() < step {
            self.to_keep.insert(step);
            Keeping::Waits
        } else if self.step() == step && is_whole {
            self.keep();
            Keeping::Kept
        } else {
            Keeping::TooLate
        }
    }

    /// Hands over what was kept of a commit. What training does not change is as it always was.
    pub fn take_kept(&mut self, step: Step) -> Option<Kept> {
        if !self.block.role.is_trained() {
            return self.as_it_is();
        }
        self.to_keep.remove(&step);
        let at = self.kept.iter().position(|(kept, _)| *kept == step)?;
        Some(self.kept.swap_remove(at).1)
    }

    /// The parameters that `step` starts from, or their average; what is not averaged stands for itself.
    pub fn version(&self, step: Step, weights: Weights) -> Lookup {
        let versions = match weights {
            Weights::Averaged => self.average.as_ref().or(self.parameters.as_ref()),
            Weights::Trained => self.parameters.as_ref(),
        };
        versions.map_or(Lookup::Pending, |versions| versions.at(step))
    }

    /// Adds a contribution to the open step.
    pub fn accumulate(&mut self, tree: SliceTree, node: Node, payload: &Bytes, absent: &BTreeSet<SliceId>) -> Inserted {
        if self.direction.is_some() {
            return Inserted::Present;
        }
        self.accumulator.insert(tree, node, payload, absent)
    }

    /// Keeps a part of a push until it is known what becomes of it; `present` are the push's slices that have weight,
    /// and `step` is the one that it belongs to, if it can belong to one only. True if the push is now all here.
    pub fn stage(&mut self, push: (PushId, Option<Step>), present: &[SliceId], part: &GradientBlock) -> bool {
        self.waiting.add(push, present, part)
    }

    /// Copies parts that are still where they came from.
    pub fn own(&mut self) {
        self.accumulator.own();
        self.waiting.own();
    }

    /// Forgets a push.
    pub fn discard(&mut self, push: PushId) {
        self.waiting.discard(push);
    }

    /// Sums up what the coordinator chose, given that all other slices are `absent`. A part that sums up others, too, is
    /// of a push that its worker did not finish; what was chosen of it, another has pushed.
    pub fn take_up(&mut self, tree: SliceTree, chosen: &Verdict, absent: &BTreeSet<SliceId>) {
        for (node, payload) in self.waiting.take(chosen, absent) {
            self.accumulator.insert(tree, node, &payload, absent);
        }
        self.accumulator.settle(tree, absent);
    }

    /// Remembers what a worker computes with.
    pub fn remember(&mut self, worker: WorkerId, version: Version) {
        if self.block.role == TensorRole::Trainable {
            self.pulled.insert(worker, version);
        }
    }

    /// Merges what can be merged, given that `absent` slices are empty.
    pub fn settle(&mut self, tree: SliceTree, absent: &BTreeSet<SliceId>) {
        self.accumulator.settle(tree, absent);
    }

    /// True once a step: when its sum is found complete.
    pub fn found_complete(&mut self, tree: SliceTree) -> bool {
        let found = !self.complete && self.accumulator.is_complete(tree);
        self.complete |= found;
        found
    }

    /// The sum of squares of the complete sum; 0 if it is not complete.
    pub fn sum_of_squares(&self, tree: SliceTree) -> f64 {
        self.accumulator.sum(tree).map_or(0.0, |sum| sum::sum_of_squares(&sum))
    }

    /// The sums of squares of the direction and of the parameters; 0 without a direction.
    pub fn squares(&self) -> Squares {
        match (&self.direction, &self.parameters) {
            (Some(direction), Some(parameters)) => Squares {
                direction: sum::sum_of_squares(direction),
                parameters: sum::sum_of_squares(parameters.newest()),
            },
            _ => Squares::default(),
        }
    }

    /// Carries out the verdict on the open step, as far as it and the sum allow; `is_kept` says whether a checkpoint needs
    /// what comes of it.
    pub fn apply(&mut self, tree: SliceTree, (verdict, is_kept): (&Verdict, bool), optimizer: &Optimizer) -> Progress {
        let progress = self.carry_out(tree, verdict, optimizer);
        if progress == Progress::Applied && (is_kept || self.to_keep.contains(&self.step())) {
            self.keep();
        }
        progress
    }

    fn carry_out(&mut self, tree: SliceTree, verdict: &Verdict, optimizer: &Optimizer) -> Progress {
        let is_final = optimizer.is_final(verdict);
        if !self.is_initialised() {
            return Progress::Waiting;
        }
        if verdict.action == Action::SkipNonFinite {
            self.skip();
            return Progress::Applied;
        }
        if self.direction.is_none() {
            if self.block.role == TensorRole::Buffer && !is_final {
                return Progress::Waiting;
            }
            // A buffer's new value is the mean of the slices'.
            let is_buffer = self.block.role == TensorRole::Buffer;
            let scale = if is_buffer { 1.0 } else { verdict.loss_scale };
            let mean = self.accumulator.take_mean(tree, (verdict.weight * scale) as f32);
            let Some(mean) = mean else { return Progress::Waiting };
            if is_buffer {
                let held = self.held(mean);
                self.commit(held, None);
                return Progress::Applied;
            }
            let updated = self.update(mean, verdict, optimizer);
            if optimizer.rule.is_layerwise() {
                self.direction = Some(updated);
                return Progress::Directed;
            }
            self.commit(updated, optimizer.ema);
            return Progress::Applied;
        }
        match self.direction.take() {
            Some(direction) if is_final => {
                self.follow(direction, verdict, optimizer);
                Progress::Applied
            }
            waiting => {
                self.direction = waiting;
                Progress::Waiting
            }
        }
    }

    fn skip(&mut self) {
        self.parameters.iter_mut().chain(&mut self.average).for_each(Versions::repeat);
        self.close();
    }

    fn close(&mut self) {
        self.accumulator.clear();
        self.complete = false;
        self.direction = None;
        let open = self.step();
        self.waiting.close(open);
    }

    /// Corrects a stale gradient for what has changed since its parameters were pulled: `g + λ·g²·(p − p_then)` (Zheng et
    /// al., "Asynchronous stochastic gradient descent with delay compensation", 2017).
    fn compensate(&self, gradient: &mut [f32], verdict: &Verdict, strength: f32) {
        let then = verdict.push.and_then(|push| self.pulled.get(&push.worker));
        let (Some(then), Some(now), true) = (then, &self.parameters, strength > 0.0) else { return };
        for ((g, now), then) in gradient.iter_mut().zip(now.newest().iter()).zip(then.iter()) {
            *g += strength * *g * *g * (now - then);
        }
    }

    /// New values, where others see them if that can be.
    fn held(&mut self, values: Vec<f32>) -> Buffer {
        let Some(parameters) = &mut self.parameters else { return values.into() };
        let mut room = parameters.room(&self.rooms);
        room.copy_from_slice(&values);
        room
    }

    /// Applies the rule to the mean gradient: new parameters, or a direction.
    fn update(&mut self, mut gradient: Vec<f32>, verdict: &Verdict, optimizer: &Optimizer) -> Buffer {
        if verdict.clip != 1.0 {
            let clip = verdict.clip as f32;
            gradient.iter_mut().for_each(|g| *g *= clip);
        }
        if let Some(most) = optimizer.clip_value {
            gradient.iter_mut().for_each(|g| *g = g.clamp(-most, most));
        }
        self.compensate(&mut gradient, verdict, optimizer.compensation);
        let Some(parameters) = &mut self.parameters else { return gradient.into() };
        let mut updated = parameters.room(&self.rooms);
        if optimizer.rule.is_layerwise() && !sum::all_finite(&gradient) {
            // The tensor's factor will be no number, which skips the step: the state stays as it is.
            updated.fill(f32::NAN);
            return updated;
        }
        optimizer.rule.apply(Update {
            updates: self.updates,
            learning_rate: verdict.learning_rate as f32 * self.settings.lr_factor,
            weight_decay: self.settings.weight_decay,
            gradient: &gradient,
            parameters: parameters.newest(),
            updated: &mut updated,
            state: Arc::make_mut(&mut self.state).as_mut_slice(),
        });
        self.updates += 1;
        updated
    }

    /// Makes the step along a direction: `p − lr·φ·r` with the tensor's factor φ.
    fn follow(&mut self, mut direction: Buffer, verdict: &Verdict, optimizer: &Optimizer) {
        let trust = verdict.trust.get(self.block.tensor).copied().unwrap_or(1.0);
        let rate = verdict.learning_rate as f32 * self.settings.lr_factor * trust as f32;
        if let Some(parameters) = &self.parameters {
            for (r, p) in direction.iter_mut().zip(parameters.newest().iter()) {
                *r = p - rate * *r;
            }
        }
        self.commit(direction, optimizer.ema);
    }

    /// Takes over new parameters, and moves their average towards them.
    fn commit(&mut self, updated: Buffer, ema: Option<f32>) {
        if let (Some(average), Some(decay)) = (&mut self.average, ema) {
            let mut moved = average.room(&Rooms::default());
            let rest = 1.0 - decay;
            for (out, (a, p)) in moved.iter_mut().zip(average.newest().iter().zip(updated.iter())) {
                *out = decay * a + rest * p;
            }
            average.push(moved);
        }
        if let Some(parameters) = &mut self.parameters {
            parameters.push(updated);
        }
        self.close();
    }
}
