//! A model at work: gradients of slices, scores of held-out batches, parameters in and out.

use burn::{
    Dispatch, DispatchDevice,
    module::AutodiffModule,
    optim::{GradientsParams, Optimizer as _, SgdConfig},
    tensor::{DType, Transaction, backend::Backend},
};
use convoy_proto::{
    config::{Config, Precision},
    manifest::{Manifest, TensorRole},
    order::{Purpose, stream},
};
use rand_core::RngCore;

use crate::{
    data::HostBatch,
    device::{self, DeviceName},
    parameters::{self, Layout, Tensors, Values},
    task::{OpenError, Samples, Score, Task, samples::Place},
};

/// What a slice contributes, unnormalised.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceGradient {
    /// Samples, or whatever the mean is over.
    pub weight: f64,
    /// Sum of the loss.
    pub loss_sum: f64,
    /// Whether the loss and every gradient are finite.
    pub finite: bool,
    /// By tensor: the gradient of the loss sum times the loss scale; of a buffer, its new value times the weight.
    pub tensors: Tensors,
}

/// Sums over held-out samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Samples, or whatever the mean is over.
    pub weight: f64,
    /// Sum of the loss.
    pub loss_sum: f64,
    /// How often the most likely class, or token, was the right one.
    pub correct: u64,
}

/// What a model says of samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Row by row: unnormalised log-probabilities of classes or tokens, or a prediction.
    pub values: Vec<f32>,
    /// How many a row has.
    pub width: usize,
}

/// A task's model on a device, whatever the task.
pub trait Replica: Send {
    /// The model's tensors.
    fn manifest(&self) -> &Manifest;

    /// Initial parameters from the run's seed, computed on the CPU whatever the device.
    fn initial(&self, seed: u64) -> Tensors;

    /// Takes over parameters; tensors that are empty stay as they are.
    fn load(&mut self, values: Tensors);

    /// Whether parameters that servers sent can be right, for whoever knows what they must be.
    ///
    /// # Errors
    /// What cannot be.
    fn check(&self, _: &Tensors) -> Result<(), String> {
        Ok(())
    }

    /// The gradient of one slice of the loss times `loss_scale`; `seed` is for burn's generator.
    fn gradient(&mut self, batch: HostBatch, seed: u64, loss_scale: f64) -> SliceGradient;

    /// Scores held-out samples.
    fn evaluate(&self, batch: HostBatch) -> Evaluation;

    /// What the model makes of samples.
    fn output(&self, batch: HostBatch) -> Output;

    /// One step of plain SGD that stays on the device, as a loop without a cluster makes it: what clusters are measured by.
    fn train_alone(&mut self, batch: HostBatch, learning_rate: f64);

    /// Waits until the device has done what it was told.
    fn settle(&self);
}

/// The one implementation of [`Replica`].
#[derive(Debug)]
pub struct Learner<T: Task> {
    task: T,
    /// Without and with autodiff.
    plain: Place,
    autodiff: Place,
    layout: Layout,
    /// On the autodiff device; taken out while parameters are loaded.
    model: Option<T::Model>,
    /// The buffers that every slice of a step starts from; other tensors are empty.
    buffers: Tensors,
}

impl<T: Task> Learner<T> {
    /// A learner on a device.
    ///
    /// # Errors
    /// A device that cannot be opened or has no such precision, or a model without parameters.
    pub fn new(task: T, config: &Config, name: DeviceName) -> Result<Self, OpenError> {
        let device = device::open(name).map_err(OpenError::Device)?;
        let dtype = match config.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::F16 => DType::F16,
        };
        if dtype != DType::F32 && !Dispatch::supports_dtype(&device, dtype) {
            let problem = format!("--precision {}: the device {name} does not compute with it", config.precision);
            return Err(OpenError::Device(problem));
        }
        let plain = Place { device: device.clone(), dtype };
        let autodiff = Place { device: DispatchDevice::autodiff(device), dtype };
        let model = task.model(&autodiff.device);
        let layout = Layout::of(&model, |name| config.optimizer.for_tensor(name).frozen).map_err(OpenError::Task)?;
        let buffers = vec![Values::default(); layout.manifest.tensors().len()];
        Ok(Learner { task, plain, autodiff, layout, model: Some(model), buffers })
    }

    fn model(&self) -> &T::Model {
        self.model.as_ref().expect("the model is only out while it is loaded")
    }

    fn set(&mut self, values: Tensors) {
        if let Some(model) = self.model.take() {
            self.model = Some(self.layout.load(model, values, &self.autodiff));
        }
    }

    /// Scores samples without autodiff: dropout and batch normalisation know by the device.
    fn score(&self, batch: HostBatch) -> Score {
        self.task.score(&self.model().valid(), &T::Batch::upload(batch, &self.plain))
    }
}

impl<T: Task> Replica for Learner<T> {
    fn manifest(&self) -> &Manifest {
        &self.layout.manifest
    }

    fn initial(&self, seed: u64) -> Tensors {
        let cpu = device::open(DeviceName::Cpu).expect("every build has the CPU");
        Dispatch::seed(&cpu, stream(seed, Purpose::Parameters, 0, 0).next_u64());
        // Ids differ between models, paths do not: the entries are the same.
        let model = self.task.model(&DispatchDevice::autodiff(cpu));
        Layout::of(&model, |_| false).expect("the model has parameters").values(&model)
    }

    fn load(&mut self, values: Tensors) {
        for ((kept, values), tensor) in self.buffers.iter_mut().zip(&values).zip(self.layout.manifest.tensors()) {
            if tensor.role == TensorRole::Buffer && !values.is_empty() {
                kept.clone_from(values);
            }
        }
        self.set(values);
    }

    fn gradient(&mut self, batch: HostBatch, seed: u64, loss_scale: f64) -> SliceGradient {
        Dispatch::seed(&self.plain.device, seed);
        let has_buffers = self.buffers.iter().any(|values| !values.is_empty());
        if has_buffers {
            self.set(self.buffers.clone());
        }
        let score = self.task.score(self.model(), &T::Batch::upload(batch, &self.autodiff));
        let loss = if loss_scale == 1.0 { score.loss_sum.clone() } else { score.loss_sum.clone() * loss_scale };
        let mut gradients = loss.backward();
        // Taking the model off the autodiff device settles what the forward pass left pending in its buffers.
        let settled = has_buffers.then(|| (self.model().valid(), score.weight));
        let (tensors, loss_sum) = self.layout.gradients(self.model(), &mut gradients, settled, score.loss_sum.inner());
        let finite = loss_sum.is_finite() && parameters::are_finite(&tensors);
        SliceGradient { weight: score.weight, loss_sum: loss_sum.into(), finite, tensors }
    }

    fn evaluate(&self, batch: HostBatch) -> Evaluation {
        let truth = T::Batch::truth(&batch);
        let score = self.score(batch);
        let transaction = Transaction::default().register(score.loss_sum);
        if truth.is_empty() {
            let sums = transaction.execute();
            return Evaluation { weight: score.weight, loss_sum: sums[0].iter::<f64>().sum(), correct: 0 };
        }
        let best = score.output.argmax(1).reshape([truth.len()]);
        let both = transaction.register(best).execute();
        let [loss, best] = both.as_slice() else { unreachable!("two tensors were registered") };
        let correct = best.iter::<i64>().zip(&truth).filter(|(best, truth)| *best == i64::from(**truth)).count();
        Evaluation { weight: score.weight, loss_sum: loss.iter::<f64>().sum(), correct: correct as u64 }
    }

    fn output(&self, batch: HostBatch) -> Output {
        let output = self.score(batch).output;
        let width = output.dims()[1];
        Output { values: output.into_data().iter().collect(), width }
    }

    fn train_alone(&mut self, batch: HostBatch, learning_rate: f64) {
        let Some(model) = self.model.take() else { return };
        let score = self.task.score(&model, &T::Batch::upload(batch, &self.autodiff));
        let gradients = (score.loss_sum / score.weight).backward();
        let gradients = GradientsParams::from_grads(gradients, &model);
        let mut optimizer = SgdConfig::new().init::<Dispatch, T::Model>();
        self.model = Some(optimizer.step(learning_rate, model, gradients));
    }

    fn settle(&self) {
        // A device that fails says so to whoever reads from it.
        let _ = Dispatch::sync(&self.plain.device);
    }
}
