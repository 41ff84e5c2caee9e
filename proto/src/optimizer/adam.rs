//! Adam (Kingma and Ba, 2015, algorithm 1).
//!
//! `m ← β₁·m + (1−β₁)·g`, `v ← β₂·v + (1−β₂)·g²`, and with the bias-corrected m̂ and v̂
//! `p ← p − lr·m̂ / (√v̂ + ε)`; `g` holds `λ·p`.

use crate::{config::Moments, schedule::power};

use super::{Rule, Update};

/// What the moments are divided by so that their start at zero does not show: `1 − β₁ᵗ` and `1 − β₂ᵗ` at update t.
pub(super) fn corrections(moments: Moments, updates: u64) -> (f32, f32) {
    let correction = |beta: f32| (1.0 - power(beta.into(), updates + 1)) as f32;
    (correction(moments.beta1), correction(moments.beta2))
}

/// Adam.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// β₁, β₂ and ε.
    pub moments: Moments,
}

impl Rule for Adam {
    fn slots(&self) -> usize {
        2
    }

    fn apply(&self, update: Update<'_>) {
        let Moments { beta1, beta2, epsilon } = self.moments;
        let (lr, decay) = (update.learning_rate, update.weight_decay);
        let [mean, square] = update.state else { unreachable!("Adam keeps two vectors") };
        let (correct1, correct2) = corrections(self.moments, update.updates);
        let (rest1, rest2) = (1.0 - beta1, 1.0 - beta2);
        let inputs = update.parameters.iter().zip(update.gradient).zip(mean).zip(square);
        for (out, (((p, g), m), v)) in update.updated.iter_mut().zip(inputs) {
            let g = g + decay * p;
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *out = p - lr * (*m / correct1) / ((*v / correct2).sqrt() + epsilon);
        }
    }
}
