//! Parameters without a model: they are exchanged and checked, and nothing is computed. What `launcher bench` runs, and
//! a way to see what a network bears before anything is trained on it.
//!
//! Parameters start at zero. The gradient is the same in every step: runs of [`RUN`] elements, each of one small whole
//! number. So every element after a number of commits is known, and every worker checks every element that it is given; with
//! a codec that makes up later for what it loses, that it is a number.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use convoy_proto::{
    config::{Clip, Config, Mode, Precision, Rule, schedule::Shape},
    manifest::{Manifest, Tensor, TensorRole},
    sum,
};

use super::{OpenError, TaskEntry};
use crate::{
    data::{DataInfo, HostBatch, Wanted},
    device::DeviceName,
    learner::{Evaluation, Output, Replica, SliceGradient},
    parameters::{self, Tensors},
};

/// Elements with the same gradient.
const RUN: usize = 4096;
/// Different gradients: 1 to this.
const VALUES: usize = 255;
/// Elements of a tensor, and tensors, unless the configuration says otherwise: 64 MiB in all.
const WIDTH: u32 = 1 << 20;
const LAYERS: u32 = 16;
/// Commits that may lie between two pulls.
const COMMITS: usize = 1 << 20;

/// The row of the table.
pub(super) const ENTRY: TaskEntry = TaskEntry {
    name: "synthetic",
    about: "no model: parameters that are exchanged and checked, nothing is computed",
    wanted: Wanted::Classes,
    open,
};

fn open(config: &Config, _: &DataInfo, _: DeviceName) -> Result<Box<dyn Replica>, OpenError> {
    config.model.only("synthetic", &["width", "layers"]).map_err(OpenError::Task)?;
    known(config).map_err(OpenError::Task)?;
    let (width, layers) = (config.model.width.unwrap_or(WIDTH), config.model.layers.unwrap_or(LAYERS));
    let tensors = (0..layers).map(|i| (format!("tensors.{i}"), vec![width.into()], TensorRole::Trainable));
    let manifest = Manifest::new(tensors).map_err(|problem| OpenError::Task(problem.to_string()))?;
    let expected = Mutex::new(Expected::new(config.optimizer.lr as f32));
    let (is_dealt, is_known) = (config.mode.is_dealt(), !config.codec.feeds_back());
    Ok(Box::new(Synthetic { manifest, is_dealt, is_known, expected }))
}

/// Refuses what this task could not tell the parameters after.
fn known(config: &Config) -> Result<(), String> {
    let optimizer = &config.optimizer;
    let is_plain = optimizer.rule == Rule::Sgd
        && optimizer.weight_decay == 0.0
        && optimizer.clip == Clip::Off
        && optimizer.ema.is_none()
        && optimizer.groups.is_empty();
    let rate = config.schedule.shape == Shape::Constant && config.schedule.warmup.is_none();
    let staleness = config.mode.staleness().is_none_or(|s| !s.scales_rate && s.compensation == 0.0);
    let refused = [
        (!is_plain, "plain sgd: say --optimizer sgd, without decay, clipping, an average or groups"),
        (!rate || !staleness, "a constant rate: no schedule, warm-up or correction for staleness"),
        (
            config.codec.is_lossy() && !config.codec.feeds_back() && config.batch_size != config.slices,
            "a sample for each slice, of which the codec loses nothing: say --batch-size as many as --slices",
        ),
        (config.precision != Precision::F32, "precision f32"),
        (matches!(config.mode, Mode::Local(_)), "servers that apply gradients, which local steps do not push"),
    ];
    let problem = refused.iter().find(|(is_refused, _)| *is_refused);
    problem
        .map_or(Ok(()), |(_, wanted)| Err(format!("the task `synthetic` checks every parameter, which takes {wanted}")))
}

/// Which of the gradients a run has; runs are counted on from tensor to tensor.
fn value(run: usize) -> usize {
    run % VALUES
}

/// What every parameter is after numbers of commits that follow each other.
#[derive(Debug)]
struct Expected {
    learning_rate: f32,
    /// By commit from some on, and by gradient from 1 on.
    values: VecDeque<[f32; VALUES]>,
    /// How many commits the first of them is.
    commits: usize,
}

impl Expected {
    fn new(learning_rate: f32) -> Expected {
        Expected { learning_rate, values: VecDeque::from([[0.0; VALUES]]), commits: 0 }
    }

    /// Another commit, as a server makes it: a mean of equal whole numbers is that number.
    fn commit(&mut self) {
        let mut next = self.values.back().copied().unwrap_or([0.0; VALUES]);
        for (value, gradient) in next.iter_mut().zip(1u16..) {
            *value -= self.learning_rate * f32::from(gradient);
        }
        self.values.push_back(next);
    }

    /// After how many commits, counted from the first that is known, a parameter with a gradient is this; `usual` is tried
    /// first.
    fn find(&mut self, parameter: f32, gradient: usize, usual: usize) -> Option<usize> {
        let is = |values: &[f32; VALUES]| values[gradient].to_bits() == parameter.to_bits();
        if self.values.get(usual).is_some_and(is) {
            return Some(usual);
        }
        if let Some(known) = self.values.iter().position(is) {
            return Some(known);
        }
        (0..COMMITS).find_map(|_| {
            self.commit();
            self.values.back().is_some_and(is).then(|| self.values.len() - 1)
        })
    }

    /// Forgets commits before the first of those that were found.
    fn forget(&mut self, first: usize) {
        self.values.drain(..first.min(self.values.len() - 1));
        self.commits += first;
    }
}

#[derive(Debug)]
struct Synthetic {
    manifest: Manifest,
    /// Whether each server commits by itself.
    is_dealt: bool,
    /// Whether it is known what parameters must be.
    is_known: bool,
    expected: Mutex<Expected>,
}

impl Synthetic {
    /// The gradient times something, written anew.
    fn gradient_times(&self, scale: f32) -> Tensors {
        let of = |tensor: &Tensor| {
            let (first, elements) = (tensor.offset as usize / RUN, tensor.elements() as usize);
            let mut values = Vec::with_capacity(elements);
            for (at, from) in (first..).zip((0..elements).step_by(RUN)) {
                sum::push_run(&mut values, RUN.min(elements - from), (value(at) + 1) as f32 * scale);
            }
            values.into()
        };
        self.manifest.tensors().iter().map(of).collect()
    }

    /// Says which element is not what commits from those expected on make of it.
    fn compare(&self, tensors: &Tensors, expected: &mut Expected) -> Result<(), String> {
        let (mut first, mut last) = (usize::MAX, 0);
        for (tensor, entry) in tensors.iter().zip(self.manifest.tensors()) {
            for (part, at) in tensor.chunks(RUN).zip((entry.offset as usize / RUN)..) {
                let (name, from) = (&entry.name, (at - entry.offset as usize / RUN) * RUN);
                let commit = expected.find(part[0], value(at), last).ok_or_else(|| {
                    format!("{name} is {} at element {from}, which no number of commits makes of it", part[0])
                })?;
                (first, last) = (first.min(commit), commit);
                if (!self.is_dealt && first != last) || !sum::all_are(part, part[0]) {
                    let commits = expected.commits + first;
                    return Err(format!("{name} is not what {commits} commits make of it, from element {from} on"));
                }
            }
        }
        expected.forget(if first == usize::MAX { 0 } else { first });
        Ok(())
    }
}

impl Replica for Synthetic {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn initial(&self, _: u64) -> Tensors {
        self.manifest.tensors().iter().map(|tensor| vec![0.0; tensor.elements() as usize].into()).collect()
    }

    fn load(&mut self, _: Tensors) {}

    /// Reads every element. Where they are known, all are of one commit, but for those that servers commit by themselves.
    fn check(&self, values: &Tensors) -> Result<(), String> {
        if !self.is_known {
            let is_finite = parameters::are_finite(values);
            return is_finite.then_some(()).ok_or_else(|| "some parameter is infinite, or no number".into());
        }
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        self.compare(values, &mut expected).or_else(|_| {
            // Perhaps a run that has gone back to a checkpoint.
            *expected = Expected::new(expected.learning_rate);
            self.compare(values, &mut expected)
        })
    }

    fn gradient(&mut self, batch: HostBatch, _: u64, loss_scale: f64) -> SliceGradient {
        let weight = batch.rows as f64;
        let tensors = self.gradient_times((weight * loss_scale) as f32);
        SliceGradient { weight, loss_sum: weight, finite: true, tensors }
    }

    fn evaluate(&self, batch: HostBatch) -> Evaluation {
        Evaluation { weight: batch.rows as f64, loss_sum: batch.rows as f64, correct: 0 }
    }

    fn output(&self, batch: HostBatch) -> Output {
        Output { values: vec![0.0; batch.rows], width: 1 }
    }

    fn train_alone(&mut self, _: HostBatch, _: f64) {}

    fn settle(&self) {}
}

#[cfg(test)]
mod tests {
    use convoy_proto::config::layers::Layers;

    use super::*;
    use crate::data::Form;

    fn replica(settings: &str) -> Result<Box<dyn Replica>, OpenError> {
        let text = format!("task = 'synthetic'\n{settings}");
        let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        let info = DataInfo {
            about: String::new(),
            form: Form::Classes { shape: [1, 1, 1], classes: 2 },
            train: 1,
            test: 1,
            class_names: Vec::new(),
            fingerprint: Vec::new(),
        };
        open(&config, &info, DeviceName::Cpu)
    }

    #[test]
    fn what_sgd_makes_of_its_gradients_is_what_it_expects() {
        let mut replica = replica("[optimizer]\nname = 'sgd'\nlr = 0.3\n[model]\nwidth = 10000\nlayers = 3").unwrap();
        let mut parameters = replica.initial(1);
        for _ in 0..5 {
            assert_eq!(replica.check(&parameters), Ok(()));
            let rows = HostBatch { rows: 2, ..HostBatch::default() };
            let gradient = replica.gradient(rows, 0, 4.0);
            for (tensor, gradient) in parameters.iter_mut().zip(&gradient.tensors) {
                tensor.iter_mut().zip(gradient.iter()).for_each(|(p, g)| *p -= 0.3 * (g / 8.0));
            }
        }
        assert_eq!(replica.check(&parameters), Ok(()));
        parameters[1][9_999] += 1e-6;
        assert!(replica.check(&parameters).is_err());
    }

    #[test]
    fn only_with_sgd_and_its_own_keys() {
        for more in ["batch_size = 3\ncodec = 'bf16'", "mode = 'local'", "precision = 'bf16'"] {
            assert!(replica(&format!("{more}\n[optimizer]\nname = 'sgd'")).is_err(), "{more}");
        }
        for more in ["weight_decay = 0.1", "clip_norm = 1.0", "ema = 0.9", "[schedule]\nname = 'cosine'"] {
            assert!(replica(&format!("[optimizer]\nname = 'sgd'\n{more}")).is_err(), "{more}");
        }
        assert!(replica("[optimizer]\nname = 'adamw'").is_err());
        assert!(replica("[optimizer]\nname = 'sgd'\n[model]\nhidden = [3]").is_err());
    }
}
