//! Who computes which slices: a function of the membership.

use std::collections::BTreeSet;

use convoy_proto::{
    ids::{SliceId, WorkerId},
    messages, order,
};

use super::Cluster;

impl Cluster {
    /// The slices that a worker owns.
    pub fn owned_by(&self, worker: WorkerId) -> BTreeSet<SliceId> {
        messages::owned(&self.owners(), worker)
    }

    /// How many slices a worker computes at once.
    pub(super) fn slices_in_hand(&self, worker: WorkerId) -> usize {
        if self.config.mode.is_dealt() { 1 } else { self.owned_by(worker).len().max(1) }
    }

    /// By slice, who computes it: the living share them evenly; before anybody is there, the places that they will take.
    /// Whoever is beyond the number of slices is a spare.
    pub(super) fn owners(&self) -> Vec<WorkerId> {
        let slices = self.config.slices;
        let places: Vec<_> = self.places().map(|(worker, _)| worker).collect();
        let mut owners = vec![WorkerId(0); slices as usize];
        let parts = slices.min(places.len() as u32);
        for (part, worker) in (0..parts).zip(&places) {
            for slice in order::share(slices.into(), part, parts) {
                owners[slice as usize] = *worker;
            }
        }
        owners
    }
}
