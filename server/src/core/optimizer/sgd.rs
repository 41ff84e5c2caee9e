//! Stochastic gradient descent: `p ← p − lr·(g + λ·p)`.

use super::{Optimizer, Update};

/// Plain SGD.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    /// λ.
    pub weight_decay: f32,
}

impl Optimizer for Sgd {
    fn slots(&self) -> usize {
        0
    }

    fn apply(&self, update: Update<'_>) {
        let lr = update.learning_rate;
        let inputs = update.parameters.iter().zip(update.gradient);
        if self.weight_decay == 0.0 {
            for (out, (p, g)) in update.updated.iter_mut().zip(inputs) {
                *out = p - lr * g;
            }
        } else {
            for (out, (p, g)) in update.updated.iter_mut().zip(inputs) {
                *out = p - lr * (g + self.weight_decay * p);
            }
        }
    }
}
