//! Local steps: a slice's own optimizer, between two rounds.
//!
//! The inner half of DiLoCo (Douillard et al., 2023); the servers' outer optimizer is the other. The rules are the ones
//! that servers apply, on the host, so a run with local steps optimizes as one without them does. Knows no connection.

use std::collections::BTreeMap;

use convoy_proto::{
    blocks::BlockMap,
    config::{Config, LocalSteps, TensorSettings},
    ids::{SliceId, Step},
    manifest::{Manifest, TensorRole},
    messages::Squares,
    optimizer::{Optimizer, Update},
    schedule::{Horizon, LearningRate},
    sum, trust,
};

use crate::{
    learner::SliceGradient,
    parameters::{Tensors, Values},
};

/// The state of one slice's optimizer, by tensor.
#[derive(Clone, Debug, Default)]
pub struct Inner {
    state: Vec<Vec<Vec<f32>>>,
    updates: u64,
}

/// The inner optimizer and the states that are kept from round to round.
pub struct LocalTrainer {
    manifest: Manifest,
    optimizer: Optimizer,
    settings: Vec<TensorSettings>,
    rate: LearningRate,
    keeps: bool,
    kept: BTreeMap<SliceId, Inner>,
}

impl LocalTrainer {
    /// The inner optimizer of a run.
    pub fn new(config: &Config, local: LocalSteps, manifest: &Manifest, horizon: Horizon) -> LocalTrainer {
        let optimizer = &config.optimizer;
        LocalTrainer {
            manifest: manifest.clone(),
            settings: manifest.tensors().iter().map(|tensor| optimizer.for_tensor(&tensor.name)).collect(),
            rate: LearningRate { base: optimizer.lr, schedule: config.schedule, horizon },
            optimizer: Optimizer::new(optimizer),
            keeps: local.keeps_inner_state,
            kept: BTreeMap::new(),
        }
    }

    /// The optimizer that a slice begins a round with.
    pub fn begin(&mut self, slice: SliceId) -> Inner {
        self.kept.remove(&slice).unwrap_or_else(|| Inner {
            state: self.manifest.tensors().iter().map(|tensor| self.fresh(tensor.role, tensor.elements())).collect(),
            updates: 0,
        })
    }

    fn fresh(&self, role: TensorRole, elements: u64) -> Vec<Vec<f32>> {
        let slots = if role == TensorRole::Trainable { self.optimizer.rule.slots() } else { 0 };
        vec![vec![0.0; elements as usize]; slots]
    }

    /// Keeps a slice's optimizer for the next round, if that is what the run does.
    pub fn end(&mut self, slice: SliceId, inner: Inner) {
        if self.keeps {
            self.kept.insert(slice, inner);
        }
    }

    /// Makes a local step; a gradient that is not finite leaves everything as it was.
    pub fn apply(&self, inner: &mut Inner, parameters: &mut Tensors, gradient: SliceGradient, step: u64) {
        let SliceGradient { weight, finite, mut tensors, .. } = gradient;
        if !finite || weight <= 0.0 {
            return;
        }
        tensors.iter_mut().flat_map(|values| values.iter_mut()).for_each(|value| *value /= weight as f32);
        self.clip(&mut tensors);
        let learning_rate = self.rate.of(Step(step)) as f32;
        let trained = self.manifest.tensors().iter().zip(parameters.iter_mut()).zip(tensors).enumerate();
        let mut directions: Vec<Vec<f32>> = vec![Vec::new(); self.manifest.tensors().len()];
        for (at, ((tensor, values), gradient)) in trained {
            match tensor.role {
                TensorRole::Frozen => {}
                TensorRole::Buffer => *values = gradient,
                TensorRole::Trainable => {
                    let mut updated = vec![0.0; values.len()];
                    self.optimizer.rule.apply(Update {
                        updates: inner.updates,
                        learning_rate: learning_rate * self.settings[at].lr_factor,
                        weight_decay: self.settings[at].weight_decay,
                        gradient: &gradient,
                        parameters: values,
                        updated: &mut updated,
                        state: &mut inner.state[at],
                    });
                    if self.optimizer.rule.is_layerwise() {
                        directions[at] = updated;
                    } else {
                        *values = updated.into();
                    }
                }
            }
        }
        self.follow(parameters, &directions, learning_rate);
        inner.updates += 1;
    }

    /// Clips a mean gradient by its norm over all trainable tensors, or element by element.
    fn clip(&self, gradient: &mut Tensors) {
        let is_trainable = |at: usize| self.manifest.tensors()[at].role == TensorRole::Trainable;
        if let Some(most) = self.optimizer.clip_norm {
            let squares = gradient.iter().enumerate().filter(|(at, _)| is_trainable(*at));
            let norm = squares.map(|(_, values)| sum::sum_of_squares(values)).sum::<f64>().sqrt();
            if norm > most {
                let factor = (most / norm) as f32;
                let trainable = gradient.iter_mut().enumerate().filter(|(at, _)| is_trainable(*at));
                trainable.for_each(|(_, values)| values.iter_mut().for_each(|value| *value *= factor));
            }
        }
        if let Some(most) = self.optimizer.clip_value {
            let trainable = gradient.iter_mut().enumerate().filter(|(at, _)| is_trainable(*at));
            trainable.for_each(|(_, values)| values.iter_mut().for_each(|value| *value = value.clamp(-most, most)));
        }
    }

    /// A layerwise rule's step along its directions, each tensor with its own factor.
    fn follow(&self, parameters: &mut Tensors, directions: &[Vec<f32>], learning_rate: f32) {
        if !self.optimizer.rule.is_layerwise() {
            return;
        }
        let map = BlockMap::new(&self.manifest, 1);
        let squares = map.blocks().filter(|block| block.role == TensorRole::Trainable).map(|block| {
            let range = map.within(&block);
            let direction = sum::sum_of_squares(&directions[block.tensor][range.clone()]);
            (block.id, Squares { direction, parameters: sum::sum_of_squares(&parameters[block.tensor][range]) })
        });
        let ratios = trust::ratios(&map, &squares.collect());
        for (at, (values, direction)) in parameters.iter_mut().zip(directions).enumerate() {
            let rate = learning_rate * self.settings[at].lr_factor * ratios.get(at).copied().unwrap_or(1.0) as f32;
            values.iter_mut().zip(direction).for_each(|(value, direction)| *value -= rate * direction);
        }
    }

    /// What a round's end contributes: `weight` times how far each tensor went, or, of a buffer, where it is.
    pub fn contribution(&self, start: &Tensors, end: Tensors, weight: f64) -> Tensors {
        let weight = weight as f32;
        let tensors = self.manifest.tensors().iter().zip(start).zip(end);
        let of = |((tensor, start), mut end): ((&convoy_proto::manifest::Tensor, &Values), Values)| {
            match tensor.role {
                TensorRole::Frozen => return Values::default(),
                TensorRole::Buffer => end.iter_mut().for_each(|end| *end *= weight),
                TensorRole::Trainable => {
                    end.iter_mut().zip(start.iter()).for_each(|(end, start)| *end = (start - *end) * weight);
                }
            }
            end
        };
        tensors.map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::config::{Mode, layers::Layers};

    use super::*;

    fn trainer(optimizer: &str) -> LocalTrainer {
        let text = format!("mode = 'local'\n[optimizer]\n{optimizer}");
        let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        let tensor = |name: &str, size, role| (name.to_string(), vec![size], role);
        let manifest = Manifest::new([
            tensor("w", 2, TensorRole::Trainable),
            tensor("mean", 1, TensorRole::Buffer),
            tensor("still", 1, TensorRole::Frozen),
        ]);
        let Mode::Local(local) = config.mode else { panic!("{}", config.mode) };
        LocalTrainer::new(&config, local, &manifest.unwrap(), Horizon { steps: 9, steps_per_epoch: 3 })
    }

    fn tensors(values: [&[f32]; 3]) -> Tensors {
        values.map(|values| values.to_vec().into()).into()
    }

    fn gradient(w: [f32; 2], finite: bool) -> SliceGradient {
        let tensors = tensors([&w.map(|g| g * 4.0), &[28.0], &[]]);
        SliceGradient { weight: 4.0, loss_sum: 2.0, finite, tensors }
    }

    fn steps(trainer: &LocalTrainer, gradients: &[([f32; 2], bool)]) -> Tensors {
        let mut parameters = tensors([&[1.0, 2.0], &[3.0], &[5.0]]);
        let mut inner = trainer.kept.get(&SliceId(0)).cloned().unwrap_or_else(|| Inner {
            state: vec![vec![vec![0.0; 2]; trainer.optimizer.rule.slots()], Vec::new(), Vec::new()],
            updates: 0,
        });
        for (step, (w, finite)) in (0..).zip(gradients) {
            trainer.apply(&mut inner, &mut parameters, gradient(*w, *finite), step);
        }
        parameters
    }

    #[test]
    fn makes_steps_with_the_mean_gradient() {
        let sgd = trainer("name = 'sgd'\nlr = 0.5");
        assert_eq!(steps(&sgd, &[([1.0, -1.0], true)]), tensors([&[0.5, 2.5], &[7.0], &[5.0]]));
        assert_eq!(steps(&sgd, &[([1.0, f32::NAN], false)]), tensors([&[1.0, 2.0], &[3.0], &[5.0]]));
        let clipped = trainer("name = 'sgd'\nlr = 1.0\nclip_norm = 1.0");
        assert_eq!(steps(&clipped, &[([3.0, 4.0], true)])[0][..], [1.0 - 0.6, 2.0 - 0.8]);
    }

    #[test]
    fn a_layerwise_rule_steps_by_the_tensors_size() {
        let lamb = trainer("name = 'lamb'\nlr = 0.1\nweight_decay = 0");
        let after = steps(&lamb, &[([1.0, 1.0], true)])[0].clone();
        // The direction is (1, 1) whatever the gradient's size, the factor √5 / √2.
        let expected = [1.0 - 0.1 * (2.5f32).sqrt(), 2.0 - 0.1 * (2.5f32).sqrt()];
        assert!(after.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-4), "{after:?} {expected:?}");
    }

    #[test]
    fn contributes_how_far_it_went() {
        let sgd = trainer("name = 'sgd'");
        let (start, end) = (tensors([&[1.0, 2.0], &[3.0], &[5.0]]), tensors([&[0.5, 2.5], &[7.0], &[5.0]]));
        assert_eq!(sgd.contribution(&start, end, 8.0), tensors([&[4.0, -4.0], &[56.0], &[]]));
    }

    #[test]
    fn state_is_kept_only_where_it_is_asked_to() {
        let mut fresh = trainer("name = 'momentum'");
        let mut inner = fresh.begin(SliceId(1));
        inner.updates = 7;
        fresh.end(SliceId(1), inner.clone());
        assert_eq!(fresh.begin(SliceId(1)).updates, 0);
        fresh.keeps = true;
        fresh.end(SliceId(1), inner);
        assert_eq!((fresh.begin(SliceId(1)).updates, fresh.begin(SliceId(2)).updates), (7, 0));
    }
}
