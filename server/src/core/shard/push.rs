//! A push in progress, and what a call changed.

use std::collections::BTreeMap;

use convoy_proto::{
    ids::{SliceId, Step},
    messages::{Accumulated, PushId, Staged},
    tree::Node,
};

use super::super::kept::{Formed, Used};

/// Permission to push blocks to a step, from [`Shard::open`].
#[derive(Clone, Debug, PartialEq)]
pub struct Push {
    /// The step.
    pub step: Step,
    /// Its name.
    pub id: PushId,
    /// The slices that were announced, by whether they carry weight.
    pub(super) announced: BTreeMap<SliceId, bool>,
    /// Whether it was over before it began: a repetition, or too late. Its blocks change nothing.
    pub(super) is_over: bool,
}

impl Outcome {
    /// Both outcomes in one.
    pub(super) fn and(self, other: Outcome) -> Outcome {
        Outcome {
            changed: self.changed | other.changed,
            used: [self.used, other.used].concat(),
            formed: [self.formed, other.formed].concat(),
            accumulated: self.accumulated.or(other.accumulated),
            staged: self.staged.or(other.staged),
            fresh: self.fresh | other.fresh,
        }
    }
}

impl Push {
    pub(super) fn allows(&self, node: Node) -> bool {
        let mut weighs = false;
        node.slices().all(|slice| self.announced.get(&slice).inspect(|w| weighs |= **w).is_some()) && weighs
    }
}

/// What a call changed, and what must be done about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Whether a version was formed, the step committed, or pushes may go further: whoever waits for that looks again.
    pub changed: bool,
    /// The shard is ready for a decision that needs all shards: ask the coordinator for it.
    pub accumulated: Option<Accumulated>,
    /// The shard has all of a push: ask the coordinator what becomes of it.
    pub staged: Option<Staged>,
    /// Commits that are whole here and that checkpoints or copies need: write them, or hand them over.
    pub formed: Vec<Formed>,
    /// What commits used of the data, where this shard keeps accounts: write that down.
    pub used: Vec<Used>,
    /// Whether a block's contribution was new.
    pub fresh: bool,
}
