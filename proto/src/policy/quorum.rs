//! Synchronous steps with backup workers (Chen et al., "Revisiting distributed synchronous SGD", 2016): a step commits
//! when enough slices are in, and the rest are dropped.

use super::{Pace, Policy, Tally};

/// `--sync --quorum Q`.
#[derive(Clone, Copy, Debug)]
pub struct Partial {
    /// How many slices are enough.
    pub needed: u32,
}

impl Policy for Partial {
    fn may_commit(&self, tally: Tally) -> bool {
        tally.arrived >= self.needed.min(tally.slices)
    }

    /// Ahead of the open step is nothing to begin; whoever is behind takes up with it.
    fn may_go_on(&self, pace: Pace) -> bool {
        pace.own <= pace.slowest
    }
}
