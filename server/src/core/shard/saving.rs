//! Snapshots of a shard for checkpoints and for other copies of it, and shards made of them.
//!
//! Each cell keeps a commit that is due when it makes it, so that all of a shard's parts are of one commit although
//! training goes on. A commit that is asked for on the way may be over already; then nothing is kept and another is
//! asked for.

use std::{collections::VecDeque, sync::Arc};

use convoy_proto::{
    ids::{Generation, ShardId, Step},
    loss_scale::LossScale,
    manifest::TensorRole,
    messages::{DealtSlice, Verdict},
};

use super::{
    super::kept::{Formed, Keeping, RestoreError, Snapshot, Used},
    OpenStep, Outcome, Shard, State, lock,
};

impl Shard {
    /// Whether a checkpoint, or a copy, needs the parameters that a commit starts from.
    pub(super) fn is_kept(&self, state: &State, commit: Step) -> bool {
        self.is_due(commit) || state.wanted.contains(&commit) || state.copied.contains(&commit)
    }

    fn is_due(&self, commit: Step) -> bool {
        self.clock.is_due(commit, self.save_every)
    }

    /// Keeps what a commit starts from for a checkpoint, now or when it is made. Asked again for the same, does nothing.
    ///
    /// # Errors
    /// It is over; the commit that is open.
    pub fn save_at(&self, commit: Step) -> Result<Outcome, Step> {
        let is_open = {
            let mut state = lock(&self.state);
            if state.asked == Some(commit) || self.is_due(commit) {
                return Ok(Outcome::default());
            }
            state.asked = Some(commit);
            let open = state.open.ledger.step();
            if commit < open || state.uninitialised > 0 {
                return Err(open);
            }
            state.wanted.insert(commit);
            state.keeping = Some(commit);
            commit == open
        };
        self.keep(commit, is_open)
    }

    /// Keeps what a commit starts from for another copy of the shard, which takes part from then on: whoever pushes to
    /// that commit or a later one has to know of it, by the membership of this version.
    ///
    /// # Errors
    /// It is over, or somebody may have pushed to it already; the commit that is open.
    pub fn copy_at(&self, commit: Step, generation: Generation) -> Result<Outcome, Step> {
        let is_open = {
            let mut state = lock(&self.state);
            let open = state.open.ledger.step();
            // Where slices are dealt out, none is in anybody's hand when another server comes.
            let is_late = if self.mode.is_dealt() { open > commit } else { open >= commit };
            if is_late || state.uninitialised > 0 {
                return Err(open);
            }
            state.gate = Some((commit, generation)).filter(|_| !self.mode.is_dealt());
            state.copied.insert(commit);
            state.keeping = Some(commit);
            commit == open
        };
        self.keep(commit, is_open)
    }

    /// Has every cell keep a commit. Until all know, nothing is handed over.
    fn keep(&self, commit: Step, is_open: bool) -> Result<Outcome, Step> {
        let trained = || self.cells.iter().filter(|cell| lock(cell).block().role.is_trained());
        if trained().any(|cell| lock(cell).keep_at(commit) == Keeping::TooLate) {
            let mut state = lock(&self.state);
            state.keeping = None;
            state.wanted.remove(&commit);
            state.copied.remove(&commit);
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
        outcome.formed.extend(formed.into_iter().filter_map(|formed| self.snapshot(formed)));
        outcome
    }

    /// A commit that is whole on this shard and is to be kept.
    fn snapshot(&self, (commit, loss_scale): (Step, LossScale)) -> Option<Formed> {
        let (is_saved, is_copied) = {
            let mut state = lock(&self.state);
            let is_saved = (state.wanted.remove(&commit) | self.is_due(commit)) && state.saved != Some(commit);
            state.saved = if is_saved { Some(commit) } else { state.saved };
            (is_saved, state.copied.remove(&commit))
        };
        let blocks: Vec<_> = self.cells.iter().map(|cell| lock(cell).take_kept(commit)).collect();
        // Some may lack if it was asked for too late, which whoever asks is told.
        let blocks = blocks.into_iter().collect::<Option<_>>()?;
        Some(Formed { snapshot: Arc::new(Snapshot { commit, loss_scale, blocks }), is_saved, is_copied })
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
            let average = found.average.iter().map(|average| average.len());
            let mut lengths =
                std::iter::once(found.parameters.len()).chain(average).chain(found.state.iter().map(Vec::len));
            if let Some(got) = lengths.find(|got| *got != len) {
                return Err(RestoreError::Length { block: want, got, want: len });
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
