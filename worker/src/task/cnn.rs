//! A classifier of pictures: two 3×3 convolutions with ReLU and 2×2 max-pooling (32 and 64 channels by default), then
//! dense layers (128 by default).

use burn::{
    Dispatch, DispatchDevice,
    module::Module,
    nn::{
        Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
        pool::{MaxPool2d, MaxPool2dConfig},
    },
    tensor::{Tensor, activation::relu, backend::Backend},
};
use convoy_proto::config::Config;

use super::{Labelled, Score, Task, cross_entropy};
use crate::data::DataInfo;

/// The model.
#[derive(Module, Debug)]
pub struct Cnn<B: Backend> {
    first: Conv2d<B>,
    second: Conv2d<B>,
    pool: MaxPool2d,
    dense: Vec<Linear<B>>,
}

impl<B: Backend> Cnn<B> {
    fn forward(&self, pictures: Tensor<B, 4>) -> Tensor<B, 2> {
        let x = self.pool.forward(relu(self.first.forward(pictures)));
        let x = self.pool.forward(relu(self.second.forward(x)));
        let mut x: Tensor<B, 2> = x.flatten(1, 3);
        for (index, layer) in self.dense.iter().enumerate() {
            x = layer.forward(x);
            if index + 1 < self.dense.len() {
                x = relu(x);
            }
        }
        x
    }
}

/// The task.
#[derive(Debug)]
pub struct CnnTask {
    shape: [usize; 3],
    channels: [usize; 2],
    /// From the flattened pictures over the hidden layers to the classes.
    widths: Vec<usize>,
}

impl Task for CnnTask {
    type Model = Cnn<Dispatch>;
    type Batch = Labelled;

    fn new(config: &Config, data: &DataInfo) -> Result<Self, String> {
        let (shape, classes) = data.classes("cnn")?;
        config.model.only("cnn", &["hidden", "channels"])?;
        let [_, height, width] = shape;
        if height < 4 || width < 4 {
            return Err(format!("the task `cnn` needs pictures of at least 4×4, not {height}×{width}"));
        }
        let channels = match config.model.channels.as_slice() {
            [] => [32, 64],
            [first, second] => [*first as usize, *second as usize],
            other => return Err(format!("`model.channels` = {other:?}: the task `cnn` has two convolutions")),
        };
        let hidden = match config.model.hidden.as_slice() {
            [] => vec![128],
            hidden => hidden.iter().map(|width| *width as usize).collect(),
        };
        let flat = channels[1] * (height / 4) * (width / 4);
        let widths = std::iter::once(flat).chain(hidden).chain([classes]).collect();
        Ok(CnnTask { shape, channels, widths })
    }

    fn model(&self, device: &DispatchDevice) -> Cnn<Dispatch> {
        let conv = |channels| Conv2dConfig::new(channels, [3, 3]).with_padding(PaddingConfig2d::Same).init(device);
        let layer = |pair: &[usize]| LinearConfig::new(pair[0], pair[1]).init(device);
        Cnn {
            first: conv([self.shape[0], self.channels[0]]),
            second: conv(self.channels),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            dense: self.widths.windows(2).map(layer).collect(),
        }
    }

    fn score(&self, model: &Cnn<Dispatch>, batch: &Labelled) -> Score {
        let [samples, _] = batch.features.dims();
        let [channels, height, width] = self.shape;
        let pictures = batch.features.clone().reshape([samples, channels, height, width]);
        cross_entropy(model.forward(pictures), batch.labels.clone())
    }
}
