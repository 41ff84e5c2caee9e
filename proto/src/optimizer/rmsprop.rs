//! RMSprop (Tieleman and Hinton, 2012), as PyTorch and burn have it, neither centred nor with momentum.
//!
//! `v ← α·v + (1−α)·g²`, then `p ← p − lr·g / (√v + ε)`; `g` holds `λ·p`.

use super::{Rule, Update};

/// RMSprop.
#[derive(Clone, Copy, Debug)]
pub struct RmsProp {
    /// α.
    pub alpha: f32,
    /// ε.
    pub epsilon: f32,
}

impl Rule for RmsProp {
    fn slots(&self) -> usize {
        1
    }

    fn apply(&self, update: Update<'_>) {
        let (lr, decay, epsilon) = (update.learning_rate, update.weight_decay, self.epsilon);
        let (alpha, rest) = (self.alpha, 1.0 - self.alpha);
        let [square] = update.state else { unreachable!("RMSprop keeps one vector") };
        let inputs = update.parameters.iter().zip(update.gradient).zip(square);
        for (out, ((p, g), v)) in update.updated.iter_mut().zip(inputs) {
            let g = g + decay * p;
            *v = alpha * *v + rest * (g * g);
            *out = p - lr * (g / (v.sqrt() + epsilon));
        }
    }
}
