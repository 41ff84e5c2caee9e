//! Adagrad (Duchi, Hazan and Singer, 2011), as PyTorch and burn have it: no decay of the rate, squares start at zero.
//!
//! `s ← s + g²`, then `p ← p − lr·g / (√s + ε)`; `g` holds `λ·p`.

use super::{Rule, Update};

/// Adagrad.
#[derive(Clone, Copy, Debug)]
pub struct Adagrad {
    /// ε.
    pub epsilon: f32,
}

impl Rule for Adagrad {
    fn slots(&self) -> usize {
        1
    }

    fn apply(&self, update: Update<'_>) {
        let (lr, decay, epsilon) = (update.learning_rate, update.weight_decay, self.epsilon);
        let [squares] = update.state else { unreachable!("Adagrad keeps one vector") };
        let inputs = update.parameters.iter().zip(update.gradient).zip(squares);
        for (out, ((p, g), s)) in update.updated.iter_mut().zip(inputs) {
            let g = g + decay * p;
            *s += g * g;
            *out = p - lr * g / (s.sqrt() + epsilon);
        }
    }
}
