//! Optimizers: rules that turn a mean gradient into new parameters, element by element.
//!
//! One file a rule. A rule sees slices of one block and explicit state of the same length, so blocks can be moved,
//! saved and sharded anew. Only IEEE additions, multiplications, divisions and square roots are used, never a fused
//! multiply-add, so the bits are the same on every machine.

use crate::{
    config::{self, Clip, LocalSteps, Mode, Rule as Settings},
    messages::{Action, Verdict},
};

mod adagrad;
mod adam;
mod adamw;
mod lamb;
mod lion;
mod momentum;
mod rmsprop;
mod sgd;

/// One update of one block. All slices have the block's length.
#[derive(Debug)]
pub struct Update<'a> {
    /// How many updates were applied before this one.
    pub updates: u64,
    /// The learning rate of this step, for this tensor.
    pub learning_rate: f32,
    /// λ, for this tensor.
    pub weight_decay: f32,
    /// The mean gradient, clipped.
    pub gradient: &'a [f32],
    /// The parameters before.
    pub parameters: &'a [f32],
    /// The parameters after, or a layerwise rule's direction; overwritten.
    pub updated: &'a mut [f32],
    /// The rule's state, [`Rule::slots`] vectors, zero at first.
    pub state: &'a mut [Vec<f32>],
}

/// A rule.
pub trait Rule: Send + Sync {
    /// How many vectors of state it keeps.
    fn slots(&self) -> usize;

    /// Applies one update.
    fn apply(&self, update: Update<'_>);

    /// Whether `apply` gives a direction, which is followed when each tensor's factor is known.
    fn is_layerwise(&self) -> bool {
        false
    }
}

/// A rule, and what else is done to gradients and parameters.
pub struct Optimizer {
    /// The rule.
    pub rule: Box<dyn Rule>,
    /// The largest L2 norm of the mean gradient.
    pub clip_norm: Option<f64>,
    /// The largest magnitude of an element of the mean gradient.
    pub clip_value: Option<f32>,
    /// Decay of the parameters' moving average.
    pub ema: Option<f32>,
    /// λ of the delay compensation of stale gradients; 0 is none.
    pub compensation: f32,
}

impl Optimizer {
    /// The optimizer that servers apply: the run's, or, with local steps, the outer one.
    pub fn of_servers(config: &config::Config) -> Optimizer {
        let run = Optimizer::new(&config.optimizer);
        match config.mode {
            Mode::Local(LocalSteps { outer_momentum, .. }) => {
                let rule = rule(Settings::Nesterov { momentum: outer_momentum });
                Optimizer { rule, clip_norm: None, clip_value: None, ..run }
            }
            mode => {
                let compensation = mode.staleness().map_or(0.0, |staleness| staleness.compensation);
                Optimizer { compensation, ..run }
            }
        }
    }

    /// The optimizer that the settings describe.
    pub fn new(settings: &config::Optimizer) -> Optimizer {
        let clip_value = match settings.clip {
            Clip::Value(most) => Some(most),
            _ => None,
        };
        let (rule, clip_norm) = (rule(settings.rule), settings.clip_norm());
        Optimizer { rule, clip_norm, clip_value, ema: settings.ema, compensation: 0.0 }
    }

    /// Whether a verdict says all that is needed to end its step.
    pub fn is_final(&self, verdict: &Verdict) -> bool {
        !self.rule.is_layerwise() || verdict.action == Action::SkipNonFinite || !verdict.trust.is_empty()
    }
}

/// The rule that the settings name.
pub fn rule(settings: Settings) -> Box<dyn Rule> {
    match settings {
        Settings::Sgd => Box::new(sgd::Sgd),
        Settings::Momentum { momentum } => Box::new(momentum::Momentum { momentum, nesterov: false }),
        Settings::Nesterov { momentum } => Box::new(momentum::Momentum { momentum, nesterov: true }),
        Settings::Adagrad { epsilon } => Box::new(adagrad::Adagrad { epsilon }),
        Settings::RmsProp { alpha, epsilon } => Box::new(rmsprop::RmsProp { alpha, epsilon }),
        Settings::Adam(moments) => Box::new(adam::Adam { moments }),
        Settings::AdamW(moments) => Box::new(adamw::AdamW { moments }),
        Settings::Lamb(moments) => Box::new(lamb::Lamb { moments }),
        Settings::Lion { beta1, beta2 } => Box::new(lion::Lion { beta1, beta2 }),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
