//! What servers tell the coordinator of checkpoints.

use crate::ids::{ServerId, Step};

/// What a server tells the coordinator of its shard.
#[derive(Clone, Debug, PartialEq)]
pub enum ShardReport {
    /// The shard is taken from the era's checkpoint, or from another copy.
    Restored,
    /// It cannot be, for this reason.
    NotRestored(String),
    /// Its part of a checkpoint is written.
    Saved(Saved),
    /// Its part of a checkpoint is not written.
    NotSaved {
        /// The commit whose checkpoint it was to be.
        commit: Step,
        /// The commit that is open.
        open: Step,
        /// Why; nothing if the shard was beyond the commit already.
        problem: Option<String>,
    },
    /// The shard cannot be copied as it was told: it was at or beyond the commit already.
    NotCopied {
        /// The server that was to take the copy.
        server: ServerId,
        /// The commit that it was to begin with.
        commit: Step,
        /// The commit that is open.
        open: Step,
    },
}

/// A shard's part of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// The commit that starts from it.
    pub commit: Step,
    /// The file; none for a shard without blocks.
    pub part: Option<Part>,
    /// The loss scale then.
    pub loss_scale: f64,
    /// Clean steps in a row, which the loss scale goes by.
    pub clean: u64,
    /// From the commit, or the request if that came later, until the file was there.
    pub seconds: f64,
}

/// A file of a checkpoint: a run of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name in the checkpoint's directory.
    pub file: String,
    /// The first block.
    pub first_block: u64,
    /// How many.
    pub blocks: u64,
    /// The file's size.
    pub bytes: u64,
    /// The file's hash.
    pub sha256: Vec<u8>,
}
