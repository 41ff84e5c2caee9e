//! Rounds of local steps (Douillard et al., "DiLoCo: distributed low-communication training of language models", 2023):
//! a round commits when all its slices are in. What is local about it is the worker's affair.

use super::{Pace, Policy, Tally, bsp::Bsp};

/// `--local-steps H`.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl Policy for Local {
    fn may_commit(&self, tally: Tally) -> bool {
        Bsp.may_commit(tally)
    }

    fn may_go_on(&self, pace: Pace) -> bool {
        Bsp.may_go_on(pace)
    }
}
