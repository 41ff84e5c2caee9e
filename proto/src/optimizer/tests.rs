//! A few steps of each rule against values worked out from its definition in 64 bits. That they agree with burn's own
//! optimizers is tested where burn is: `tests/tests/optimizers.rs`.

use super::*;
use crate::config::Moments;

/// Runs a rule on one element, the gradient being the parameter itself (the loss is p²/2). A layerwise rule's
/// direction is followed with a factor of 1.
fn descend(rule: &dyn Rule, steps: u64, weight_decay: f32) -> Vec<f32> {
    let mut state = vec![vec![0.0]; rule.slots()];
    let mut path = vec![1.0f32];
    for updates in 0..steps {
        let parameters = [*path.last().unwrap()];
        let mut updated = [0.0];
        rule.apply(Update {
            updates,
            learning_rate: 0.1,
            weight_decay,
            gradient: &parameters,
            parameters: &parameters,
            updated: &mut updated,
            state: &mut state,
        });
        path.push(if rule.is_layerwise() { parameters[0] - 0.1 * updated[0] } else { updated[0] });
    }
    path
}

fn near(settings: Settings, weight_decay: f32, golden: &[f32]) {
    let path = descend(&*rule(settings), golden.len() as u64 - 1, weight_decay);
    assert!(path.iter().zip(golden).all(|(a, b)| (a - b).abs() < 1e-6), "{settings:?}: {path:?} is not {golden:?}");
}

#[test]
fn three_steps_of_each_rule() {
    let moments = Moments { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    near(Settings::Sgd, 0.0, &[1.0, 0.9, 0.81, 0.729]);
    near(Settings::Sgd, 1.0, &[1.0, 0.8, 0.64]);
    near(Settings::Momentum { momentum: 0.9 }, 0.0, &[1.0, 0.9, 0.72, 0.486]);
    near(Settings::Nesterov { momentum: 0.9 }, 0.0, &[1.0, 0.81, 0.5751, 0.327321]);
    near(Settings::AdamW(moments), 0.1, &[1.0, 0.89, 0.7815719, 0.6751012]);
    // s = 1, 1.81, …: 1 − 0.1 = 0.9, then 0.9 − 0.1·0.9/√1.81.
    near(Settings::Adagrad { epsilon: 1e-10 }, 0.0, &[1.0, 0.9, 0.833_103_4]);
    // v = 0.5, then 0.25 + 0.5·0.8585786².
    near(Settings::RmsProp { alpha: 0.5, epsilon: 1e-8 }, 0.0, &[1.0, 0.858_578_6, 0.749_413_8]);
    // Lion goes by the sign alone: 0.1 a step, and 0.1·λ·p more.
    near(Settings::Lion { beta1: 0.9, beta2: 0.99 }, 0.0, &[1.0, 0.9, 0.8, 0.7]);
    near(Settings::Lion { beta1: 0.9, beta2: 0.99 }, 1.0, &[1.0, 0.8, 0.62]);
    // The first step of Adam and LAMB is the sign of the gradient, decay apart.
    near(Settings::Adam(moments), 0.0, &[1.0, 0.9]);
    near(Settings::Lamb(moments), 0.1, &[1.0, 0.89]);
}
