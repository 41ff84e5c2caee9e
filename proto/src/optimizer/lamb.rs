//! LAMB (You et al., "Large Batch Optimization for Deep Learning", 2020, algorithm 2).
//!
//! `m` and `v` as in Adam, the direction `r = m̂ / (√v̂ + ε) + λ·p`, and for each tensor
//! `p ← p − lr·φ·r` with `φ = ‖p‖ / ‖r‖`, or 1 where a norm is 0. Here is the direction; norms over whole tensors need
//! all shards, so the coordinator forms φ.

use crate::config::Moments;

use super::{Rule, Update, adam::corrections};

/// LAMB.
#[derive(Clone, Copy, Debug)]
pub struct Lamb {
    /// β₁, β₂ and ε.
    pub moments: Moments,
}

impl Rule for Lamb {
    fn slots(&self) -> usize {
        2
    }

    fn apply(&self, update: Update<'_>) {
        let Moments { beta1, beta2, epsilon } = self.moments;
        let [mean, square] = update.state else { unreachable!("LAMB keeps two vectors") };
        let (correct1, correct2) = corrections(self.moments, update.updates);
        let (decay, rest1, rest2) = (update.weight_decay, 1.0 - beta1, 1.0 - beta2);
        let inputs = update.parameters.iter().zip(update.gradient).zip(mean).zip(square);
        for (out, (((p, g), m), v)) in update.updated.iter_mut().zip(inputs) {
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *out = (*m / correct1) / ((*v / correct2).sqrt() + epsilon) + decay * p;
        }
    }

    fn is_layerwise(&self) -> bool {
        true
    }
}
