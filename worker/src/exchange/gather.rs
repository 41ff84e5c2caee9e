//! Blocks that came from servers, put together to tensors: copied, or, where they lie in memory that is shared, left there.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use convoy_proto::{
    blocks::Block,
    ids::ShardId,
    manifest::TensorRole,
    messages::{ParameterBlock, Place},
    shared::View,
    sum,
    transport::Lease,
};

use super::{Exchange, ExchangeError};
use crate::parameters::{Tensors, Values};

/// What a server sent.
#[derive(Debug, Default)]
pub(super) struct Received {
    blocks: Vec<ParameterBlock>,
    lent: Option<Lent>,
}

/// A server's memory, where blocks stay as they are for as long as this, or any bytes of it, are held.
#[derive(Clone, Debug)]
struct Lent {
    view: Arc<View>,
    lease: Arc<Lease>,
}

/// Bytes of a server's memory, and what keeps them.
struct Part {
    bytes: Bytes,
    _lease: Arc<Lease>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Received {
    /// Blocks from a server whose memory may be seen, and what keeps those that are shown.
    pub fn new(blocks: Vec<ParameterBlock>, memory: Option<Arc<View>>, lease: Lease) -> Received {
        Received { blocks, lent: memory.map(|view| Lent { view, lease: Arc::new(lease) }) }
    }

    /// A block's payload.
    fn payload(&self, block: &ParameterBlock) -> Option<Bytes> {
        match block.place {
            Some(place) => self.lent.as_ref()?.bytes(place),
            None => Some(block.payload.clone()),
        }
    }

    /// Blocks that lie one after the other in memory that is shared, in one piece.
    fn in_one_piece(&self, blocks: &[ParameterBlock]) -> Option<Bytes> {
        let mut whole = blocks.first()?.place?;
        for block in &blocks[1..] {
            let next = block.place.filter(|next| whole.offset.checked_add(whole.bytes) == Some(next.offset))?;
            whole.bytes = whole.bytes.checked_add(next.bytes)?;
        }
        self.lent.as_ref()?.bytes(whole)
    }
}

impl Lent {
    fn bytes(&self, place: Place) -> Option<Bytes> {
        let bytes = self.view.bytes(place.offset, place.bytes)?;
        Some(Bytes::from_owner(Part { bytes, _lease: self.lease.clone() }))
    }
}

impl Exchange {
    /// Puts blocks into tensors; tensors of which no block is wanted stay empty.
    pub(super) fn gather(
        &self,
        pulled: &BTreeMap<ShardId, Received>,
        wanted: impl Fn(&Block) -> bool,
    ) -> Result<Tensors, ExchangeError> {
        let mut tensors: Tensors = vec![Values::default(); self.manifest.tensors().len()];
        for (shard, received) in pulled {
            let want: Vec<Block> = self.map.of_shard(*shard).filter(|block| wanted(block)).collect();
            if received.blocks.len() != want.len() {
                return Err(ExchangeError::Missing { shard: *shard, got: received.blocks.len(), want: want.len() });
            }
            let mut blocks = received.blocks.as_slice();
            for want in want.chunk_by(|one, next| one.tensor == next.tensor) {
                let (own, rest) = blocks.split_at(want.len());
                blocks = rest;
                self.fill(&mut tensors[want[0].tensor], (want, own), (*shard, received))?;
            }
        }
        Ok(tensors)
    }

    /// Puts some of a tensor's blocks, which follow each other, into it.
    fn fill(
        &self,
        values: &mut Values,
        (want, blocks): (&[Block], &[ParameterBlock]),
        (shard, received): (ShardId, &Received),
    ) -> Result<(), ExchangeError> {
        let entry = &self.manifest.tensors()[want[0].tensor];
        for (want, block) in want.iter().zip(blocks) {
            let bytes = block.place.map_or(block.payload.len() as u64, |place| place.bytes);
            if block.block != want.id || bytes != want.bytes() as u64 {
                return Err(ExchangeError::Block { shard, block: block.block, bytes });
            }
        }
        let elements: u64 = want.iter().map(|block| u64::from(block.len)).sum();
        // What is never trained would be held for ever, and with it all that was shown beside it.
        let is_whole = elements == entry.elements() && entry.role != TensorRole::Frozen;
        if let Some(bytes) = received.in_one_piece(blocks).filter(|_| is_whole) {
            *values = Values::lent(bytes);
            return Ok(());
        }
        if values.is_empty() {
            *values = vec![0.0; entry.elements() as usize].into();
        }
        for (want, block) in want.iter().zip(blocks) {
            let bytes = want.bytes() as u64;
            let payload = received.payload(block).ok_or(ExchangeError::Block { shard, block: block.block, bytes })?;
            sum::read_payload(&mut values[self.map.within(want)], &payload);
        }
        Ok(())
    }
}
