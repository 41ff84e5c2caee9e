//! The servers' optimizers against burn's own, element by element, where burn has one.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says why it skips")]

use burn::{
    Dispatch, DispatchDevice,
    module::{Module, Param},
    optim::{
        AdaGradConfig, AdamConfig, AdamWConfig, GradientsParams, Optimizer, RmsPropConfig, SgdConfig,
        decay::WeightDecayConfig, momentum::MomentumConfig,
    },
    tensor::{Tensor, TensorData, backend::Backend},
};
use convoy_proto::config::{Moments, Rule};
use convoy_proto::optimizer::{Update, rule};
use convoy_worker::device::{self, DeviceName};

const SIZE: usize = 50;
const STEPS: usize = 12;
const LR: f64 = 0.05;
const DECAY: f32 = 0.02;

#[derive(Module, Debug)]
struct One<B: Backend> {
    values: Param<Tensor<B, 1>>,
}

fn start() -> Vec<f32> {
    (0..SIZE).map(|i| (i as f32 * 0.7).sin()).collect()
}

/// Gradients of very different sizes, some of them 0.
fn gradient(step: usize) -> Vec<f32> {
    let scale = |i: usize| if i.is_multiple_of(7) { 0.0 } else { 10f32.powi(i as i32 % 5 - 2) };
    (0..SIZE).map(|i| ((i * 3 + step) as f32 * 0.9).cos() * scale(i)).collect()
}

fn ours(settings: Rule) -> Vec<f32> {
    let rule = rule(settings);
    let mut state = vec![vec![0.0; SIZE]; rule.slots()];
    let mut parameters = start();
    for step in 0..STEPS {
        let mut updated = vec![0.0; SIZE];
        rule.apply(Update {
            updates: step as u64,
            learning_rate: LR as f32,
            weight_decay: DECAY,
            gradient: &gradient(step),
            parameters: &parameters,
            updated: &mut updated,
            state: &mut state,
        });
        parameters = updated;
    }
    parameters
}

fn burns(mut optimizer: impl Optimizer<One<Dispatch>, Dispatch>) -> Vec<f32> {
    let device = DispatchDevice::autodiff(device::open(DeviceName::Cpu).unwrap());
    let tensor = |values| Tensor::<Dispatch, 1>::from_data(TensorData::new(values, [SIZE]), &device);
    let mut model = One { values: Param::from_tensor(tensor(start())) };
    for step in 0..STEPS {
        // The gradient of a sum of products is the other factor.
        let gradients = (model.values.val() * tensor(gradient(step))).sum().backward();
        model = optimizer.step(LR, model.clone(), GradientsParams::from_grads(gradients, &model));
    }
    model.values.val().into_data().into_vec().unwrap()
}

fn near(name: &str, ours: &[f32], burns: &[f32]) {
    assert_ne!(ours, start());
    for (at, (a, b)) in ours.iter().zip(burns).enumerate() {
        assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{name}: element {at} is {a} here and {b} in burn");
    }
}

#[test]
fn the_rules_agree_with_burns() {
    let decay = || Some(WeightDecayConfig::new(DECAY));
    near("sgd", &ours(Rule::Sgd), &burns(SgdConfig::new().with_weight_decay(decay()).init()));
    for nesterov in [false, true] {
        let config = MomentumConfig::new().with_momentum(0.8).with_dampening(0.0).with_nesterov(nesterov);
        let burns = burns(SgdConfig::new().with_weight_decay(decay()).with_momentum(Some(config)).init());
        let settings = if nesterov { Rule::Nesterov { momentum: 0.8 } } else { Rule::Momentum { momentum: 0.8 } };
        near(settings.name(), &ours(settings), &burns);
    }
    let epsilon = 1e-6;
    let adagrad = AdaGradConfig::new().with_weight_decay(decay()).with_epsilon(epsilon).init();
    near("adagrad", &ours(Rule::Adagrad { epsilon }), &burns(adagrad));
    let rmsprop = RmsPropConfig::new().with_alpha(0.9).with_momentum(0.0).with_epsilon(epsilon);
    let rmsprop = rmsprop.with_centered(false).with_weight_decay(decay()).init();
    near("rmsprop", &ours(Rule::RmsProp { alpha: 0.9, epsilon }), &burns(rmsprop));
    let moments = Moments { beta1: 0.9, beta2: 0.99, epsilon };
    let adam = AdamConfig::new().with_beta_1(0.9).with_beta_2(0.99).with_epsilon(epsilon);
    near("adam", &ours(Rule::Adam(moments)), &burns(adam.with_weight_decay(decay()).init()));
    let adamw = AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.99).with_epsilon(epsilon);
    near("adamw", &ours(Rule::AdamW(moments)), &burns(adamw.with_weight_decay(DECAY).init()));
}
