//! The block map: how the parameter space is cut into blocks and dealt out to shards.
//!
//! A pure function of the manifest and the number of shards, so both ends compute it and nobody sends it. A block
//! never spans two tensors, and its id does not depend on the number of shards.

use std::ops::Range;

use crate::{
    ids::{BlockId, ShardId},
    manifest::{Manifest, TensorRole},
};

/// The most elements a block has.
pub const BLOCK_ELEMENTS: u64 = 1 << 16;

/// A run of elements of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its place in the map.
    pub id: BlockId,
    /// The tensor it is a part of: an index into the manifest.
    pub tensor: usize,
    /// Where it starts in the parameter space, in elements.
    pub start: u64,
    /// How many elements it has: 1 to [`BLOCK_ELEMENTS`].
    pub len: u32,
    /// What training does with it.
    pub role: TensorRole,
}

impl Block {
    /// Its elements, as a range of the parameter space.
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }

    /// The size of its dense f32 payload.
    pub fn bytes(&self) -> usize {
        self.len as usize * 4
    }
}

/// All blocks, and which shard holds which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    blocks: Vec<Block>,
    shards: Vec<Range<usize>>,
    elements: u64,
}

impl BlockMap {
    /// Cuts the manifest's tensors into blocks and gives each of `shards` a contiguous run of about equal size.
    pub fn new(manifest: &Manifest, shards: u32) -> BlockMap {
        let mut blocks = Vec::new();
        for (tensor, entry) in manifest.tensors().iter().enumerate() {
            let end = entry.offset + entry.elements();
            let mut start = entry.offset;
            while start < end {
                let len = (end - start).min(BLOCK_ELEMENTS) as u32;
                blocks.push(Block { id: BlockId(blocks.len() as u64), tensor, start, len, role: entry.role });
                start += u64::from(len);
            }
        }
        let (shards, elements) = (shards.max(1), manifest.elements());
        let holder = |block: &Block| {
            let middle = u128::from(block.start) + u128::from(block.len / 2);
            (middle * u128::from(shards) / u128::from(elements.max(1))) as u32
        };
        let shards = (0..shards)
            .map(|shard| blocks.partition_point(|b| holder(b) < shard)..blocks.partition_point(|b| holder(b) <= shard))
            .collect();
        BlockMap { blocks, shards, elements }
    }

    /// Every block, in order of the parameter space.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The block with this id, if there is one.
    pub fn get(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(usize::try_from(id.0).ok()?)
    }

    /// The blocks that a shard holds; empty for a shard that holds none.
    pub fn of_shard(&self, shard: ShardId) -> &[Block] {
        self.shards.get(shard.index()).map_or(&[], |range| &self.blocks[range.clone()])
    }

    /// How many shards there are.
    pub fn shards(&self) -> u32 {
        self.shards.len() as u32
    }

    /// How many elements the parameter space has.
    pub fn elements(&self) -> u64 {
        self.elements
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(sizes: &[u64]) -> Manifest {
        let tensors = sizes.iter().enumerate().map(|(i, n)| (format!("t{i}"), vec![*n], TensorRole::Trainable));
        Manifest::new(tensors).unwrap()
    }

    fn draw(map: &BlockMap) -> String {
        (0..map.shards())
            .map(|s| {
                map.of_shard(ShardId(s)).iter().map(|b| format!("{}+{}", b.start, b.len)).collect::<Vec<_>>().join(" ")
            })
            .collect::<Vec<_>>()
            .join(" | ")
    }

    /// Golden cases: a change here makes older checkpoints and mixed versions unreadable.
    #[test]
    fn maps() {
        assert_eq!(draw(&BlockMap::new(&manifest(&[10, 10, 10]), 1)), "0+10 10+10 20+10");
        assert_eq!(draw(&BlockMap::new(&manifest(&[10, 10, 10, 10]), 2)), "0+10 10+10 | 20+10 30+10");
        assert_eq!(draw(&BlockMap::new(&manifest(&[1]), 3)), " |  | 0+1".replace(" |  | 0+1", "0+1 |  | "));
        assert_eq!(
            draw(&BlockMap::new(&manifest(&[65_537, 131_072]), 2)),
            "0+65536 65536+1 | 65537+65536 131073+65536"
        );
    }

    #[test]
    fn a_terabyte_is_arithmetic() {
        let map = BlockMap::new(&manifest(&[1 << 32]), 7);
        assert_eq!(map.blocks().len(), 1 << 16);
        assert_eq!(map.blocks().last().unwrap().range().end, 1 << 32);
    }

    proptest! {
        #[test]
        fn every_element_lies_in_one_block_of_one_shard(
            sizes in proptest::collection::vec(1u64..200_000, 1..20), shards in 1u32..9,
        ) {
            let map = BlockMap::new(&manifest(&sizes), shards);
            let mut at = 0;
            for shard in 0..shards {
                for block in map.of_shard(ShardId(shard)) {
                    prop_assert_eq!(block.start, at);
                    prop_assert!(block.len >= 1 && u64::from(block.len) <= BLOCK_ELEMENTS);
                    prop_assert_eq!(map.get(block.id), Some(block));
                    at += u64::from(block.len);
                }
            }
            prop_assert_eq!(at, sizes.iter().sum::<u64>());
            let bytes = |s| map.of_shard(ShardId(s)).iter().map(|b| u64::from(b.len)).sum::<u64>();
            let fair = at / u64::from(shards);
            prop_assert!((0..shards).all(|s| bytes(s) <= fair + BLOCK_ELEMENTS));
        }
    }
}
