//! Stale synchronous parallel (Ho et al., "More effective distributed ML via a stale synchronous parallel parameter
//! server", 2013): as asynchronous, but nobody begins a step while more than so many ahead of the slowest.

use super::{Pace, Policy, Tally, asp::Asp};

/// `--ssp K`.
#[derive(Clone, Copy, Debug)]
pub struct Ssp {
    /// K.
    pub bound: u64,
    /// What it has in common with asynchronous runs.
    pub asp: Asp,
}

impl Policy for Ssp {
    fn may_commit(&self, tally: Tally) -> bool {
        self.asp.may_commit(tally)
    }

    fn may_go_on(&self, pace: Pace) -> bool {
        pace.own.saturating_sub(pace.slowest) <= self.bound
    }

    fn rate_factor(&self, staleness: u64) -> f64 {
        self.asp.rate_factor(staleness)
    }
}
