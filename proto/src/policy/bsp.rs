//! Bulk synchronous parallel (Valiant, 1990): a step commits when all its slices are in.

use super::{Pace, Policy, Tally};

/// `--sync`.
#[derive(Clone, Copy, Debug)]
pub struct Bsp;

impl Policy for Bsp {
    fn may_commit(&self, tally: Tally) -> bool {
        tally.arrived == tally.slices
    }

    fn may_go_on(&self, pace: Pace) -> bool {
        pace.own <= pace.slowest
    }
}
