//! Lion (Chen et al., "Symbolic Discovery of Optimization Algorithms", 2023, algorithm 2).
//!
//! `p ← p − lr·(sign(β₁·m + (1−β₁)·g) + λ·p)`, then `m ← β₂·m + (1−β₂)·g`; the sign of 0 is 0.

use super::{Rule, Update};

/// Lion.
#[derive(Clone, Copy, Debug)]
pub struct Lion {
    /// The mean's share in the direction.
    pub beta1: f32,
    /// Decay of the mean.
    pub beta2: f32,
}

impl Rule for Lion {
    fn slots(&self) -> usize {
        1
    }

    fn apply(&self, update: Update<'_>) {
        let Lion { beta1, beta2 } = *self;
        let (lr, decay, rest1, rest2) = (update.learning_rate, update.weight_decay, 1.0 - beta1, 1.0 - beta2);
        let [mean] = update.state else { unreachable!("Lion keeps one vector") };
        let inputs = update.parameters.iter().zip(update.gradient).zip(mean);
        for (out, ((p, g), m)) in update.updated.iter_mut().zip(inputs) {
            let towards = beta1 * *m + rest1 * g;
            let sign = f32::from(i8::from(towards > 0.0) - i8::from(towards < 0.0));
            *out = p - lr * (sign + decay * p);
            *m = beta2 * *m + rest2 * g;
        }
    }
}
