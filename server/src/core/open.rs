//! The open step of a shard: its ledger, how far its cells have come, and what has been asked of the coordinator.

use std::sync::Arc;

use convoy_proto::{
    ids::Step,
    messages::{Action, Terms, Verdict},
    optimizer::Optimizer,
    tree::SliceTree,
};

use super::{cell::Progress, ledger::Ledger};

/// How many cells of a shard take part in a step.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Those that training changes.
    pub trained: usize,
    /// Those of them that the optimizer updates.
    pub trainable: usize,
}

/// What needs all shards, and the verdict as it stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// The factor that clips the mean gradient.
    Clip(Verdict),
    /// The factors of tensors, under a layerwise rule.
    Trust(Verdict),
}

/// The open step.
#[derive(Clone, Debug)]
pub struct OpenStep {
    /// Headers and the verdict.
    pub ledger: Ledger,
    /// Cells whose sum is complete, that have a direction, and that have carried out the verdict.
    complete: usize,
    directed: usize,
    applied: usize,
    asked_clip: bool,
    asked_trust: bool,
}

impl OpenStep {
    /// A step of which nothing is known yet.
    pub fn new(tree: SliceTree, step: Step) -> OpenStep {
        OpenStep {
            ledger: Ledger::new(tree, step),
            complete: 0,
            directed: 0,
            applied: 0,
            asked_clip: false,
            asked_trust: false,
        }
    }

    /// A cell's sum is complete.
    pub fn completed(&mut self) {
        self.complete += 1;
    }

    /// A cell went on with the verdict.
    pub fn progressed(&mut self, progress: Progress) {
        match progress {
            Progress::Waiting => {}
            Progress::Directed => self.directed += 1,
            Progress::Applied => self.applied += 1,
        }
    }

    /// The verdict, once every cell has carried it out to the end.
    pub fn ended(&self, sizes: Sizes, optimizer: &Optimizer) -> Option<&Arc<Verdict>> {
        let verdict = self.ledger.verdict().filter(|verdict| optimizer.is_final(verdict));
        verdict.filter(|_| self.applied >= sizes.trained)
    }

    /// What has to be asked now; each question comes once.
    pub fn question(&mut self, sizes: Sizes, optimizer: &Optimizer, terms: Terms) -> Option<Question> {
        match self.ledger.verdict() {
            None if optimizer.clip_norm.is_some() && !self.asked_clip && self.complete >= sizes.trained => {
                let proposal = self.ledger.proposal(terms)?;
                self.asked_clip = true;
                Some(Question::Clip(proposal))
            }
            Some(verdict)
                if verdict.action == Action::Apply
                    && !optimizer.is_final(verdict)
                    && !self.asked_trust
                    && self.directed >= sizes.trainable =>
            {
                self.asked_trust = true;
                Some(Question::Trust(Verdict::clone(verdict)))
            }
            _ => None,
        }
    }
}
