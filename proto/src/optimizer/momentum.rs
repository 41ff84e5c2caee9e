//! SGD with momentum (Polyak, 1964) in the form of Sutskever et al., 2013, as PyTorch and burn have it.
//!
//! `v ← μ·v + g`, then `p ← p − lr·v`, or with Nesterov's look-ahead `p ← p − lr·(g + μ·v)`; `g` holds `λ·p`.

use super::{Rule, Update};

/// Momentum, with or without Nesterov's look-ahead.
#[derive(Clone, Copy, Debug)]
pub struct Momentum {
    /// μ.
    pub momentum: f32,
    /// Whether to look ahead.
    pub nesterov: bool,
}

impl Rule for Momentum {
    fn slots(&self) -> usize {
        1
    }

    fn apply(&self, update: Update<'_>) {
        let (lr, mu, decay) = (update.learning_rate, self.momentum, update.weight_decay);
        let [velocity] = update.state else { unreachable!("momentum keeps one vector") };
        let inputs = update.parameters.iter().zip(update.gradient).zip(velocity);
        for (out, ((p, g), v)) in update.updated.iter_mut().zip(inputs) {
            let g = if decay == 0.0 { *g } else { g + decay * p };
            *v = mu * *v + g;
            let direction = if self.nesterov { g + mu * *v } else { *v };
            *out = p - lr * direction;
        }
    }
}
