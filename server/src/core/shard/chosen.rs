//! Where the coordinator chooses what is committed: a quorum of slices, or single pushes in the order that it gives.
//!
//! Pushes are staged whole. Once every shard has one, the coordinator may choose it, and its choice closes the same
//! steps with the same contents on every shard, in the same order.

use std::sync::MutexGuard;

use convoy_proto::{
    fates::Fate,
    ids::{BlockId, Member, SliceId, Step, WorkerId},
    messages::{Action, Extent, GradientBlock, PushHeader, PushId, Staged, Verdict, Weights},
};
use rayon::prelude::*;

use super::{
    super::{
        cell::Cell,
        fences::own,
        refusal::Refusal,
        versions::{Lookup, Version},
    },
    Outcome, Push, Shard, admit, lock,
};

/// The newest parameters: the step that starts from them, and their blocks.
pub type Snapshot = (Step, Vec<(BlockId, Version)>);

impl Shard {
    /// Opens a push that will be staged.
    pub(super) fn open_staged(&self, header: &PushHeader, mut push: Push) -> Result<(Push, Outcome), Refusal> {
        let is_empty = !push.announced.values().any(|weighs| *weighs);
        {
            let mut state = lock(&self.state);
            let open = admit(&state, header)?;
            if header.loss_scale != 1.0 {
                return Err(Refusal::LossScale { ours: 1.0, theirs: header.loss_scale });
            }
            if header.step > open {
                return Err(Refusal::Step { asked: header.step, open });
            }
            if self.mode.is_dealt() {
                self.check_slice(header)?;
            } else if header.step.next() == open {
                push.is_over = true;
            } else if header.step < open {
                return Err(Refusal::Missed { asked: header.step, open });
            } else {
                own(&state.view, header)?;
            }
            push.is_over = push.is_over || !state.staging.begin(header)?;
        }
        // Without weight, or on a shard that training does not change, there are no blocks to wait for.
        let is_whole = is_empty || self.sizes.trained == 0;
        let staged = if push.is_over || !is_whole { None } else { self.report_staged(push.id, 0) };
        Ok((push, Outcome { staged, ..Outcome::default() }))
    }

    /// A slice that was dealt out is a tree of its own.
    fn check_slice(&self, header: &PushHeader) -> Result<(), Refusal> {
        match header.slices.as_slice() {
            [one] if one.slice == SliceId(0) => Ok(()),
            _ => Err(Refusal::Node(self.tree.root(), 1)),
        }
    }

    /// Keeps one block's part of a push.
    pub(super) fn stage(&self, push: &Push, mut cell: MutexGuard<'_, Cell>, part: &GradientBlock) -> Outcome {
        let step = (!self.mode.is_dealt()).then_some(push.step);
        if step.is_some_and(|step| step != cell.step()) {
            return Outcome::default();
        }
        let present = push.announced.iter().filter(|(_, weighs)| **weighs);
        let present: Vec<SliceId> = present.map(|(slice, _)| *slice).collect();
        let is_filled = cell.stage((push.id, step), &present, part);
        drop(cell);
        if is_filled {
            lock(&self.state).staging.filled(push.id);
        }
        let staged = if is_filled { self.report_staged(push.id, self.sizes.trained) } else { None };
        Outcome { staged, fresh: true, ..Outcome::default() }
    }

    fn report_staged(&self, push: PushId, cells: usize) -> Option<Staged> {
        let mut state = lock(&self.state);
        let header = state.staging.report(push, cells)?;
        Some(Staged { server: self.server, era: self.era, header })
    }

    /// Carries out what the coordinator chose, as soon as its step is open; a choice that is known changes nothing.
    pub fn choose(&self, chosen: Verdict) -> Outcome {
        {
            let mut state = lock(&self.state);
            if chosen.step < state.open.ledger.step() {
                return Outcome::default();
            }
            state.chosen.entry(chosen.step).or_insert(chosen);
        }
        self.take_up_chosen()
    }

    /// Sums up what was chosen for the open step, and for those after it as far as they open.
    pub(super) fn take_up_chosen(&self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            let (chosen, absent) = {
                let mut state = lock(&self.state);
                let open = state.open.ledger.step();
                state.chosen.retain(|step, _| *step >= open);
                if state.open.ledger.is_chosen() {
                    return outcome;
                }
                let Some(chosen) = state.chosen.remove(&open) else { return outcome };
                state.open.ledger.choose(chosen.clone());
                if self.optimizer.clip_norm.is_none() || chosen.action == Action::SkipNonFinite {
                    state.open.ledger.close(chosen.clone());
                }
                (chosen, state.open.ledger.absent().clone())
            };
            let taken = self.sweep_with(chosen.step, |cell| cell.take_up(self.tree, &chosen, &absent));
            outcome = outcome.and(taken);
        }
    }

    /// The coordinator dropped a push.
    pub fn drop_push(&self, push: PushId) -> Outcome {
        lock(&self.state).staging.end(push, Fate::Dropped);
        self.discard(push);
        Outcome { changed: true, ..Outcome::default() }
    }

    pub(super) fn discard(&self, push: PushId) {
        self.cells.par_iter().for_each(|cell| lock(cell).discard(push));
    }

    /// Copies parts of sums that are still where they came from, so that nothing else has to stay there.
    pub fn own_parts(&self) {
        self.cells.par_iter().for_each(|cell| lock(cell).own());
    }

    /// What became of a push.
    pub fn fate(&self, push: PushId) -> Fate {
        lock(&self.state).staging.fate(push)
    }

    /// The newest parameters of whole commits, for a member to compute with.
    ///
    /// # Errors
    /// There are none yet.
    pub fn newest(&self, member: Member, (weights, extent): (Weights, Extent)) -> Result<Snapshot, Refusal> {
        if !self.is_initialised() {
            return Err(Refusal::NotInitialised);
        }
        let remembers = self.optimizer.compensation > 0.0;
        loop {
            let step = self.open_step();
            let version = |cell: &std::sync::Mutex<Cell>| {
                let mut cell = lock(cell);
                let (block, is_trained) = (cell.block().id, cell.block().role.is_trained());
                if extent == Extent::Trained && !is_trained {
                    return None;
                }
                let step = if is_trained { step } else { cell.step() };
                let found = cell.version(step, weights);
                if let (Lookup::Ready(version), true) = (&found, remembers) {
                    cell.remember(WorkerId(member.rank), version.clone());
                }
                Some((block, found))
            };
            let found: Vec<_> = self.cells.iter().filter_map(version).collect();
            let ready: Option<Vec<_>> = found
                .into_iter()
                .map(|(block, found)| match found {
                    Lookup::Ready(version) => Some((block, version)),
                    Lookup::Pending | Lookup::Gone => None,
                })
                .collect();
            // Two commits passed since the step was read: look again.
            if let Some(ready) = ready {
                return Ok((step, ready));
            }
        }
    }
}
