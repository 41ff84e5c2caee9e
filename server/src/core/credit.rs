//! How far pushes to a step may run ahead of each other, which bounds what partial sums take.
//!
//! Blocks are pushed in order. Whoever the lowest incomplete block waits for is at that block or before it, and is never
//! held up; so this cannot lock up. Whoever is ahead waits where it is.

use convoy_proto::blocks::Block;

/// Elements, 64 MiB of them, that partial sums may always have.
const ELEMENTS: u64 = 16 << 20;
/// Elements of a frame.
const FRAME: u64 = 1 << 18;

/// What of the open step is complete, and how far ahead a push may be.
#[derive(Clone, Debug)]
pub struct Credit {
    /// Where cells begin.
    starts: Vec<u64>,
    /// Cells that take part.
    trained: Vec<bool>,
    /// Of them, those whose sum is not complete.
    incomplete: Vec<bool>,
    lowest: usize,
    ahead: u64,
}

impl Credit {
    /// For a shard's blocks, to which so many workers push. However they run ahead of each other, no more than every second
    /// of them has a part of a block that is not added to another, so that partial sums are no larger than the shard, or
    /// 64 MiB if that is more; and a frame of each. After a death, who takes over may have several parts of a block.
    pub fn new(blocks: &[Block], workers: u32) -> Credit {
        let trained: Vec<bool> = blocks.iter().map(|block| block.role.is_trained()).collect();
        let elements: u64 = blocks.iter().map(|block| u64::from(block.len)).sum();
        let ahead = (elements.max(ELEMENTS) / u64::from(workers.div_ceil(2).max(1))).max(FRAME);
        let starts = blocks.iter().map(|block| block.start).collect();
        let mut credit = Credit { starts, incomplete: Vec::new(), trained, lowest: 0, ahead };
        credit.restart();
        credit
    }

    /// Another step is open.
    pub fn restart(&mut self) {
        self.incomplete.clone_from(&self.trained);
        self.lowest = 0;
        self.rise();
    }

    /// A cell's sum is complete; whether others may go further for it.
    pub fn complete(&mut self, cell: usize) -> bool {
        let before = self.lowest;
        if let Some(incomplete) = self.incomplete.get_mut(cell) {
            *incomplete = false;
        }
        self.rise();
        self.lowest > before
    }

    /// Whether a push may go on with a cell.
    pub fn admits(&self, cell: usize) -> bool {
        let start = |cell: usize| self.starts.get(cell).copied();
        match (start(cell), start(self.lowest)) {
            (Some(cell), Some(lowest)) => cell.saturating_sub(lowest) < self.ahead,
            // Nothing is incomplete, or there is no such cell, which is refused elsewhere.
            _ => true,
        }
    }

    fn rise(&mut self) {
        let rest = self.incomplete.get(self.lowest..).unwrap_or_default();
        self.lowest += rest.iter().position(|incomplete| *incomplete).unwrap_or(rest.len());
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::{
        blocks::BlockMap,
        ids::ShardId,
        manifest::{Manifest, TensorRole},
    };
    use proptest::prelude::*;

    use super::*;

    fn blocks(count: u64, frozen: bool) -> Vec<Block> {
        let role = if frozen { TensorRole::Frozen } else { TensorRole::Trainable };
        let tensors = [("a".into(), vec![10], role), ("b".into(), vec![count << 16], TensorRole::Trainable)];
        BlockMap::new(&Manifest::new(tensors).unwrap(), 1).of_shard(ShardId(0)).collect()
    }

    #[test]
    fn who_is_ahead_waits_and_who_is_awaited_does_not() {
        // 1 GiB; of eight workers, a push may be a quarter of that ahead.
        let mut credit = Credit::new(&blocks(4096, true), 8);
        assert!(credit.admits(1) && credit.admits(1025) && !credit.admits(1026));
        assert!(!credit.complete(3) && !credit.complete(2), "the first is incomplete");
        assert!(credit.complete(1) && credit.admits(1) && credit.admits(1028) && !credit.admits(1029));
        assert!((4..4097).all(|cell| credit.complete(cell)) && credit.admits(0) && credit.admits(9999));
        credit.restart();
        assert!(credit.admits(1025) && !credit.admits(1026));
        // A small shard, or two workers, and nobody waits.
        assert!(Credit::new(&blocks(100, false), 4).admits(100) && Credit::new(&blocks(4096, false), 2).admits(4095));
    }

    proptest! {
        /// However pushes interleave, all get through, and who is ahead is within its credit.
        #[test]
        fn nobody_is_held_up_for_ever(turns in proptest::collection::vec(0usize..5, 0..3000)) {
            let cells = blocks(600, false);
            let mut credit = Credit::new(&cells, 5);
            let (mut at, mut parts) = ([0usize; 5], vec![0; cells.len()]);
            let rounds = (0..5 * cells.len() * 5).map(|turn| turn % 5);
            for worker in turns.into_iter().chain(rounds) {
                let lowest = at.iter().copied().min().unwrap_or(0);
                if at[worker] == cells.len() || !credit.admits(at[worker]) {
                    prop_assert!(at[worker] > lowest || at[worker] == cells.len());
                    continue;
                }
                prop_assert!((at[worker] - lowest) as u64 * (1 << 16) < credit.ahead + (1 << 16));
                parts[at[worker]] += 1;
                if parts[at[worker]] == 5 {
                    credit.complete(at[worker]);
                }
                at[worker] += 1;
            }
            prop_assert_eq!(at, [cells.len(); 5]);
        }
    }
}
