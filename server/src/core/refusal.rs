//! Why a shard does not do what it was asked. A refusal changes nothing.

use convoy_proto::{
    codec::CodecError,
    ids::{BlockId, Era, Generation, Incarnation, Member, ShardId, SliceId, Step, WorkerId},
    messages::PushId,
    tree::Node,
};

use super::ledger::LedgerError;

/// Why a shard does not do what it was asked.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Refusal {
    /// It belongs to another era.
    #[error("era {theirs} is over, this is era {ours}")]
    Era {
        /// The shard's.
        ours: Era,
        /// The caller's.
        theirs: Era,
    },
    /// Slices have changed hands between the caller's view of the cluster and the shard's.
    #[error("the push acts on generation {theirs} of the cluster, this shard knows generation {ours}")]
    Generation {
        /// The shard's.
        ours: Generation,
        /// The caller's.
        theirs: Generation,
    },
    /// The caller's place has been taken by another process.
    #[error("{member} with incarnation {} is not the one that owns the place (incarnation {current})", member.incarnation)]
    Fenced {
        /// The caller.
        member: Member,
        /// Who is there now.
        current: Incarnation,
    },
    /// The caller is nobody the shard knows.
    #[error("{0} is no member of the cluster")]
    Stranger(Member),
    /// A slice of somebody else's.
    #[error("slice {slice} belongs to worker {owner}, not to {member}")]
    NotOwner {
        /// The slice.
        slice: SliceId,
        /// Its owner.
        owner: WorkerId,
        /// The caller.
        member: Member,
    },
    /// A step that is not open.
    #[error("step {asked} is not open, step {open} is")]
    Step {
        /// The caller's.
        asked: Step,
        /// The shard's.
        open: Step,
    },
    /// A step that was committed without the caller's slices, long ago.
    #[error("step {asked} was committed without the push, step {open} is open")]
    Missed {
        /// The caller's.
        asked: Step,
        /// The shard's.
        open: Step,
    },
    /// A push that is not the one of the same name before it.
    #[error("push {0} came with other slices before")]
    Contradiction(PushId),
    /// The parameters of step 0 are not set yet.
    #[error("the parameters are not initialised")]
    NotInitialised,
    /// They are set already.
    #[error("the parameters are initialised already, or {0} was not named to do it")]
    Initialised(Member),
    /// A block of another shard, or of none.
    #[error("block {block} is not on shard {shard}")]
    UnknownBlock {
        /// The block.
        block: BlockId,
        /// The shard.
        shard: ShardId,
    },
    /// A payload that is not the block's.
    #[error("block {block} has {want} bytes, not {got}")]
    Length {
        /// The block.
        block: BlockId,
        /// Its size.
        want: usize,
        /// The payload's.
        got: usize,
    },
    /// A payload that is not encoded as it says.
    #[error("block {block}: {problem}")]
    Encoding {
        /// The block.
        block: BlockId,
        /// What is wrong with it.
        problem: CodecError,
    },
    /// A gradient of what has none.
    #[error("block {0} is frozen and takes no gradient")]
    Frozen(BlockId),
    /// A range of slices that the tree does not have, or that the header did not announce.
    #[error("slices {0} are no node of the tree over {1}, or were not announced by this push's header")]
    Node(Node, u32),
    /// Gradients of another multiple of the loss.
    #[error("the loss is multiplied by {theirs}, this step's scale is {ours}")]
    LossScale {
        /// The shard's.
        ours: f64,
        /// The caller's.
        theirs: f64,
    },
    /// A header that contradicts an earlier one.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}
