//! A model at work: gradients of slices, scores of held-out batches, parameters in and out.

use burn::{
    Dispatch, DispatchDevice,
    tensor::{Tensor, TensorData, Transaction, activation::softmax, backend::Backend},
};
use convoy_proto::{
    manifest::Manifest,
    order::{Purpose, stream},
    sum,
};
use rand_core::RngCore;

use crate::{
    data::HostBatch,
    device::{self, DeviceName},
    parameters::{Layout, Tensors},
    task::{Batch, OpenError, Task},
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
    /// Gradients of the loss sum.
    pub tensors: Tensors,
}

/// Sums over held-out samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Samples, or whatever the mean is over.
    pub weight: f64,
    /// Sum of the loss.
    pub loss_sum: f64,
    /// Samples whose most likely class is their label.
    pub correct: u64,
}

/// What a model says of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The most likely class.
    pub label: u32,
    /// Its probability.
    pub probability: f32,
}

/// A task's model on a device, whatever the task.
pub trait Replica: Send {
    /// The model's tensors.
    fn manifest(&self) -> &Manifest;

    /// Initial parameters from the run's seed, computed on the CPU whatever the device.
    fn initial(&self, seed: u64) -> Tensors;

    /// Takes over parameters; tensors that are empty stay as they are.
    fn load(&mut self, values: Tensors);

    /// The gradient of one slice; `seed` is for burn's generator.
    fn gradient(&mut self, batch: HostBatch, seed: u64) -> SliceGradient;

    /// Scores held-out samples.
    fn evaluate(&self, batch: HostBatch) -> Evaluation;

    /// Classifies samples.
    fn predict(&self, batch: HostBatch) -> Vec<Prediction>;
}

/// The one implementation of [`Replica`].
#[derive(Debug)]
pub struct Learner<T: Task> {
    task: T,
    features: usize,
    device: DispatchDevice,
    autodiff: DispatchDevice,
    layout: Layout,
    /// On the autodiff device; taken out while parameters are loaded.
    model: Option<T::Model>,
}

impl<T: Task> Learner<T> {
    /// A learner on a device, for samples of so many features.
    ///
    /// # Errors
    /// A device that cannot be opened, or a model without parameters.
    pub fn new(task: T, features: usize, device: DeviceName) -> Result<Self, OpenError> {
        let device = device::open(device).map_err(OpenError::Device)?;
        let autodiff = DispatchDevice::autodiff(device.clone());
        let model = task.model(&autodiff);
        let layout = Layout::of(&model).map_err(OpenError::Task)?;
        Ok(Learner { task, features, device, autodiff, layout, model: Some(model) })
    }

    fn model(&self) -> &T::Model {
        self.model.as_ref().expect("the model is only out while it is loaded")
    }

    fn batch(&self, batch: HostBatch, device: &DispatchDevice) -> Batch {
        let rows = batch.len();
        Batch {
            features: Tensor::from_data(TensorData::new(batch.features, [rows, self.features]), device),
            labels: Tensor::from_data(TensorData::new(batch.labels, [rows]), device),
        }
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
        Layout::of(&model).expect("the model has parameters").values(&model)
    }

    fn load(&mut self, values: Tensors) {
        if let Some(model) = self.model.take() {
            self.model = Some(self.layout.load(model, values, &self.autodiff));
        }
    }

    fn gradient(&mut self, batch: HostBatch, seed: u64) -> SliceGradient {
        Dispatch::seed(&self.device, seed);
        let score = self.task.score(self.model(), &self.batch(batch, &self.autodiff));
        let gradients = score.loss_sum.backward();
        let (tensors, loss_sum) = self.layout.gradients(self.model(), &gradients, score.loss_sum.inner());
        let finite = loss_sum.is_finite() && tensors.iter().all(|values| sum::all_finite(values));
        SliceGradient { weight: score.weight, loss_sum: loss_sum.into(), finite, tensors }
    }

    fn evaluate(&self, batch: HostBatch) -> Evaluation {
        use burn::module::AutodiffModule;
        let labels = batch.labels.clone();
        let score = self.task.score(&self.model().valid(), &self.batch(batch, &self.device));
        let rows = labels.len();
        let best = score.logits.argmax(1).reshape([rows]);
        let both = Transaction::default().register(score.loss_sum).register(best).execute();
        let [loss, best] = both.as_slice() else { unreachable!("two tensors were registered") };
        let correct = best.iter::<i64>().zip(&labels).filter(|(best, label)| *best == i64::from(**label)).count();
        Evaluation { weight: score.weight, loss_sum: loss.iter::<f64>().sum(), correct: correct as u64 }
    }

    fn predict(&self, batch: HostBatch) -> Vec<Prediction> {
        use burn::module::AutodiffModule;
        let score = self.task.score(&self.model().valid(), &self.batch(batch, &self.device));
        let classes = score.logits.dims()[1];
        let probabilities: Vec<f32> = softmax(score.logits, 1).into_data().iter().collect();
        let best = |row: &[f32]| {
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            best.map_or(Prediction { label: 0, probability: f32::NAN }, |(label, probability)| Prediction {
                label: label as u32,
                probability: *probability,
            })
        };
        probabilities.chunks(classes).map(best).collect()
    }
}
