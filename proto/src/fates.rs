//! What became of pushes, for whoever asks again.
//!
//! Pushes of one worker are over in the order of their numbers, so one before a push that is over is over, too, even if
//! what became of it is forgotten.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    ids::Incarnation,
    messages::{PushId, Verdict},
};

/// How many are remembered: more than can be on their way between servers and coordinator.
const REMEMBERED: usize = 256;

/// What became of a push.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate {
    /// It is not known yet.
    Open,
    /// The verdict that commits it, or closes its step.
    Decided(Verdict),
    /// It is dropped.
    Dropped,
}

/// The pushes that are over.
#[derive(Clone, Debug, Default)]
pub struct Fates {
    over: BTreeMap<PushId, Fate>,
    /// In the order in which they ended.
    order: VecDeque<PushId>,
}

impl Fates {
    /// What became of a push.
    pub fn of(&self, id: PushId) -> Fate {
        let last = PushId { incarnation: Incarnation(u64::MAX), sequence: u64::MAX, ..id };
        match self.over.range(id..=last).next() {
            Some((found, fate)) if *found == id => fate.clone(),
            Some(_) => Fate::Dropped,
            None => Fate::Open,
        }
    }

    /// A push is over; what is known of it stays.
    pub fn end(&mut self, id: PushId, fate: Fate) {
        if self.of(id) != Fate::Open {
            return;
        }
        self.over.insert(id, fate);
        self.order.push_back(id);
        if self.order.len() > REMEMBERED {
            self.order.pop_front().map(|oldest| self.over.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{SliceId, Step, WorkerId},
        messages::{SliceHeader, Terms},
        tree::SliceTree,
    };

    fn push(worker: u32, incarnation: u64, sequence: u64) -> PushId {
        PushId { worker: WorkerId(worker), incarnation: Incarnation(incarnation), sequence }
    }

    fn decided(step: u64) -> Fate {
        let header = SliceHeader { slice: SliceId(0), weight: 1.0, loss_sum: 1.0, finite: true };
        let terms = Terms { learning_rate: 0.1, loss_scale: 1.0 };
        Fate::Decided(Verdict::from_headers(Step(step), SliceTree::new(1), &[header], terms))
    }

    #[test]
    fn what_is_over_stays_over_and_so_does_what_came_before() {
        let mut fates = Fates::default();
        assert_eq!(fates.of(push(1, 1, 5)), Fate::Open);
        fates.end(push(1, 1, 5), decided(3));
        fates.end(push(1, 1, 5), Fate::Dropped);
        assert_eq!((fates.of(push(1, 1, 5)), fates.of(push(1, 1, 4))), (decided(3), Fate::Dropped));
        assert_eq!((fates.of(push(1, 1, 6)), fates.of(push(0, 1, 4))), (Fate::Open, Fate::Open));
        // Another process in the same place does not make the first one's last push forgotten.
        fates.end(push(1, 2, 9), decided(4));
        assert_eq!((fates.of(push(1, 1, 5)), fates.of(push(1, 1, 6))), (decided(3), Fate::Dropped));
    }

    #[test]
    fn old_ones_are_forgotten_but_not_open_again() {
        let mut fates = Fates::default();
        (0..1000).for_each(|sequence| fates.end(push(0, 1, sequence), decided(sequence)));
        assert_eq!((fates.of(push(0, 1, 0)), fates.of(push(0, 1, 999))), (Fate::Dropped, decided(999)));
        assert_eq!(fates.over.len(), REMEMBERED);
    }
}
