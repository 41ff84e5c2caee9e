//! Optimizers: rules that turn a mean gradient into new parameters, element by element.
//!
//! One file a rule. A rule sees slices of one block and explicit state of the same length, so blocks can be moved,
//! saved and sharded anew. Only IEEE additions, multiplications, divisions and square roots are used, never a fused
//! multiply-add, so the bits are the same on every machine.

use convoy_proto::config::{Optimizer as Settings, Rule};

mod adamw;
mod momentum;
mod sgd;

/// One update of one block. All slices have the block's length.
#[derive(Debug)]
pub struct Update<'a> {
    /// How many updates were applied before this one.
    pub updates: u64,
    /// The learning rate of this step.
    pub learning_rate: f32,
    /// The mean gradient, clipped.
    pub gradient: &'a [f32],
    /// The parameters before.
    pub parameters: &'a [f32],
    /// The parameters after; overwritten.
    pub updated: &'a mut [f32],
    /// The rule's state, [`Optimizer::slots`] vectors, zero at first.
    pub state: &'a mut [Vec<f32>],
}

/// A rule.
pub trait Optimizer: Send + Sync {
    /// How many vectors of state it keeps.
    fn slots(&self) -> usize;

    /// Applies one update.
    fn apply(&self, update: Update<'_>);
}

/// The rule that the settings name.
pub fn from_settings(settings: &Settings) -> Box<dyn Optimizer> {
    let weight_decay = settings.weight_decay;
    match settings.rule {
        Rule::Sgd => Box::new(sgd::Sgd { weight_decay }),
        Rule::Momentum { momentum } => Box::new(momentum::Momentum { momentum, weight_decay, nesterov: false }),
        Rule::Nesterov { momentum } => Box::new(momentum::Momentum { momentum, weight_decay, nesterov: true }),
        Rule::AdamW { beta1, beta2, epsilon } => Box::new(adamw::AdamW { beta1, beta2, epsilon, weight_decay }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a rule on one element, the gradient being the parameter itself (the loss is p²/2).
    fn descend(optimizer: &dyn Optimizer, steps: u64) -> Vec<f32> {
        let mut state = vec![vec![0.0]; optimizer.slots()];
        let mut path = vec![1.0f32];
        for updates in 0..steps {
            let parameters = [*path.last().unwrap()];
            let mut updated = [0.0];
            optimizer.apply(Update {
                updates,
                learning_rate: 0.1,
                gradient: &parameters,
                parameters: &parameters,
                updated: &mut updated,
                state: &mut state,
            });
            path.push(updated[0]);
        }
        path
    }

    fn near(path: &[f32], golden: &[f32]) {
        assert_eq!(path.len(), golden.len());
        assert!(path.iter().zip(golden).all(|(a, b)| (a - b).abs() < 1e-6), "{path:?} is not {golden:?}");
    }

    fn rule(rule: Rule, weight_decay: f32) -> Box<dyn Optimizer> {
        from_settings(&Settings { rule, lr: 0.1, weight_decay, clip_norm: None })
    }

    /// Values worked out by hand, AdamW's from its definition in 64 bits.
    #[test]
    fn three_steps_of_each_rule() {
        near(&descend(&*rule(Rule::Sgd, 0.0), 3), &[1.0, 0.9, 0.81, 0.729]);
        near(&descend(&*rule(Rule::Sgd, 1.0), 2), &[1.0, 0.8, 0.64]);
        near(&descend(&*rule(Rule::Momentum { momentum: 0.9 }, 0.0), 3), &[1.0, 0.9, 0.72, 0.486]);
        near(&descend(&*rule(Rule::Nesterov { momentum: 0.9 }, 0.0), 3), &[1.0, 0.81, 0.5751, 0.327321]);
        let adamw = Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
        near(&descend(&*rule(adamw, 0.1), 3), &[1.0, 0.89, 0.7815719, 0.6751012]);
    }
}
