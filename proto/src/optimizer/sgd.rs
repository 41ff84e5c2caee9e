//! Stochastic gradient descent: `p ← p − lr·(g + λ·p)`.

use super::{Rule, Update};

/// Plain SGD.
#[derive(Clone, Copy, Debug)]
pub struct Sgd;

impl Rule for Sgd {
    fn slots(&self) -> usize {
        0
    }

    fn apply(&self, update: Update<'_>) {
        let (lr, decay) = (update.learning_rate, update.weight_decay);
        let inputs = update.parameters.iter().zip(update.gradient);
        if decay == 0.0 {
            for (out, (p, g)) in update.updated.iter_mut().zip(inputs) {
                *out = p - lr * g;
            }
        } else {
            for (out, (p, g)) in update.updated.iter_mut().zip(inputs) {
                *out = p - lr * (g + decay * p);
            }
        }
    }
}
