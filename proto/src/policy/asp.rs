//! Asynchronous parallel (Dean et al., "Large scale distributed deep networks", 2012): each push commits by itself.

use super::{Pace, Policy, Tally, by_staleness};
use crate::config::Staleness;

/// `--async`.
#[derive(Clone, Copy, Debug)]
pub struct Asp {
    /// What is done about gradients of parameters that have changed since.
    pub staleness: Staleness,
}

impl Policy for Asp {
    fn may_commit(&self, tally: Tally) -> bool {
        tally.arrived > 0
    }

    fn may_go_on(&self, _pace: Pace) -> bool {
        true
    }

    fn rate_factor(&self, staleness: u64) -> f64 {
        by_staleness(self.staleness, staleness)
    }
}
