//! A classifier of dense layers: 784-512-512-10 by default on digits.

use burn::{
    Dispatch, DispatchDevice,
    module::Module,
    nn::{Linear, LinearConfig},
    tensor::{Tensor, activation::relu, backend::Backend},
};
use convoy_proto::config::Config;

use super::{Batch, Score, Task, cross_entropy};
use crate::data::DataInfo;

/// The model.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    layers: Vec<Linear<B>>,
}

impl<B: Backend> Mlp<B> {
    fn forward(&self, mut x: Tensor<B, 2>) -> Tensor<B, 2> {
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(x);
            if index + 1 < self.layers.len() {
                x = relu(x);
            }
        }
        x
    }
}

/// The task.
#[derive(Debug)]
pub struct MlpTask {
    /// From the features over the hidden layers to the classes.
    widths: Vec<usize>,
}

impl Task for MlpTask {
    type Model = Mlp<Dispatch>;

    fn new(config: &Config, data: &DataInfo) -> Result<Self, String> {
        if !config.model.channels.is_empty() {
            return Err("`model.channels` has no meaning for the task `mlp`".into());
        }
        let hidden = match config.model.hidden.as_slice() {
            [] => vec![512, 512],
            hidden => hidden.iter().map(|width| *width as usize).collect(),
        };
        let widths = std::iter::once(data.features()).chain(hidden).chain([data.classes]).collect();
        Ok(MlpTask { widths })
    }

    fn model(&self, device: &DispatchDevice) -> Mlp<Dispatch> {
        let layer = |pair: &[usize]| LinearConfig::new(pair[0], pair[1]).init(device);
        Mlp { layers: self.widths.windows(2).map(layer).collect() }
    }

    fn score(&self, model: &Mlp<Dispatch>, batch: &Batch) -> Score {
        cross_entropy(model.forward(batch.features.clone()), batch.labels.clone())
    }
}
