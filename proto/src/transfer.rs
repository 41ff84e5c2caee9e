//! What goes between a worker and a server: blocks of gradients and of parameters, and what is asked for. Plain data.

use bytes::Bytes;

use crate::{
    codec::Encoding,
    ids::{BlockId, Era, Member, Step},
    messages::Weights,
    tree::Node,
};

/// One block's part of a node's sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientBlock {
    /// Which block.
    pub block: BlockId,
    /// Over which slices it is summed.
    pub node: Node,
    /// How the payload is encoded.
    pub encoding: Encoding,
    /// The sum.
    pub payload: Bytes,
    /// Where the payload is in the sender's memory, if the receiver sees it there: then it is not sent.
    pub place: Option<Place>,
}

impl GradientBlock {
    /// The payload's size, wherever it is.
    pub fn bytes(&self) -> usize {
        bytes(&self.payload, self.place)
    }
}

/// One block of the parameters: little-endian f32, dense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterBlock {
    /// Which block.
    pub block: BlockId,
    /// Four bytes an element.
    pub payload: Bytes,
    /// Where the payload is in the sender's memory, if the receiver sees it there: then it is not sent.
    pub place: Option<Place>,
}

impl ParameterBlock {
    /// The payload's size, wherever it is.
    pub fn bytes(&self) -> usize {
        bytes(&self.payload, self.place)
    }
}

fn bytes(payload: &Bytes, place: Option<Place>) -> usize {
    place.map_or(payload.len(), |place| usize::try_from(place.bytes).unwrap_or(usize::MAX))
}

/// What is to come back for a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The updated blocks, not the verdict alone.
    pub blocks: bool,
    /// Whether who asks sees the server's memory, so that blocks may stay there.
    pub shared: bool,
}

/// Somewhere in memory that processes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// From where on, in bytes.
    pub offset: u64,
    /// How much.
    pub bytes: u64,
}

/// Asks for all parameters of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Who asks.
    pub member: Member,
    /// The era it acts in.
    pub era: Era,
    /// The step that starts from them; the newest there are if none is named.
    pub step: Option<Step>,
    /// Which values.
    pub weights: Weights,
    /// Which blocks.
    pub extent: Extent,
    /// Whether who asks sees the server's memory.
    pub is_shared: bool,
}

/// Which of a shard's blocks are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All.
    All,
    /// Those that training changes.
    Trained,
    /// None: only the step that is open is asked for.
    Nothing,
}

/// One block of a shard on its way to another copy: little-endian f32, dense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockState {
    /// Which block.
    pub block: BlockId,
    /// Its parameters.
    pub parameters: Bytes,
    /// Their moving average, where one is kept.
    pub average: Option<Bytes>,
    /// The optimizer's state: vectors of the block's length.
    pub state: Vec<Bytes>,
    /// How many updates were applied.
    pub updates: u64,
}

/// A part of a shard on its way to another copy.
#[derive(Clone, Debug, PartialEq)]
pub enum CopyPart {
    /// Some of its blocks, ascending.
    Blocks(Vec<BlockState>),
    /// Comes last.
    End {
        /// What the loss of the commit that starts from it is multiplied by.
        loss_scale: f64,
        /// Clean steps in a row, which the loss scale goes by.
        clean: u64,
    },
}

/// Some of the blocks that a step starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The step.
    pub step: Step,
    /// The blocks.
    pub blocks: Vec<ParameterBlock>,
    /// Whether nothing follows, although the call goes on, for it was shown memory.
    pub is_last: bool,
}
