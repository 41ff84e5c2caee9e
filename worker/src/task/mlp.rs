//! A classifier of dense layers: by default 784-512-512-10 on digits, and two layers of 64 on tables.

use burn::{
    Dispatch, DispatchDevice,
    module::Module,
    nn::{Dropout, DropoutConfig, Linear, LinearConfig},
    tensor::{Tensor, activation::relu, backend::Backend},
};
use convoy_proto::config::{Config, Model};

use super::{Labelled, Score, Task, cross_entropy};
use crate::data::DataInfo;

/// The model.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    layers: Vec<Linear<B>>,
    dropout: Dropout,
}

impl<B: Backend> Mlp<B> {
    /// The outputs, `[samples, outputs]`, of features, `[samples, features]`.
    pub fn forward(&self, mut x: Tensor<B, 2>) -> Tensor<B, 2> {
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if index + 1 < self.layers.len() {
                x = self.dropout.forward(relu(x));
            }
        }
        x
    }
}

/// The size of an [`Mlp`].
#[derive(Debug)]
pub struct Shape {
    /// From the features over the hidden layers to the outputs.
    widths: Vec<usize>,
    dropout: f64,
}

impl Shape {
    /// As the configuration asks, or what suits samples of this shape.
    ///
    /// # Errors
    /// Keys that have no meaning for `task`, in words.
    pub fn new(task: &str, model: &Model, shape: [usize; 3], outputs: usize) -> Result<Shape, String> {
        model.only(task, &["hidden", "dropout"])?;
        let is_table = shape[..2] == [1, 1];
        let hidden = match model.hidden.as_slice() {
            [] if is_table => vec![64, 64],
            [] => vec![512, 512],
            hidden => hidden.iter().map(|width| *width as usize).collect(),
        };
        let widths = std::iter::once(shape.iter().product()).chain(hidden).chain([outputs]).collect();
        Ok(Shape { widths, dropout: model.dropout.unwrap_or(0.0).into() })
    }

    /// A model with initial parameters from burn's generator.
    pub fn model(&self, device: &DispatchDevice) -> Mlp<Dispatch> {
        let layer = |pair: &[usize]| LinearConfig::new(pair[0], pair[1]).init(device);
        Mlp { layers: self.widths.windows(2).map(layer).collect(), dropout: DropoutConfig::new(self.dropout).init() }
    }
}

/// The task.
#[derive(Debug)]
pub struct MlpTask {
    shape: Shape,
}

impl Task for MlpTask {
    type Model = Mlp<Dispatch>;
    type Batch = Labelled;

    fn new(config: &Config, data: &DataInfo) -> Result<Self, String> {
        let (shape, classes) = data.classes("mlp")?;
        Ok(MlpTask { shape: Shape::new("mlp", &config.model, shape, classes)? })
    }

    fn model(&self, device: &DispatchDevice) -> Mlp<Dispatch> {
        self.shape.model(device)
    }

    fn score(&self, model: &Mlp<Dispatch>, batch: &Labelled) -> Score {
        cross_entropy(model.forward(batch.features.clone()), batch.labels.clone())
    }
}
