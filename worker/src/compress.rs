//! Gradients in fewer bytes, slice by slice, and what was lost of each, which its next gradient makes up for.
//!
//! What is lost belongs to a slice, not to a worker: as long as slices stay where they are, any number of workers push the same
//! bytes. Where slices change hands, it stays behind. Knows no connection.

use std::collections::BTreeMap;

use bytes::Bytes;
use convoy_proto::{
    blocks::BlockMap,
    codec::{Codec, Encoding},
    ids::{BlockId, SliceId, Step},
    manifest::{Manifest, TensorRole},
    sum,
};

use crate::parameters::{self, Tensors};

/// A gradient as it is pushed: by block, how it is encoded and its payload; nothing of what is not trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Encoded(BTreeMap<BlockId, (Encoding, Bytes)>);

impl Encoded {
    /// A block.
    pub fn block(&self, block: BlockId) -> Option<&(Encoding, Bytes)> {
        self.0.get(&block)
    }
}

/// What was lost of a slice's gradients.
struct Lost {
    /// After which of them.
    last: (Step, SliceId),
    /// What the loss was multiplied by then.
    loss_scale: f64,
    /// By tensor, before that step and after it: a step may be computed again.
    before: Tensors,
    after: Tensors,
}

/// Encodes the gradients of slices.
pub struct Compressor {
    codec: Codec,
    map: BlockMap,
    lost: BTreeMap<SliceId, Lost>,
}

impl Compressor {
    /// For a model; nothing for a codec that leaves gradients as they are.
    pub fn new(codec: Codec, manifest: &Manifest) -> Option<Compressor> {
        let of = || Compressor { codec, map: BlockMap::new(manifest, 1), lost: BTreeMap::new() };
        codec.is_lossy().then(of)
    }

    /// Encodes a slice's gradient of a step, of the loss times `loss_scale`. What is lost goes with the next gradient that has
    /// the same `home`: that of the slice, or, where slices are dealt out, of whoever computes them.
    pub fn encode(
        &mut self,
        (of, home): ((Step, SliceId), SliceId),
        mut gradient: Tensors,
        loss_scale: f64,
    ) -> Encoded {
        let before = self.lost_before(of, home, loss_scale);
        let mut encoded = BTreeMap::new();
        for block in self.map.blocks().filter(|block| block.role.is_trained()) {
            let range = self.map.within(&block);
            let values = &mut gradient[block.tensor][range.clone()];
            let payload = if block.role == TensorRole::Trainable {
                if let Some(lost) = before.get(block.tensor).and_then(|lost| lost.get(range)) {
                    sum::add(values, lost);
                }
                (self.codec.encoding(), self.codec.encode(values).into())
            } else {
                (Encoding::F32, Bytes::copy_from_slice(sum::payload_of(values)))
            };
            encoded.insert(block.id, payload);
        }
        if self.codec.feeds_back() {
            // Encoding left in the gradient what it lost; of a gradient that is not finite, nothing is worth keeping.
            let after = if parameters::are_finite(&gradient) { gradient } else { before.clone() };
            self.lost.insert(home, Lost { last: of, loss_scale, before, after });
        }
        Encoded(encoded)
    }

    /// What was lost of gradients before one, times a loss scale.
    fn lost_before(&self, of: (Step, SliceId), home: SliceId, loss_scale: f64) -> Tensors {
        let Some(lost) = self.lost.get(&home) else { return Tensors::new() };
        let mut values = if lost.last == of { lost.before.clone() } else { lost.after.clone() };
        if lost.loss_scale != loss_scale {
            let factor = (loss_scale / lost.loss_scale) as f32;
            values.iter_mut().flat_map(|values| values.iter_mut()).for_each(|value| *value *= factor);
        }
        values
    }

    /// Forgets what was lost of slices that are others' now.
    pub fn keep(&mut self, owned: impl Fn(SliceId) -> bool) {
        self.lost.retain(|slice, _| owned(*slice));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters::Values;

    fn manifest() -> Manifest {
        let tensor = |name: &str, size, role| (name.to_string(), vec![size], role);
        Manifest::new([
            tensor("w", 70_000, TensorRole::Trainable),
            tensor("mean", 2, TensorRole::Buffer),
            tensor("still", 3, TensorRole::Frozen),
        ])
        .unwrap()
    }

    fn gradient(value: f32) -> Tensors {
        vec![(0..70_000).map(|i| value * (i % 7) as f32).collect(), vec![3.5, 4.5].into(), Values::default()]
    }

    fn decoded(encoded: &Encoded, block: u64, elements: usize) -> Vec<f32> {
        let (encoding, payload) = encoded.block(BlockId(block)).unwrap();
        encoding.decode(payload, elements).unwrap()
    }

    #[test]
    fn blocks_are_encoded_and_buffers_are_not() {
        let mut compressor = Compressor::new(Codec::Int8, &manifest()).unwrap();
        let encoded = compressor.encode(((Step(0), SliceId(1)), SliceId(1)), gradient(1.0), 1.0);
        let near = |(at, value): (usize, &f32)| (value - (at % 7) as f32).abs() <= 6.0 / 254.0;
        assert!(decoded(&encoded, 0, 65_536).iter().enumerate().all(near));
        assert_eq!(
            encoded.block(BlockId(2)).unwrap(),
            &(Encoding::F32, Bytes::copy_from_slice(sum::payload_of(&[3.5, 4.5])))
        );
        assert_eq!(encoded.block(BlockId(3)), None);
        assert!(Compressor::new(Codec::F32, &manifest()).is_none());
    }

    #[test]
    fn what_was_lost_comes_with_the_next_step_and_a_step_can_be_made_again() {
        let mut compressor = Compressor::new(Codec::TopK(0.2), &manifest()).unwrap();
        let slice = SliceId(0);
        let first = compressor.encode(((Step(0), slice), slice), gradient(1.0), 1.0);
        let second = compressor.encode(((Step(1), slice), slice), gradient(1.0), 1.0);
        assert_ne!(first, second);
        // Fours and fives were lost of the first step, and are twice as large now.
        assert!(decoded(&second, 0, 65_536).contains(&10.0));
        assert_eq!(compressor.encode(((Step(1), slice), slice), gradient(1.0), 1.0), second);
        let scaled = compressor.encode(((Step(1), slice), slice), gradient(8.0), 8.0);
        let times_eight: Vec<f32> = decoded(&second, 0, 65_536).iter().map(|value| value * 8.0).collect();
        assert_eq!(decoded(&scaled, 0, 65_536), times_eight);
        assert_eq!(compressor.encode(((Step(1), SliceId(1)), SliceId(1)), gradient(1.0), 1.0), first);
        compressor.keep(|slice| slice == SliceId(1));
        assert_eq!(compressor.encode(((Step(2), slice), slice), gradient(1.0), 1.0), first);
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_not_fed_back() {
        let mut compressor = Compressor::new(Codec::Int8, &manifest()).unwrap();
        let slice = SliceId(0);
        compressor.encode(((Step(0), slice), slice), gradient(f32::NAN), 1.0);
        let after = compressor.encode(((Step(1), slice), slice), gradient(1.0), 1.0);
        let fresh =
            Compressor::new(Codec::Int8, &manifest()).unwrap().encode(((Step(0), slice), slice), gradient(1.0), 1.0);
        assert_eq!(after, fresh);
    }
}
