//! Tasks: what is trained. One small trait, one table; a task's file holds its model and how it is scored.

use burn::{Dispatch, DispatchDevice, module::AutodiffModule, tensor::Tensor};
use convoy_proto::config::{Config, ConfigError, raw::choice};

use crate::{
    data::{DataInfo, Wanted},
    device::DeviceName,
    learner::{Learner, Replica},
};

mod cnn;
mod gpt;
mod loss;
mod mlp;
mod regression;
mod resnet;
pub mod samples;
mod synthetic;

pub use loss::{cross_entropy, squared_error};
pub use samples::{Labelled, Measured, Samples, Sequences};

/// What a model makes of a batch, unnormalised.
#[derive(Clone, Debug)]
pub struct Score {
    /// `[1]`: the loss, summed over the batch.
    pub loss_sum: Tensor<Dispatch, 1>,
    /// What the mean is taken over: samples, tokens, …
    pub weight: f64,
    /// `[rows, outputs]`: unnormalised log-probabilities of classes or tokens, or a prediction.
    pub output: Tensor<Dispatch, 2>,
}

/// Something to train.
///
/// A task is the shape of a model and how it is scored. Everything else (devices, data order, gradients, exchange) is
/// the same for all tasks. A task's functions must not draw random numbers but through burn, whose generator is seeded
/// for each slice.
pub trait Task: Sized + Send + 'static {
    /// The model, on a device with or without autodiff.
    type Model: AutodiffModule<Dispatch, InnerModule = Self::Model>;
    /// The kind of samples.
    type Batch: Samples;

    /// The task for data of this form, sized as the configuration asks.
    ///
    /// # Errors
    /// Data that the task cannot be trained on, in words.
    fn new(config: &Config, data: &DataInfo) -> Result<Self, String>;

    /// A model with initial parameters from burn's generator.
    fn model(&self, device: &DispatchDevice) -> Self::Model;

    /// Scores a batch.
    fn score(&self, model: &Self::Model, batch: &Self::Batch) -> Score;
}

/// Why there is no replica.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpenError {
    /// The task does not go with the configuration or the data.
    #[error("{0}")]
    Task(String),
    /// The device does not open, or cannot compute what it is asked to.
    #[error("{0}")]
    Device(String),
}

/// Opens a replica of a task's model.
type Open = fn(&Config, &DataInfo, DeviceName) -> Result<Box<dyn Replica>, OpenError>;

/// A row of the table of tasks.
#[derive(Clone, Copy, Debug)]
pub struct TaskEntry {
    /// Its name in configurations.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// What its data must have.
    pub wanted: Wanted,
    open: Open,
}

impl TaskEntry {
    /// A row for a task.
    pub const fn new<T: Task>(name: &'static str, about: &'static str) -> TaskEntry {
        TaskEntry { name, about, wanted: T::Batch::WANTED, open: open_task::<T> }
    }

    /// A replica of the task's model on a device, its parameters not loaded yet.
    ///
    /// # Errors
    /// Data that the task cannot be trained on, or a device that cannot be opened.
    pub fn open(&self, config: &Config, data: &DataInfo, device: DeviceName) -> Result<Box<dyn Replica>, OpenError> {
        (self.open)(config, data, device)
    }
}

fn open_task<T: Task>(config: &Config, data: &DataInfo, device: DeviceName) -> Result<Box<dyn Replica>, OpenError> {
    let task = T::new(config, data).map_err(OpenError::Task)?;
    Ok(Box::new(Learner::new(task, config, device)?))
}

/// Every task there is.
pub const TASKS: &[TaskEntry] = &[
    TaskEntry::new::<cnn::CnnTask>("cnn", "two convolutions with pooling, then dense layers"),
    TaskEntry::new::<mlp::MlpTask>("mlp", "dense layers with ReLU, for pictures and tables"),
    TaskEntry::new::<regression::RegressionTask>("regression", "dense layers with ReLU that predict a number"),
    TaskEntry::new::<resnet::ResnetTask>("resnet", "a residual network with batch normalisation"),
    TaskEntry::new::<gpt::GptTask>("gpt", "a causal transformer that predicts text"),
    synthetic::ENTRY,
];

/// The task of a table with this name.
///
/// # Errors
/// There is none; names the nearest.
pub fn find<'a>(tasks: &'a [TaskEntry], name: &str) -> Result<&'a TaskEntry, ConfigError> {
    let names: Vec<_> = tasks.iter().map(|task| task.name).collect();
    let name = choice("task", name, &names)?;
    Ok(tasks.iter().find(|task| task.name == name).expect("the name is one of the table's"))
}
