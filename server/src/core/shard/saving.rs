//! Snapshots of a shard for checkpoints, and shards made of them.
//!
//! Each cell keeps a commit that is due when it makes it, so that all of a shard's parts are of one commit although
//! training goes on. A commit that is asked for on the way may be over already; then nothing is kept and another is
//! asked for.

use std::collections::VecDeque;

use convoy_proto::{
    ids::{ShardId, Step},
    loss_scale::LossScale,
    manifest::TensorRole,
    messages::{DealtSlice, Verdict},
};

use super::{
    super::kept::{Keeping, RestoreError, Snapshot, Used},
    OpenStep, Outcome, Shard, State, lock,
};

impl Shard {
    /// Whether a checkpoint needs the parameters that a commit starts from.
    pub(super) fn is_kept(&self, state: &State, commit: Step) -> bool {
        self.clock.is_due(commit, self.save_every) || state.wanted.contains(&commit)
    }

    /// Keeps what a commit starts from, now or when it is made. Asked again for the same, does nothing.
    ///
    /// # Errors
    /// It is over; the commit that is open.
    pub fn save_at(&self, commit: Step) -> Result<Outcome, Step> {
        let is_open = {
            let mut state = lock(&self.state);
            if state.asked == Some(commit) || self.is_kept(&state, commit) {
                return Ok(Outcome::default());
            }
            state.asked = Some(commit);
            let open = state.open.ledger.step();
            if commit < open || state.uninitialised > 0 {
                return Err(open);
            }
            state.wanted.insert(commit);
            // Until every cell knows, nothing is handed over.
            state.keeping = Some(commit);
            commit == open
        };
        let trained = || self.cells.iter().filter(|cell| lock(cell).block().role.is_trained());
        if trained().any(|cell| lock(cell).keep_at(commit) == Keeping::TooLate) {
            let mut state = lock(&self.state);
            state.keeping = None;
            state.wanted.remove(&commit);
            state.formed.retain(|(formed, _)| *formed != commit);
            let open = state.open.ledger.step();
            drop(state);
            self.cells.iter().for_each(|cell| drop(lock(cell).take_kept(commit)));
            return Err(open);
        }
        {
            let mut state = lock(&self.state);
            state.keeping = None;
            if is_open {
                let formed = (commit, state.loss_scale);
                state.formed.push_back(formed);
            }
        }
        Ok(self.hand_over(Outcome::default()))
    }

    /// Takes down what a commit used. One shard does it for all, which commit the same.
    pub(super) fn account(&self, state: &mut State, verdict: &Verdict) {
        if self.id != ShardId(0) {
            return;
        }
        let dealt = verdict.push.and_then(|push| state.staging.dealt(push));
        let steps = self.clock.steps_of(verdict.step);
        state.used.push(match dealt {
            Some(DealtSlice { step, slice }) => {
                let slices = verdict.slices.iter().map(|_| slice).collect();
                Used { commit: verdict.step, step, steps: 1, slices }
            }
            None => Used {
                commit: verdict.step,
                step: steps.start,
                steps: steps.end - steps.start,
                slices: verdict.slices.clone(),
            },
        });
    }

    /// An outcome, with what has come about beside it.
    pub(super) fn hand_over(&self, mut outcome: Outcome) -> Outcome {
        let formed = {
            let mut state = lock(&self.state);
            outcome.used.append(&mut state.used);
            let keeping = state.keeping;
            let (ready, rest) = std::mem::take(&mut state.formed)
                .into_iter()
                .partition::<VecDeque<_>, _>(|(commit, _)| Some(*commit) != keeping);
            state.formed = rest;
            ready
        };
        outcome.snapshots.extend(formed.into_iter().filter_map(|formed| self.snapshot(formed)));
        outcome
    }

    /// A commit that is whole on this shard and is to be kept.
    fn snapshot(&self, (commit, loss_scale): (Step, LossScale)) -> Option<Snapshot> {
        lock(&self.state).wanted.remove(&commit);
        let blocks: Vec<_> = self.cells.iter().map(|cell| lock(cell).take_kept(commit)).collect();
        // Some may lack if it was asked for too late, which whoever asks is told.
        let blocks = blocks.into_iter().collect::<Option<_>>()?;
        Some(Snapshot { commit, loss_scale, blocks })
    }

    /// Takes the shard, which has no parameters yet, from a snapshot of its blocks.
    ///
    /// # Errors
    /// Other blocks, or another optimizer's state.
    pub fn restore(&self, snapshot: Snapshot) -> Result<(), RestoreError> {
        let mut kept = snapshot.blocks.into_iter().peekable();
        for cell in &self.cells {
            let mut cell = lock(cell);
            let (want, len) = (cell.block().id, cell.block().len as usize);
            let found = kept.next_if(|kept| kept.block == want).ok_or(RestoreError::Block { want })?;
            if found.parameters.len() != len {
                return Err(RestoreError::Length { block: want, got: found.parameters.len(), want: len });
            }
            let (got, slots) = (found.state.len(), self.optimizer.rule.slots());
            if cell.block().role == TensorRole::Trainable && got != slots {
                return Err(RestoreError::Slots { block: want, got, want: slots });
            }
            cell.restore(snapshot.commit, found, &self.optimizer);
        }
        let mut state = lock(&self.state);
        state.uninitialised = 0;
        state.open = OpenStep::new(self.tree, snapshot.commit);
        state.loss_scale = state.loss_scale.at(snapshot.loss_scale.get(), snapshot.loss_scale.clean());
        Ok(())
    }
}
