//! What a checkpoint keeps: a shard's blocks as they were when one commit was made. And what a commit used.
//!
//! Keeping copies nothing: values are shared with the shard until its next commit makes new ones, and only a state that
//! is still being written then is copied.

use std::sync::Arc;

use convoy_proto::{
    ids::{BlockId, SliceId, Step},
    loss_scale::LossScale,
};

use super::versions::Version;

/// A block as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Which.
    pub block: BlockId,
    /// Its parameters.
    pub parameters: Version,
    /// Their moving average, where one is kept.
    pub average: Option<Version>,
    /// The optimizer's state: vectors of the block's length.
    pub state: Arc<Vec<Vec<f32>>>,
    /// How many updates were applied.
    pub updates: u64,
}

/// A shard as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The commit that starts from it.
    pub commit: Step,
    /// The loss scale of that commit.
    pub loss_scale: LossScale,
    /// Its blocks, ascending.
    pub blocks: Vec<Kept>,
}

/// A commit that is whole and was kept, and what for.
#[derive(Clone, Debug, PartialEq)]
pub struct Formed {
    /// The shard as it was.
    pub snapshot: Arc<Snapshot>,
    /// For a checkpoint.
    pub is_saved: bool,
    /// For another server, which is to hold the shard, too.
    pub is_copied: bool,
}

/// What a commit used of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// The commit.
    pub commit: Step,
    /// The first step whose data it used, as people count.
    pub step: u64,
    /// How many steps.
    pub steps: u64,
    /// The slices of each that it used, but for those without samples.
    pub slices: Vec<SliceId>,
}

/// Whether a cell could keep a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// It is kept.
    Kept,
    /// It will be, when it is made.
    Waits,
    /// It is gone.
    TooLate,
}

/// A snapshot that does not fit the run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RestoreError {
    /// Other blocks than the shard's.
    #[error("block {want} of the shard is not in the checkpoint")]
    Block {
        /// The block that should be there.
        want: BlockId,
    },
    /// Another length.
    #[error("block {block} has {got} elements in the checkpoint and {want} in the model")]
    Length {
        /// The block.
        block: BlockId,
        /// The checkpoint's.
        got: usize,
        /// The model's.
        want: usize,
    },
    /// Another optimizer's state.
    #[error("block {block} has {got} vectors of optimizer state in the checkpoint, the run's optimizer keeps {want}")]
    Slots {
        /// The block.
        block: BlockId,
        /// The checkpoint's.
        got: usize,
        /// The optimizer's.
        want: usize,
    },
}
