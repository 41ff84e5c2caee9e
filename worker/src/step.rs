//! One step's work: the slices that a worker owns, and its share of an evaluation.
//!
//! Knows no connection: what comes out are headers and sums over nodes of the slice tree.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use convoy_proto::{
    config::Config,
    ids::{SliceId, Step},
    messages::{EvaluationPart, SliceHeader, StepTimes},
    order::{self, DataOrder},
    sum,
    tree::{self, Node, SliceTree},
};

use crate::{
    data::{Dataset, HostBatch, Part},
    learner::{Evaluation, Replica},
    parameters::Tensors,
};

/// Samples that are scored at once.
const EVALUATION_BATCH: u64 = 250;

/// What a worker contributes to a step.
#[derive(Clone, Debug, Default)]
pub struct Contribution {
    /// One a slice, empty ones included.
    pub headers: Vec<SliceHeader>,
    /// Sums over the fewest nodes that cover the slices.
    pub nodes: Vec<(Node, Arc<Tensors>)>,
    /// Samples that were computed.
    pub samples: u64,
    /// Time for data and compute; the rest is zero.
    pub times: StepTimes,
}

/// The data of a run, in the run's order.
pub struct Feed {
    data: Arc<dyn Dataset>,
    order: DataOrder,
    tree: SliceTree,
    epoch: Option<(u64, Vec<u32>)>,
}

impl std::fmt::Debug for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("order", &self.order).finish_non_exhaustive()
    }
}

impl Feed {
    /// The data in the order that the configuration asks for.
    pub fn new(data: Arc<dyn Dataset>, config: &Config) -> Feed {
        let order = order_of(config, data.info().train);
        Feed { data, order, tree: SliceTree::new(config.slices), epoch: None }
    }

    /// The samples of a slice.
    pub fn slice(&mut self, step: Step, slice: SliceId) -> HostBatch {
        let epoch = self.order.epoch(step);
        if self.epoch.as_ref().is_none_or(|(cached, _)| *cached != epoch) {
            self.epoch = Some((epoch, self.order.epoch_order(epoch)));
        }
        let samples = self.epoch.as_ref().map_or(&[][..], |(_, order)| &order[self.order.range(step, slice)]);
        HostBatch::read(&*self.data, Part::Train, samples.iter().copied())
    }

    /// Computes the slices in `owned` and adds them up as far as the tree allows.
    pub fn contribute(&mut self, replica: &mut dyn Replica, step: Step, owned: &BTreeSet<SliceId>) -> Contribution {
        let mut done = Contribution::default();
        for node in self.tree.cover(owned) {
            let mut leaf = |slice| self.leaf(replica, step, slice, &mut done);
            if let Some(tensors) = tree::fold(node, &mut leaf, &mut add) {
                done.nodes.push((node, Arc::new(tensors)));
            }
        }
        done
    }

    fn leaf(
        &mut self,
        replica: &mut dyn Replica,
        step: Step,
        slice: SliceId,
        done: &mut Contribution,
    ) -> Option<Tensors> {
        let start = Instant::now();
        let batch = self.slice(step, slice);
        done.times.data += start.elapsed().as_secs_f64();
        if batch.is_empty() {
            done.headers.push(SliceHeader { slice, weight: 0.0, loss_sum: 0.0, finite: true });
            return None;
        }
        done.samples += batch.len() as u64;
        let start = Instant::now();
        let gradient = replica.gradient(batch, self.order.slice_seed(step, slice));
        done.times.compute += start.elapsed().as_secs_f64();
        let (weight, loss_sum, finite) = (gradient.weight, gradient.loss_sum, gradient.finite);
        done.headers.push(SliceHeader { slice, weight, loss_sum, finite });
        // A slice in which everything is masked is as absent as an empty one.
        (weight > 0.0).then_some(gradient.tensors)
    }

    /// Scores this worker's slices of the held-out data.
    pub fn evaluate(&self, replica: &dyn Replica, owned: &BTreeSet<SliceId>) -> Vec<EvaluationPart> {
        let score = |slice: &SliceId| {
            let share = order::share(self.data.info().test.into(), slice.0, self.order.slices);
            let mut sums = Evaluation::default();
            for start in share.clone().step_by(EVALUATION_BATCH as usize) {
                let end = (start + EVALUATION_BATCH).min(share.end);
                let batch = HostBatch::read(&*self.data, Part::Test, start as u32..end as u32);
                let part = replica.evaluate(batch);
                sums.weight += part.weight;
                sums.loss_sum += part.loss_sum;
                sums.correct += part.correct;
            }
            let Evaluation { weight, loss_sum, correct } = sums;
            EvaluationPart { slice: *slice, weight, loss_sum, correct }
        };
        owned.iter().map(score).collect()
    }
}

/// The order of a run's data, of which `train` samples are trained on.
pub fn order_of(config: &Config, train: u32) -> DataOrder {
    DataOrder { seed: config.seed, samples: train, batch: config.batch_size, slices: config.slices }
}

fn add(mut left: Tensors, right: Tensors) -> Tensors {
    for (left, right) in left.iter_mut().zip(&right) {
        sum::add(left, right);
    }
    left
}
