//! Decisions that are not a shard's own to give: what it brings to them, and what comes of them.

use std::sync::Mutex;

use convoy_proto::{
    ids::BlockId,
    manifest::TensorRole,
    messages::{Accumulated, Norms, Verdict},
};
use rayon::prelude::*;

use super::{
    super::{cell::Cell, open::Question},
    Outcome, Shard, lock,
};

impl Shard {
    /// Carries out the coordinator's verdict on the open step; one on an older step changes nothing.
    pub fn decide(&self, verdict: Verdict) -> Outcome {
        let step = verdict.step;
        let absent = {
            let mut state = lock(&self.state);
            if step != state.open.ledger.step() {
                return Outcome::default();
            }
            state.open.ledger.close(verdict);
            state.open.ledger.absent().clone()
        };
        self.sweep(step, &absent).and(self.take_up_chosen())
    }

    /// The shard's part in a decision that is not its own to give, once, when it has all that the decision needs.
    pub(super) fn report(&self) -> Option<Accumulated> {
        let question = {
            let mut state = lock(&self.state);
            let terms = self.terms(&state);
            state.open.question(self.sizes, &self.optimizer, terms)?
        };
        let (proposal, norms) = match question {
            Question::Clip(proposal) => (proposal, Norms::Gradient(self.measure(|c| c.sum_of_squares(self.tree)))),
            Question::Trust(verdict) => (verdict, Norms::Direction(self.measure(Cell::squares))),
        };
        Some(Accumulated { server: self.server, era: self.era, proposal, norms })
    }

    /// Measures every trainable cell, in order.
    fn measure<T: Send>(&self, measure: impl Fn(&Cell) -> T + Sync) -> Vec<(BlockId, T)> {
        let measure = |cell: &Mutex<Cell>| {
            let cell = lock(cell);
            (cell.block().role == TensorRole::Trainable).then(|| (cell.block().id, measure(&cell)))
        };
        self.cells.par_iter().filter_map(measure).collect()
    }
}
