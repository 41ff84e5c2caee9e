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

/// The blocks of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// Its first block.
    first: u64,
    /// Where it starts in the parameter space, in elements.
    offset: u64,
    elements: u64,
    role: TensorRole,
}

impl Span {
    fn blocks(&self) -> u64 {
        self.elements.div_ceil(BLOCK_ELEMENTS)
    }
}

/// All blocks, and which shard holds which. Its size is that of the manifest: blocks are computed when they are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    tensors: Vec<Span>,
    shards: Vec<Range<u64>>,
    blocks: u64,
    elements: u64,
}

impl BlockMap {
    /// Cuts the manifest's tensors into blocks and gives each of `shards` a contiguous run of about equal size.
    pub fn new(manifest: &Manifest, shards: u32) -> BlockMap {
        let (mut tensors, mut blocks) = (Vec::new(), 0);
        for entry in manifest.tensors() {
            let span = Span { first: blocks, offset: entry.offset, elements: entry.elements(), role: entry.role };
            blocks += span.blocks();
            tensors.push(span);
        }
        let mut map = BlockMap { tensors, shards: Vec::new(), blocks, elements: manifest.elements() };
        let shards = shards.max(1);
        let mut start = 0;
        for shard in 0..shards {
            let end = map.first_beyond(shard, shards);
            map.shards.push(start..end);
            start = end;
        }
        map
    }

    /// The first block whose middle lies beyond a shard's share of the elements.
    fn first_beyond(&self, shard: u32, shards: u32) -> u64 {
        let is_within = |id: u64| {
            self.get(BlockId(id)).is_some_and(|block| {
                let middle = u128::from(block.start) + u128::from(block.len / 2);
                middle * u128::from(shards) / u128::from(self.elements.max(1)) <= u128::from(shard)
            })
        };
        let (mut low, mut high) = (0, self.blocks);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_within(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Every block, in order of the parameter space.
    pub fn blocks(&self) -> Blocks<'_> {
        Blocks { map: self, tensor: 0, next: 0, end: self.blocks }
    }

    /// The block with this id, if there is one.
    pub fn get(&self, id: BlockId) -> Option<Block> {
        let tensor = self.tensor_of(id.0);
        (id.0 < self.blocks).then(|| self.block(id.0, tensor))
    }

    /// A block's elements, as a range of its tensor's.
    pub fn within(&self, block: &Block) -> Range<usize> {
        let start = (block.start - self.tensors[block.tensor].offset) as usize;
        start..start + block.len as usize
    }

    /// The tensor of a block that there is.
    fn tensor_of(&self, id: u64) -> usize {
        self.tensors.partition_point(|span| span.first <= id).saturating_sub(1)
    }

    fn block(&self, id: u64, tensor: usize) -> Block {
        let span = &self.tensors[tensor];
        let within = (id - span.first) * BLOCK_ELEMENTS;
        let len = (span.elements - within).min(BLOCK_ELEMENTS) as u32;
        Block { id: BlockId(id), tensor, start: span.offset + within, len, role: span.role }
    }

    /// The blocks that a shard holds, in order; none for a shard that holds none.
    pub fn of_shard(&self, shard: ShardId) -> Blocks<'_> {
        let range = self.shards.get(shard.index()).cloned().unwrap_or(0..0);
        Blocks { map: self, tensor: self.tensor_of(range.start), next: range.start, end: range.end }
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

/// A run of blocks, each computed as it comes.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    map: &'a BlockMap,
    tensor: usize,
    next: u64,
    end: u64,
}

impl Iterator for Blocks<'_> {
    type Item = Block;

    fn next(&mut self) -> Option<Block> {
        if self.next >= self.end {
            return None;
        }
        let span = |tensor: usize| &self.map.tensors[tensor];
        while self.next >= span(self.tensor).first + span(self.tensor).blocks() {
            self.tensor += 1;
        }
        self.next += 1;
        Some(self.map.block(self.next - 1, self.tensor))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.end - self.next) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Blocks<'_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(sizes: &[u64]) -> Manifest {
        let tensors = sizes.iter().enumerate().map(|(i, n)| (format!("t{i}"), vec![*n], TensorRole::Trainable));
        Manifest::new(tensors).unwrap()
    }

    /// `start+length` of each block, shards apart.
    fn draw(sizes: &[u64], shards: u32) -> String {
        let map = BlockMap::new(&manifest(sizes), shards);
        let block = |block: Block| format!("{}+{}", block.start, block.len);
        let shard = |shard| map.of_shard(ShardId(shard)).map(block).collect::<Vec<_>>().join(" ");
        (0..shards).map(shard).collect::<Vec<_>>().join(" | ")
    }

    /// Golden: a change here makes older checkpoints and mixed versions unreadable.
    #[test]
    fn maps() {
        let golden: [(&[u64], u32, &str); 6] = [
            (&[10, 10, 10], 1, "0+10 10+10 20+10"),
            (&[10, 10, 10, 10], 2, "0+10 10+10 | 20+10 30+10"),
            (&[1], 3, "0+1 |  | "),
            (&[5, 1, 1, 1], 2, "0+5 | 5+1 6+1 7+1"),
            (&[65_537, 131_072], 2, "0+65536 65536+1 | 65537+65536 131073+65536"),
            (&[200_000], 3, "0+65536 | 65536+65536 | 131072+65536 196608+3392"),
        ];
        for (sizes, shards, map) in golden {
            assert_eq!(draw(sizes, shards), map, "{sizes:?} on {shards}");
        }
    }

    /// Golden: 10^12 elements in three tensors on seven shards. No memory grows with it.
    #[test]
    fn four_terabytes_are_arithmetic() {
        let sizes = [400_000_000_000, 3, 599_999_999_997];
        let map = BlockMap::new(&manifest(&sizes), 7);
        assert_eq!((map.elements(), map.blocks().len()), (1_000_000_000_000, 15_258_791));
        let last = map.get(BlockId(15_258_790)).unwrap();
        assert_eq!((last.tensor, last.start, last.len), (2, 999_999_971_331, 28_669));
        assert_eq!(last.range().end as u64, map.elements());
        assert_eq!(map.get(BlockId(15_258_791)), None);
        let small = map.get(BlockId(6_103_516)).unwrap();
        assert_eq!((small.tensor, small.start, small.len), (1, 400_000_000_000, 3));
        let shares: Vec<_> = (0..7).map(|shard| map.of_shard(ShardId(shard)).len() as u64).collect();
        assert_eq!(shares.iter().sum::<u64>(), 15_258_791);
        assert!(shares.iter().all(|blocks| blocks.abs_diff(15_258_791 / 7) <= 1), "{shares:?}");
        for shard in 1..7 {
            let first = map.of_shard(ShardId(shard)).next().unwrap();
            assert_eq!(Some(first), map.get(first.id), "shard {shard}");
            assert!(first.start.abs_diff(map.elements() / 7 * u64::from(shard)) <= BLOCK_ELEMENTS, "shard {shard}");
        }
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
                    let whole = sizes[..block.tensor].iter().sum::<u64>() as usize;
                    prop_assert_eq!(map.within(&block), block.range().start - whole..block.range().end - whole);
                    at += u64::from(block.len);
                }
            }
            prop_assert_eq!(at, sizes.iter().sum::<u64>());
            let bytes = |s| map.of_shard(ShardId(s)).map(|b| u64::from(b.len)).sum::<u64>();
            let fair = at / u64::from(shards);
            prop_assert!((0..shards).all(|s| bytes(s) <= fair + BLOCK_ELEMENTS));
        }
    }
}
