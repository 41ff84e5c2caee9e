//! One step's work: the slices that a worker owns, and its share of an evaluation.
//!
//! Knows no connection: what comes out are headers and sums over nodes of the slice tree.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use convoy_proto::{
    clock::Clock,
    config::{Config, Length, Mode},
    ids::{SliceId, Step},
    manifest::Manifest,
    messages::{EvaluationPart, SliceHeader, StepTimes},
    order::{self, DataOrder},
    schedule::Horizon,
    sum,
    trace::timed,
    tree::{self, Node, SliceTree},
};

use crate::{
    compress::{Compressor, Encoded},
    data::{DataError, DataInfo, Dataset, Form, HostBatch, Part},
    learner::{Evaluation, Replica},
    local::LocalTrainer,
    parameters::{self, Tensors},
    reader::{Key, Reader},
};

/// Samples, or tokens, that are scored at once.
const EVALUATION_BATCH: u64 = 250;
const EVALUATION_TOKENS: u64 = 4096;

/// Tracks of a worker in a trace: what it computes, and what it exchanges.
pub const STEPS: u32 = 1;
/// See above.
pub const EXCHANGE: u32 = 2;

/// Held-out samples that are scored at once: the bits of a score depend on it, so it depends on the data alone.
pub fn evaluation_batch(data: &DataInfo) -> u64 {
    match data.form {
        Form::Tokens { context, .. } => (EVALUATION_TOKENS / context as u64).max(1),
        _ => EVALUATION_BATCH,
    }
}

/// A sum, as it is pushed. Clones share it.
#[derive(Clone, Debug)]
pub enum Sum {
    /// As it is.
    Dense(Arc<Tensors>),
    /// In fewer bytes.
    Encoded(Arc<Encoded>),
}

/// What a worker contributes to a step.
#[derive(Clone, Debug, Default)]
pub struct Contribution {
    /// One a slice, empty ones included.
    pub headers: Vec<SliceHeader>,
    /// Sums over the fewest nodes that cover the slices; where a codec loses anything, one a slice.
    pub nodes: Vec<(Node, Sum)>,
    /// Samples that were computed.
    pub samples: u64,
    /// Time for data and compute; the rest is zero.
    pub times: StepTimes,
    /// What the loss was multiplied by.
    pub loss_scale: f64,
}

impl Contribution {
    /// Nothing is computed yet; the loss will be multiplied by `loss_scale`.
    pub fn new(loss_scale: f64) -> Contribution {
        Contribution { loss_scale, ..Contribution::default() }
    }

    /// Forgets sums over slices that are not `owned`; gives the owned slices that are not in it.
    fn keep(&mut self, owned: &BTreeSet<SliceId>) -> BTreeSet<SliceId> {
        self.nodes.retain(|(node, _)| node.slices().all(|slice| owned.contains(&slice)));
        let nodes = &self.nodes;
        let is_summed = |slice: SliceId| nodes.iter().any(|(node, _)| node.covers(Node::leaf(slice)));
        self.headers.retain(|h| owned.contains(&h.slice) && (h.weight == 0.0 || is_summed(h.slice)));
        let there: BTreeSet<_> = self.headers.iter().map(|header| header.slice).collect();
        owned - &there
    }
}

/// The data of a run, in the run's order.
pub struct Feed {
    data: Arc<dyn Dataset>,
    order: DataOrder,
    tree: SliceTree,
    reader: Reader,
    /// What of a commit is still to be read.
    upcoming: VecDeque<Key>,
    /// Held-out samples that are scored.
    scored: u32,
    clock: Clock,
    /// With local steps: the optimizers of slices.
    local: Option<LocalTrainer>,
    /// With a codec that loses anything.
    compressor: Option<Compressor>,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("order", &self.order).finish_non_exhaustive()
    }
}

impl Feed {
    /// The data in the order that the configuration asks for, for a model with these tensors.
    pub fn new(data: Arc<dyn Dataset>, config: &Config, manifest: &Manifest) -> Feed {
        let order = order_of(config, data.info().train);
        let held_out = data.info().test;
        let scored = if config.eval_samples == 0 { held_out } else { config.eval_samples.min(held_out) };
        let horizon = horizon(config, data.info().train);
        let local = match config.mode {
            Mode::Local(local) => Some(LocalTrainer::new(config, local, manifest, horizon)),
            _ => None,
        };
        let (tree, clock) = (SliceTree::new(config.slices), Clock::new(config, horizon.steps));
        let compressor = Compressor::new(config.codec, manifest);
        let (reader, upcoming) = (Reader::new(data.clone(), order), VecDeque::new());
        Feed { data, order, tree, reader, upcoming, scored, clock, local, compressor }
    }

    /// How commits relate to steps.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The samples of a slice.
    ///
    /// # Errors
    /// Data that can no longer be read.
    pub fn slice(&mut self, step: Step, slice: SliceId) -> Result<HostBatch, DataError> {
        let batch = self.reader.take((step, slice));
        if self.upcoming.front() == Some(&(step, slice)) {
            self.upcoming.pop_front();
        }
        if let Some(next) = self.upcoming.front() {
            self.reader.prepare(*next);
        }
        batch
    }

    /// Begins to read what a commit needs first, if these slices are this worker's then.
    pub fn prepare(&mut self, commit: Step, owned: &BTreeSet<SliceId>) {
        if let Some(first) = self.keys(commit, owned).next() {
            self.reader.prepare(first);
        }
    }

    /// What is read for slices of a commit, in order.
    fn keys(&self, commit: Step, slices: &BTreeSet<SliceId>) -> impl Iterator<Item = Key> + use<> {
        let steps = if commit.0 < self.clock.commits() { self.clock.steps_of(commit) } else { 0..0 };
        slices.clone().into_iter().flat_map(move |slice| steps.clone().map(move |step| (Step(step), slice)))
    }

    /// Computes the slices in `owned` of a commit that starts from `parameters`, but for those that are `done`, and adds
    /// them up as far as the tree allows. Only local steps look at the parameters: the replica has them.
    ///
    /// # Errors
    /// Data that can no longer be read; then nothing is done.
    pub fn contribute(
        &mut self,
        replica: &mut dyn Replica,
        (commit, parameters): (Step, &Tensors),
        (owned, mut done): (&BTreeSet<SliceId>, Contribution),
    ) -> Result<Contribution, DataError> {
        let missing = done.keep(owned);
        self.upcoming = self.keys(commit, &missing).collect();
        let mut problem = None;
        let nodes = match &mut self.compressor {
            Some(compressor) => {
                compressor.keep(|slice| owned.contains(&slice));
                missing.iter().map(|slice| Node::leaf(*slice)).collect()
            }
            None => self.tree.cover(&missing),
        };
        for node in nodes {
            let mut compute = |slice| match self.local.take() {
                None => self.leaf(replica, commit, slice, &mut done),
                Some(mut local) => {
                    let round = self.round(replica, &mut local, (commit, parameters), slice, &mut done);
                    self.local = Some(local);
                    round
                }
            };
            let mut leaf = |slice| match (&problem, compute(slice)) {
                (None, Ok(tensors)) => tensors,
                (None, Err(error)) => {
                    problem = Some(error);
                    None
                }
                (Some(_), _) => None,
            };
            if let Some(tensors) = tree::fold(node, &mut leaf, &mut add) {
                let slice = SliceId(node.first);
                let sum = self.sum(((commit, slice), slice), tensors, done.loss_scale);
                done.nodes.push((node, sum));
            }
        }
        problem.map_or(Ok(done), Err)
    }

    /// Computes one slice that was dealt out, a tree of its own.
    ///
    /// # Errors
    /// Data that can no longer be read.
    pub fn contribute_dealt(
        &mut self,
        replica: &mut dyn Replica,
        step: Step,
        slice: SliceId,
    ) -> Result<Contribution, DataError> {
        let mut done = Contribution { loss_scale: 1.0, ..Contribution::default() };
        let tensors = self.leaf(replica, step, slice, &mut done)?;
        done.headers.iter_mut().for_each(|header| header.slice = SliceId(0));
        let loss_scale = done.loss_scale;
        // Slices have no home: whoever computes makes up for what it lost itself.
        let sum = tensors.map(|tensors| self.sum(((step, slice), SliceId(0)), tensors, loss_scale));
        done.nodes.extend(sum.map(|sum| (Node::leaf(SliceId(0)), sum)));
        Ok(done)
    }

    /// A sum as it is pushed; one that is to be encoded is a slice's.
    fn sum(&mut self, of: ((Step, SliceId), SliceId), tensors: Tensors, loss_scale: f64) -> Sum {
        match &mut self.compressor {
            Some(compressor) => Sum::Encoded(Arc::new(compressor.encode(of, tensors, loss_scale))),
            None => Sum::Dense(Arc::new(tensors)),
        }
    }

    /// A round of local steps from `start`.
    fn round(
        &mut self,
        replica: &mut dyn Replica,
        local: &mut LocalTrainer,
        (commit, start): (Step, &Tensors),
        slice: SliceId,
        done: &mut Contribution,
    ) -> Result<Option<Tensors>, DataError> {
        let mut header = SliceHeader { slice, weight: 0.0, loss_sum: 0.0, finite: true };
        let (mut parameters, mut inner) = (start.clone(), local.begin(slice));
        for step in self.clock.steps_of(commit) {
            let times = &mut done.times;
            let batch = timed(&mut times.data, ("data", STEPS, step), || self.slice(Step(step), slice))?;
            if batch.rows == 0 {
                continue;
            }
            done.samples += batch.rows as u64;
            timed(&mut done.times.compute, ("compute", STEPS, step), || {
                replica.load(parameters.clone());
                let gradient = replica.gradient(batch, self.order.slice_seed(Step(step), slice), 1.0);
                header.weight += gradient.weight;
                header.loss_sum += gradient.loss_sum;
                header.finite &= gradient.finite;
                local.apply(&mut inner, &mut parameters, gradient, step);
            });
        }
        local.end(slice, inner);
        header.finite &= parameters::are_finite(&parameters);
        done.headers.push(header);
        Ok((header.weight > 0.0).then(|| local.contribution(start, parameters, header.weight)))
    }

    fn leaf(
        &mut self,
        replica: &mut dyn Replica,
        step: Step,
        slice: SliceId,
        done: &mut Contribution,
    ) -> Result<Option<Tensors>, DataError> {
        let batch = timed(&mut done.times.data, ("data", STEPS, step.0), || self.slice(step, slice))?;
        if batch.rows == 0 {
            done.headers.push(SliceHeader { slice, weight: 0.0, loss_sum: 0.0, finite: true });
            return Ok(None);
        }
        done.samples += batch.rows as u64;
        let (seed, loss_scale) = (self.order.slice_seed(step, slice), done.loss_scale);
        let compute = || replica.gradient(batch, seed, loss_scale);
        let gradient = timed(&mut done.times.compute, ("compute", STEPS, step.0), compute);
        let (weight, loss_sum, finite) = (gradient.weight, gradient.loss_sum, gradient.finite);
        done.headers.push(SliceHeader { slice, weight, loss_sum, finite });
        // A slice in which everything is masked is as absent as an empty one.
        Ok((weight > 0.0).then_some(gradient.tensors))
    }

    /// The held-out sample that is scored as number `number`: they are evenly spaced.
    fn scored_sample(&self, number: u64) -> u32 {
        (number * u64::from(self.data.info().test) / u64::from(self.scored.max(1))) as u32
    }

    /// Scores this worker's slices of the held-out data.
    ///
    /// # Errors
    /// Data that can no longer be read.
    pub fn evaluate(&self, replica: &dyn Replica, owned: &BTreeSet<SliceId>) -> Result<Vec<EvaluationPart>, DataError> {
        let at_once = evaluation_batch(self.data.info());
        let score = |slice: &SliceId| {
            let share = order::share(self.scored.into(), slice.0, self.order.slices);
            let mut sums = Evaluation::default();
            for start in share.clone().step_by(at_once as usize) {
                let end = (start + at_once).min(share.end);
                let samples = (start..end).map(|number| self.scored_sample(number));
                let batch = HostBatch::read(&*self.data, Part::Test, samples)?;
                let part = replica.evaluate(batch);
                sums.weight += part.weight;
                sums.loss_sum += part.loss_sum;
                sums.correct += part.correct;
            }
            let Evaluation { weight, loss_sum, correct } = sums;
            Ok(EvaluationPart { slice: *slice, weight, loss_sum, correct })
        };
        owned.iter().map(score).collect()
    }
}

/// How long a run is.
pub fn horizon(config: &Config, train: u32) -> Horizon {
    let steps_per_epoch = order_of(config, train).steps_per_epoch();
    let steps = match config.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => epochs * steps_per_epoch,
    };
    Horizon { steps, steps_per_epoch }
}

/// The order of a run's data, of which `train` samples are trained on.
pub fn order_of(config: &Config, train: u32) -> DataOrder {
    let Config { seed, batch_size: batch, slices, last_batch, .. } = *config;
    DataOrder { seed, samples: train, batch, slices, last_batch }
}

fn add(mut left: Tensors, right: Tensors) -> Tensors {
    for (left, right) in left.iter_mut().zip(&right) {
        sum::add(left, right);
    }
    left
}
