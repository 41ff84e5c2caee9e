//! Blocks that come from a server, put together to tensors as they come: copied while the processor still has them at hand,
//! or, where they lie in memory that is shared, left there.

use std::{collections::BTreeMap, sync::Arc, vec};

use bytes::Bytes;
use convoy_proto::{
    blocks::{Block, BlockMap},
    ids::{BlockId, ShardId},
    manifest::TensorRole,
    messages::{Extent, ParameterBlock, Place},
    shared::View,
    sum,
    transport::Lease,
};

use super::{Exchange, ExchangeError};
use crate::parameters::{Tensors, Values};

/// What a server sends.
#[derive(Debug)]
pub(super) struct Received {
    shard: ShardId,
    map: Arc<BlockMap>,
    /// Blocks that are still to come, in order.
    missing: vec::IntoIter<Block>,
    got: usize,
    pieces: Vec<Piece>,
    /// The server's memory, if it is seen.
    memory: Option<Arc<View>>,
    lease: Option<Arc<Lease>>,
    problem: Option<ExchangeError>,
}

/// A tensor's elements from one on, as far as a server has them.
#[derive(Debug)]
struct Piece {
    tensor: usize,
    first: usize,
    block: BlockId,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Copied(Vec<f32>),
    /// In memory that is shared, in one piece.
    Shown(Place),
}

/// Bytes of a server's memory, and what keeps them as they are.
struct Part {
    bytes: Bytes,
    _lease: Option<Arc<Lease>>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn seen(memory: Option<&Arc<View>>, place: Place) -> Option<Bytes> {
    memory?.bytes(place.offset, place.bytes)
}

impl Piece {
    /// A block after those that are here; nothing if the memory that it is in is not seen.
    fn add(&mut self, block: ParameterBlock, memory: Option<&Arc<View>>) -> Option<()> {
        let payload = block.place.map_or(Some(block.payload), |place| seen(memory, place))?;
        match (&mut self.held, block.place) {
            (Held::Shown(whole), Some(next)) if whole.offset + whole.bytes == next.offset => {
                whole.bytes += next.bytes;
                return Some(());
            }
            (Held::Shown(whole), _) => {
                let mut values = Vec::new();
                sum::extend_from_payload(&mut values, &seen(memory, *whole)?);
                sum::extend_from_payload(&mut values, &payload);
                self.held = Held::Copied(values);
            }
            (Held::Copied(values), _) => sum::extend_from_payload(values, &payload),
        }
        Some(())
    }
}

impl Received {
    /// Takes the next block. What is wrong with it is told when all are to be here.
    pub fn take(&mut self, block: ParameterBlock) {
        let (shard, id, bytes) = (self.shard, block.block, block.bytes() as u64);
        if self.problem.is_none() && self.put(block).is_none() {
            self.problem = Some(ExchangeError::Block { shard, block: id, bytes });
        }
    }

    fn put(&mut self, block: ParameterBlock) -> Option<()> {
        let want = self.missing.next().filter(|want| want.id == block.block && want.bytes() == block.bytes())?;
        self.got += 1;
        if let Some(piece) = self.pieces.last_mut().filter(|piece| piece.tensor == want.tensor) {
            return piece.add(block, self.memory.as_ref());
        }
        let held = match block.place {
            Some(place) => seen(self.memory.as_ref(), place).map(|_| Held::Shown(place))?,
            None => {
                let mut values = Vec::with_capacity(self.elements(&want));
                sum::extend_from_payload(&mut values, &block.payload);
                Held::Copied(values)
            }
        };
        self.pieces.push(Piece { tensor: want.tensor, first: self.map.within(&want).start, block: want.id, held });
        Some(())
    }

    /// How many there are of a tensor here, from one of its blocks on.
    fn elements(&self, block: &Block) -> usize {
        let following = self.missing.as_slice().iter().take_while(|next| next.tensor == block.tensor);
        std::iter::once(block).chain(following).map(|block| block.len as usize).sum()
    }

    /// With what keeps the blocks that are shown.
    pub fn kept(self, lease: Lease) -> Received {
        Received { lease: Some(Arc::new(lease)), ..self }
    }

    /// Whether all blocks have come.
    fn check(&mut self) -> Result<(), ExchangeError> {
        let (shard, got, missing) = (self.shard, self.got, self.missing.len());
        match self.problem.take() {
            Some(problem) => Err(problem),
            None if missing > 0 => Err(ExchangeError::Missing { shard, got, want: got + missing }),
            None => Ok(()),
        }
    }

    fn values(&self, block: BlockId, held: Held) -> Result<Values, ExchangeError> {
        let place = match held {
            Held::Copied(values) => return Ok(values.into()),
            Held::Shown(place) => place,
        };
        let bytes = seen(self.memory.as_ref(), place);
        let bytes = bytes.ok_or(ExchangeError::Block { shard: self.shard, block, bytes: place.bytes })?;
        Ok(Values::lent(Bytes::from_owner(Part { bytes, _lease: self.lease.clone() })))
    }
}

impl Exchange {
    /// What is to come from a shard, of which nothing has come yet.
    pub(super) fn awaited(&self, (shard, extent): (ShardId, Extent), memory: Option<Arc<View>>) -> Received {
        let wanted = self.map.of_shard(shard).filter(|block| match extent {
            Extent::All => true,
            Extent::Trained => block.role.is_trained(),
            Extent::Nothing => false,
        });
        let missing = wanted.collect::<Vec<_>>().into_iter();
        let map = self.map.clone();
        Received { shard, map, missing, got: 0, pieces: Vec::new(), memory, lease: None, problem: None }
    }

    /// Makes tensors of what all shards have sent; tensors of which nothing was wanted stay empty.
    pub(super) fn gather(&self, pulled: BTreeMap<ShardId, Received>) -> Result<Tensors, ExchangeError> {
        let mut tensors: Tensors = vec![Values::default(); self.manifest.tensors().len()];
        for mut received in pulled.into_values() {
            received.check()?;
            for Piece { tensor, first, block, held } in std::mem::take(&mut received.pieces) {
                let (entry, is_shown) = (&self.manifest.tensors()[tensor], matches!(held, Held::Shown(_)));
                let (values, whole) = (received.values(block, held)?, entry.elements() as usize);
                // What is never trained would be held for ever, and with it all that was shown beside it.
                if values.len() == whole && !(is_shown && entry.role == TensorRole::Frozen) {
                    tensors[tensor] = values;
                    continue;
                }
                if tensors[tensor].is_empty() {
                    tensors[tensor] = vec![0.0; whole].into();
                }
                tensors[tensor][first..first + values.len()].copy_from_slice(&values);
            }
        }
        Ok(tensors)
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::manifest::Manifest;

    use super::*;

    const ELEMENTS: u64 = 150_000;
    /// In memory that is not seen.
    const PLACE: Place = Place { offset: 0, bytes: 4 * 65_536 };

    fn received() -> (Received, Vec<Block>) {
        let tensors = ["a", "b"].map(|name| (name.into(), vec![ELEMENTS], TensorRole::Trainable));
        let map = Arc::new(BlockMap::new(&Manifest::new(tensors).unwrap(), 1));
        let wanted: Vec<Block> = map.of_shard(ShardId(0)).collect();
        let (missing, shard) = (wanted.clone().into_iter(), ShardId(0));
        let received =
            Received { shard, map, missing, got: 0, pieces: Vec::new(), memory: None, lease: None, problem: None };
        (received, wanted)
    }

    fn sent(block: &Block) -> ParameterBlock {
        let values: Vec<f32> = block.range().map(|at| at as f32).collect();
        ParameterBlock { block: block.id, payload: Bytes::copy_from_slice(sum::payload_of(&values)), place: None }
    }

    #[test]
    fn blocks_become_tensors_in_one_piece_each() {
        let (mut received, wanted) = received();
        wanted.iter().for_each(|block| received.take(sent(block)));
        assert!(received.check().is_ok());
        assert_eq!(received.pieces.len(), 2);
        for (piece, at) in received.pieces.iter().zip(0..) {
            let Held::Copied(values) = &piece.held else { panic!("copied") };
            assert_eq!((piece.tensor, piece.first, values.len(), values.capacity()), (at, 0, 150_000, 150_000));
            assert!((0..).zip(values).all(|(i, value)| *value == (at as u64 * ELEMENTS + i) as f32));
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        type Spoil = fn(&mut Vec<ParameterBlock>);
        let spoil: [(&str, Spoil); 5] = [
            ("sent 5 of its 6", |blocks| drop(blocks.pop())),
            ("sent block 2", |blocks| drop(blocks.remove(1))),
            ("sent block 0", |blocks| blocks.push(blocks[0].clone())),
            ("sent block 3", |blocks| blocks[3].payload = blocks[3].payload.slice(4..)),
            ("sent block 1", |blocks| (blocks[1].payload, blocks[1].place) = (Bytes::new(), Some(PLACE))),
        ];
        for (words, spoil) in spoil {
            let (mut received, wanted) = received();
            let mut blocks: Vec<_> = wanted.iter().map(sent).collect();
            spoil(&mut blocks);
            blocks.into_iter().for_each(|block| received.take(block));
            let problem = received.check().unwrap_err().to_string();
            assert!(problem.contains(words), "{problem}");
        }
    }
}
