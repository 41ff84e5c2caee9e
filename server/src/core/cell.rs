//! A block's cell: its parameters in two versions, its sum in progress and its optimizer's state.
//!
//! Versions are immutable and shared with whoever reads them. Applying step `s` makes version `s + 1` and keeps
//! version `s`, so that step `s` can be recomputed until a later step is applied, which needs every worker to have
//! read version `s + 1` from every shard.

use std::{collections::BTreeSet, sync::Arc};

use convoy_proto::{
    blocks::Block,
    ids::{SliceId, Step},
    messages::{Action, Verdict},
    sum,
    tree::{Node, SliceTree},
};

use super::{
    accumulator::{Accumulator, Inserted},
    optimizer::{Optimizer, Update},
};

/// The parameters of one block at one step.
pub type Version = Arc<Vec<f32>>;

/// What a cell says of a version.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// Here it is.
    Ready(Version),
    /// Not formed yet.
    Pending,
    /// Formed once, and gone.
    Gone,
}

/// One block of the shard.
#[derive(Debug)]
pub struct Cell {
    block: Block,
    /// The version that `newest` is; meaningless before it is set.
    step: Step,
    newest: Option<Version>,
    previous: Option<Version>,
    accumulator: Accumulator,
    /// Whether the open step's sum has been found complete.
    complete: bool,
    state: Vec<Vec<f32>>,
    updates: u64,
}

impl Cell {
    /// An empty cell: no parameters yet.
    pub fn new(block: Block) -> Cell {
        Cell {
            block,
            step: Step(0),
            newest: None,
            previous: None,
            accumulator: Accumulator::default(),
            complete: false,
            state: Vec::new(),
            updates: 0,
        }
    }

    /// The block it holds.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// The step that its newest parameters are the input of.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Whether it has parameters.
    pub fn is_initialised(&self) -> bool {
        self.newest.is_some()
    }

    /// Sets the parameters of step 0 from a payload of the block's size.
    pub fn initialise(&mut self, payload: &[u8], slots: usize) {
        let mut values = vec![0.0; self.block.len as usize];
        sum::read_payload(&mut values, payload);
        self.newest = Some(Arc::new(values));
        self.state = vec![vec![0.0; self.block.len as usize]; slots];
    }

    /// The parameters that `step` starts from.
    pub fn version(&self, step: Step) -> Lookup {
        let found = if step == self.step {
            &self.newest
        } else if step.next() == self.step {
            &self.previous
        } else if step < self.step {
            return Lookup::Gone;
        } else {
            &None
        };
        found.clone().map_or(Lookup::Pending, Lookup::Ready)
    }

    /// Adds a contribution to the open step.
    pub fn accumulate(&mut self, tree: SliceTree, node: Node, payload: &[u8], absent: &BTreeSet<SliceId>) -> Inserted {
        self.accumulator.insert(tree, node, payload, absent)
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
        self.accumulator.sum(tree).map_or(0.0, sum::sum_of_squares)
    }

    /// Carries out the verdict on the open step, if the sum it needs is complete. Returns whether it did.
    pub fn apply(&mut self, tree: SliceTree, verdict: &Verdict, optimizer: &dyn Optimizer) -> bool {
        let Some(newest) = self.newest.clone() else { return false };
        let updated = match verdict.action {
            Action::SkipNonFinite => newest.clone(),
            Action::Apply => match self.accumulator.take(tree) {
                None => return false,
                Some(gradient) => self.update(&newest, gradient, verdict, optimizer),
            },
        };
        self.accumulator.clear();
        self.complete = false;
        self.previous = Some(newest);
        self.newest = Some(updated);
        self.step = self.step.next();
        true
    }

    fn update(&mut self, newest: &Version, mut gradient: Vec<f32>, verdict: &Verdict, rule: &dyn Optimizer) -> Version {
        let weight = verdict.weight as f32;
        gradient.iter_mut().for_each(|g| *g /= weight);
        if verdict.clip != 1.0 {
            let clip = verdict.clip as f32;
            gradient.iter_mut().for_each(|g| *g *= clip);
        }
        // The version before the last is nobody's input any more: its memory serves again unless somebody reads it.
        let recycled = self.previous.take().and_then(Arc::into_inner);
        let mut updated = recycled.unwrap_or_else(|| vec![0.0; newest.len()]);
        rule.apply(Update {
            updates: self.updates,
            learning_rate: verdict.learning_rate as f32,
            gradient: &gradient,
            parameters: newest,
            updated: &mut updated,
            state: &mut self.state,
        });
        self.updates += 1;
        Arc::new(updated)
    }
}
