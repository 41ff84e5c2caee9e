//! The factors of a layerwise rule: how far each tensor steps along its direction.

use std::collections::BTreeMap;

use crate::{blocks::BlockMap, ids::BlockId, messages::Squares};

/// By tensor, in manifest order: `‖p‖ / ‖r‖`, or 1 where a norm is 0 (You et al., 2020). Blocks are added in manifest
/// order, so the bits do not depend on the shards. Blocks that are missing count as 0.
pub fn ratios(map: &BlockMap, squares: &BTreeMap<BlockId, Squares>) -> Vec<f64> {
    let tensors = map.blocks().last().map_or(0, |last| last.tensor + 1);
    let mut sums = vec![Squares::default(); tensors];
    for block in map.blocks() {
        let part = squares.get(&block.id).copied().unwrap_or_default();
        sums[block.tensor].direction += part.direction;
        sums[block.tensor].parameters += part.parameters;
    }
    let ratio = |sum: &Squares| {
        let has_norms = sum.direction != 0.0 && sum.parameters != 0.0;
        let ratio = if has_norms { (sum.parameters / sum.direction).sqrt() } else { 1.0 };
        // A direction that has all but vanished leads nowhere; servers compute with 32 bits.
        if ratio > f64::from(f32::MAX) { 1.0 } else { ratio }
    };
    sums.iter().map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Manifest, TensorRole};

    #[test]
    fn a_ratio_is_over_the_whole_tensor() {
        let tensor = |name: &str, size| (name.to_string(), vec![size], TensorRole::Trainable);
        let manifest = Manifest::new([tensor("a", 100_000), tensor("b", 2), tensor("c", 2)]).unwrap();
        let square = |direction, parameters| Squares { direction, parameters };
        let squares = [(0, square(1.0, 9.0)), (1, square(3.0, 7.0)), (2, square(0.0, 4.0))];
        let squares = squares.into_iter().map(|(block, squares)| (BlockId(block), squares)).collect();
        for shards in 1..4 {
            assert_eq!(ratios(&BlockMap::new(&manifest, shards), &squares), [2.0, 1.0, 1.0]);
        }
        let vanished = [(2, square(1e-90, 1.0)), (3, square(f64::NAN, 1.0))];
        let vanished = vanished.into_iter().map(|(block, squares)| (BlockId(block), squares)).collect();
        let ratios = ratios(&BlockMap::new(&manifest, 1), &vanished);
        assert!(ratios[1] == 1.0 && ratios[2].is_nan(), "{ratios:?}");
    }
}
