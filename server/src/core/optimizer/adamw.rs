//! Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2).
//!
//! `m ← β₁·m + (1−β₁)·g`, `v ← β₂·v + (1−β₂)·g²`, and with the bias-corrected m̂ and v̂
//! `p ← p·(1 − lr·λ) − lr·m̂ / (√v̂ + ε)`.

use super::{Optimizer, Update};

/// AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// β₁.
    pub beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// ε.
    pub epsilon: f32,
    /// λ.
    pub weight_decay: f32,
}

impl Optimizer for AdamW {
    fn slots(&self) -> usize {
        2
    }

    fn apply(&self, update: Update<'_>) {
        let AdamW { beta1, beta2, epsilon, weight_decay } = *self;
        let lr = update.learning_rate;
        let [mean, square] = update.state else { unreachable!("AdamW keeps two vectors") };
        let count = i32::try_from(update.updates + 1).unwrap_or(i32::MAX);
        let correction = |beta: f32| (1.0 - f64::from(beta).powi(count)) as f32;
        let (correct1, correct2) = (correction(beta1), correction(beta2));
        let (keep, rest1, rest2) = (1.0 - lr * weight_decay, 1.0 - beta1, 1.0 - beta2);
        let inputs = update.parameters.iter().zip(update.gradient).zip(mean).zip(square);
        for (out, (((p, g), m), v)) in update.updated.iter_mut().zip(inputs) {
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * (g * g);
            *out = p * keep - lr * (*m / correct1) / ((*v / correct2).sqrt() + epsilon);
        }
    }
}
