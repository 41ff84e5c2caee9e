//! The order of the data: which samples a slice of a step holds.
//!
//! A pure function of (seed, step, slice), whoever computes it. Each epoch is a ChaCha8 permutation of the training
//! samples; a step takes the next `batch` of them, the last step of an epoch what is left, or, if that is asked for,
//! none or a full batch; a step's samples are cut into slices as evenly as integers allow, so a ragged batch may leave
//! slices empty.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::ids::{SliceId, Step};

/// What a random stream is for. Streams of different purposes never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The permutation of an epoch.
    Order = 1,
    /// The generator of dropout and the like within a slice.
    Slice = 2,
    /// The initial parameters.
    Parameters = 3,
    /// Generated training samples.
    TrainData = 4,
    /// Generated test samples.
    TestData = 5,
    /// The split of a source that brings no test part.
    Split = 6,
    /// The delays of workers that are slow on purpose.
    Delay = 7,
    /// Faults on purpose.
    Chaos = 8,
}

/// The generator for a purpose and two coordinates of it.
pub fn stream(seed: u64, purpose: Purpose, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (word, value) in key.as_chunks_mut::<8>().0.iter_mut().zip([seed, purpose as u64, a, b]) {
        *word = value.to_le_bytes();
    }
    ChaCha8Rng::from_seed(key)
}

/// A whole number below `bound`, without bias (Lemire, "Fast random integer generation in an interval", 2019).
pub fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let reject_below = bound.wrapping_neg() % bound;
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(bound);
        if product as u64 >= reject_below {
            return (product >> 64) as u64;
        }
    }
}

/// A number in 0..1 with 53 random bits.
pub fn unit(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A permutation of `0..len` (Fisher and Yates).
pub fn permutation(rng: &mut ChaCha8Rng, len: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, below(rng, last as u64 + 1) as usize);
    }
    order
}

/// Samples above which an epoch's order is computed and not stored.
const STORED: u32 = 1 << 22;
/// Rounds of the network; four make a random permutation of random functions (Luby and Rackoff, 1988).
const ROUNDS: usize = 6;

/// A permutation of an epoch's samples: a table if there are few, a Feistel network on their indices if there are many,
/// so that no worker holds a number for each of a billion samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EpochOrder {
    /// Sample by place.
    Stored(Vec<u32>),
    /// Keys of the rounds, bits of half an index, and how many samples there are.
    Computed([u64; ROUNDS], u32, u32),
}

impl EpochOrder {
    /// A permutation of `0..samples`.
    fn new(rng: &mut ChaCha8Rng, samples: u32) -> EpochOrder {
        if samples <= STORED {
            return EpochOrder::Stored(permutation(rng, samples));
        }
        EpochOrder::network(rng, samples)
    }

    fn network(rng: &mut ChaCha8Rng, samples: u32) -> EpochOrder {
        let bits = u32::BITS - samples.saturating_sub(1).leading_zeros();
        EpochOrder::Computed(std::array::from_fn(|_| rng.next_u64()), bits.div_ceil(2).max(1), samples)
    }

    /// The sample at a place, which is below the number of samples.
    pub fn sample(&self, place: usize) -> u32 {
        match self {
            EpochOrder::Stored(samples) => samples[place],
            EpochOrder::Computed(keys, half, samples) => {
                // The network permutes a power of four; what falls outside is sent through again.
                let mut index = place as u64;
                loop {
                    index = feistel(keys, *half, index);
                    if index < u64::from(*samples) {
                        return index as u32;
                    }
                }
            }
        }
    }
}

fn feistel(keys: &[u64; ROUNDS], half: u32, index: u64) -> u64 {
    let mask = (1u64 << half) - 1;
    let (mut left, mut right) = (index >> half, index & mask);
    for key in keys {
        (left, right) = (right, left ^ (mix(right ^ key) & mask));
    }
    left << half | right
}

/// A finaliser that spreads every bit over all (Steele et al., "Fast splittable pseudorandom number generators", 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Part `part` of `parts` of `0..len`: contiguous, sizes differing by at most one.
pub fn share(len: u64, part: u32, parts: u32) -> Range<u64> {
    let cut = |k: u32| (u128::from(len) * u128::from(k) / u128::from(parts.max(1))) as u64;
    cut(part)..cut(part + 1)
}

/// What becomes of an epoch's samples that fill no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastBatch {
    /// They make a smaller one, and count by their number like all others.
    Ragged,
    /// They are left out, other ones each epoch.
    Drop,
    /// They are filled up with the epoch's first samples, which so are used again.
    Wrap,
}

impl std::fmt::Display for LastBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            LastBatch::Ragged => "ragged",
            LastBatch::Drop => "drop",
            LastBatch::Wrap => "wrap",
        })
    }
}

/// The order of a run's training data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOrder {
    /// The run's seed.
    pub seed: u64,
    /// Training samples in all, at least one.
    pub samples: u32,
    /// Samples per step.
    pub batch: u32,
    /// Slices per step.
    pub slices: u32,
    /// What becomes of samples that fill no batch.
    pub last_batch: LastBatch,
}

impl DataOrder {
    /// Steps in one pass over the data; at least one, if only with a batch that is smaller than asked for.
    pub fn steps_per_epoch(&self) -> u64 {
        let (samples, batch) = (u64::from(self.samples), u64::from(self.batch));
        match self.last_batch {
            LastBatch::Ragged | LastBatch::Wrap => samples.div_ceil(batch),
            LastBatch::Drop => samples / batch,
        }
        .max(1)
    }

    /// The epoch a step belongs to.
    pub fn epoch(&self, step: Step) -> u64 {
        step.0 / self.steps_per_epoch()
    }

    /// The order of the samples in an epoch.
    pub fn epoch_order(&self, epoch: u64) -> EpochOrder {
        EpochOrder::new(&mut stream(self.seed, Purpose::Order, epoch, 0), self.samples)
    }

    /// The places in its epoch's order that a slice of a step holds; none for an empty slice.
    pub fn places(&self, step: Step, slice: SliceId) -> impl ExactSizeIterator<Item = usize> + use<> {
        let (samples, batch) = (u64::from(self.samples), u64::from(self.batch));
        let start = step.0 % self.steps_per_epoch() * batch;
        let len = if self.last_batch == LastBatch::Wrap { batch } else { (samples - start).min(batch) };
        let share = share(len, slice.0, self.slices);
        let places = (start + share.start) as usize..(start + share.end) as usize;
        places.map(move |place| place % samples as usize)
    }

    /// How many samples some slices of a step hold.
    pub fn samples(&self, step: Step, slices: impl Iterator<Item = SliceId>) -> u64 {
        slices.map(|slice| self.places(step, slice).len() as u64).sum()
    }

    /// The seed of burn's generator for a slice.
    pub fn slice_seed(&self, step: Step, slice: SliceId) -> u64 {
        stream(self.seed, Purpose::Slice, step.0, u64::from(slice.0)).next_u64()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Golden: a change here changes every run.
    #[test]
    fn the_order_of_a_small_epoch() {
        let order = DataOrder { seed: 7, samples: 10, batch: 4, slices: 2, last_batch: LastBatch::Ragged };
        assert_eq!(order.epoch_order(0), EpochOrder::Stored(GOLDEN.to_vec()));
        assert_ne!(order.epoch_order(1), order.epoch_order(0));
        assert_eq!(order.steps_per_epoch(), 3);
        let places = |order: DataOrder, step, slice| order.places(Step(step), SliceId(slice)).collect::<Vec<_>>();
        assert_eq!((places(order, 2, 0), places(order, 2, 1)), (vec![8], vec![9]));
        assert_eq!(places(order, 3, 1), [2, 3]);
        let dropping = DataOrder { last_batch: LastBatch::Drop, ..order };
        assert_eq!((dropping.steps_per_epoch(), places(dropping, 2, 0)), (2, vec![0, 1]));
        let wrapping = DataOrder { last_batch: LastBatch::Wrap, ..order };
        assert_eq!(
            (wrapping.steps_per_epoch(), places(wrapping, 2, 0), places(wrapping, 2, 1)),
            (3, vec![8, 9], vec![0, 1])
        );
    }

    const GOLDEN: [u32; 10] = [3, 5, 6, 1, 7, 2, 4, 9, 0, 8];

    proptest! {
        #[test]
        fn every_sample_is_used_once_an_epoch(
            seed: u64,
            samples in 1u32..300,
            batch in 1u32..64,
            slices in 1u32..9,
            last_batch in prop::sample::select(&[LastBatch::Ragged, LastBatch::Drop, LastBatch::Wrap]),
        ) {
            let order = DataOrder { seed, samples, batch, slices, last_batch };
            let samples_in_order = order.epoch_order(3);
            let mut used = Vec::new();
            for step in 0..order.steps_per_epoch() {
                let before = used.len();
                for slice in 0..slices {
                    used.extend(order.places(Step(step), SliceId(slice)).map(|place| samples_in_order.sample(place)));
                }
                let is_full = used.len() - before == batch as usize;
                prop_assert!(is_full || last_batch == LastBatch::Ragged || samples < batch);
            }
            let total = used.len() as u32;
            used.sort_unstable();
            used.dedup();
            let unique = used.len() as u32;
            match last_batch {
                LastBatch::Ragged => prop_assert_eq!((total, unique), (samples, samples)),
                // Less than a batch is left out, or comes twice.
                LastBatch::Drop => prop_assert!(unique == total && samples - unique < batch),
                LastBatch::Wrap => prop_assert!(unique == samples && total - samples < batch),
            }
        }

        #[test]
        fn a_computed_order_is_a_permutation(seed: u64, samples in 1u32..5000) {
            let order = EpochOrder::network(&mut stream(seed, Purpose::Order, 0, 0), samples);
            let mut used: Vec<_> = (0..samples as usize).map(|place| order.sample(place)).collect();
            used.sort_unstable();
            prop_assert_eq!(used, (0..samples).collect::<Vec<_>>());
        }
    }
}
