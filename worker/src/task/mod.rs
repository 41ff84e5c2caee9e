//! Tasks: what is trained. One small trait, one table; a task's file holds its model and how it is scored.

use burn::{
    Dispatch, DispatchDevice,
    module::AutodiffModule,
    tensor::{Int, Tensor, activation::log_softmax},
};
use convoy_proto::config::{Config, ConfigError, raw::choice};

use crate::{
    data::DataInfo,
    device::DeviceName,
    learner::{Learner, Replica},
};

mod cnn;
mod mlp;

/// Samples on a device.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[samples, features]`, channel-major.
    pub features: Tensor<Dispatch, 2>,
    /// `[samples]`, below the number of classes.
    pub labels: Tensor<Dispatch, 1, Int>,
}

/// What a model makes of a batch, unnormalised.
#[derive(Clone, Debug)]
pub struct Score {
    /// `[1]`: the loss, summed over the batch.
    pub loss_sum: Tensor<Dispatch, 1>,
    /// What the mean is taken over: samples, tokens, …
    pub weight: f64,
    /// `[rows, classes]`: unnormalised log-probabilities, for accuracy and predictions.
    pub logits: Tensor<Dispatch, 2>,
}

/// Something to train.
///
/// A task is the shape of a model and how it is scored. Everything else (devices, data order, gradients, exchange) is
/// the same for all tasks. A task's functions must not draw random numbers but through burn, whose generator is seeded
/// for each slice.
pub trait Task: Sized + Send + 'static {
    /// The model, on a device with or without autodiff.
    type Model: AutodiffModule<Dispatch, InnerModule = Self::Model>;

    /// The task for data of this form, sized as the configuration asks.
    ///
    /// # Errors
    /// Data that the task cannot be trained on, in words.
    fn new(config: &Config, data: &DataInfo) -> Result<Self, String>;

    /// A model with initial parameters from burn's generator.
    fn model(&self, device: &DispatchDevice) -> Self::Model;

    /// Scores a batch.
    fn score(&self, model: &Self::Model, batch: &Batch) -> Score;
}

/// Why there is no replica.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OpenError {
    /// The task does not go with the configuration or the data.
    #[error("{0}")]
    Task(String),
    /// The device does not open.
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
    open: Open,
}

impl TaskEntry {
    /// A row for a task.
    pub const fn new<T: Task>(name: &'static str, about: &'static str) -> TaskEntry {
        TaskEntry { name, about, open: open_task::<T> }
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
    Ok(Box::new(Learner::new(task, data.features(), device)?))
}

/// Every task there is.
pub const TASKS: &[TaskEntry] = &[
    TaskEntry::new::<cnn::CnnTask>("cnn", "two convolutions with pooling, then dense layers"),
    TaskEntry::new::<mlp::MlpTask>("mlp", "dense layers with ReLU"),
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

/// The cross entropy of logits and labels, summed over the rows.
pub fn cross_entropy(logits: Tensor<Dispatch, 2>, labels: Tensor<Dispatch, 1, Int>) -> Score {
    let [rows, _] = logits.dims();
    let chosen = log_softmax(logits.clone(), 1).gather(1, labels.reshape([rows, 1]));
    Score { loss_sum: chosen.sum().neg(), weight: rows as f64, logits }
}
