//! A residual network with batch normalisation (He et al., "Deep Residual Learning for Image Recognition", 2016).
//!
//! By default ResNet-18 for large pictures, and the paper's ResNet-20 for pictures of CIFAR's size. A slice's batch is
//! what statistics are taken over; running statistics are buffers, averaged over slices.

use burn::{
    Dispatch, DispatchDevice,
    module::Module,
    nn::{
        BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
        pool::{AdaptiveAvgPool2d, AdaptiveAvgPool2dConfig, MaxPool2d, MaxPool2dConfig},
    },
    tensor::{Tensor, activation::relu, backend::Backend},
};
use convoy_proto::config::{Config, model::Stem};

use super::{Labelled, Score, Task, cross_entropy};
use crate::data::DataInfo;

/// Pictures up to this height and width have the small stem.
const SMALL: usize = 64;

/// A convolution and its normalisation.
#[derive(Module, Debug)]
pub struct ConvNorm<B: Backend> {
    conv: Conv2d<B>,
    norm: BatchNorm<B>,
}

impl<B: Backend> ConvNorm<B> {
    fn new(channels: [usize; 2], kernel: usize, stride: usize, device: &B::Device) -> ConvNorm<B> {
        let pad = kernel / 2;
        let conv = Conv2dConfig::new(channels, [kernel, kernel])
            .with_stride([stride, stride])
            .with_padding(PaddingConfig2d::Explicit(pad, pad, pad, pad))
            .with_bias(false);
        ConvNorm { conv: conv.init(device), norm: BatchNormConfig::new(channels[1]).init(device) }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        self.norm.forward(self.conv.forward(x))
    }
}

/// Two convolutions, added to what they were given.
#[derive(Module, Debug)]
pub struct Residual<B: Backend> {
    first: ConvNorm<B>,
    second: ConvNorm<B>,
    /// Brings what is given to the size of what comes out.
    shortcut: Option<ConvNorm<B>>,
}

impl<B: Backend> Residual<B> {
    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let out = self.second.forward(relu(self.first.forward(x.clone())));
        let kept = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x),
            None => x,
        };
        relu(out + kept)
    }
}

/// The model.
#[derive(Module, Debug)]
pub struct Resnet<B: Backend> {
    stem: ConvNorm<B>,
    stem_pool: Option<MaxPool2d>,
    blocks: Vec<Residual<B>>,
    pool: AdaptiveAvgPool2d,
    head: Linear<B>,
}

impl<B: Backend> Resnet<B> {
    fn forward(&self, pictures: Tensor<B, 4>) -> Tensor<B, 2> {
        let mut x = relu(self.stem.forward(pictures));
        if let Some(pool) = &self.stem_pool {
            x = pool.forward(x);
        }
        for block in &self.blocks {
            x = block.forward(x);
        }
        self.head.forward(self.pool.forward(x).flatten(1, 3))
    }
}

/// The task.
#[derive(Debug)]
pub struct ResnetTask {
    shape: [usize; 3],
    classes: usize,
    stem: Stem,
    /// By stage: its channels, and how many residual blocks it has.
    stages: Vec<(usize, usize)>,
}

impl Task for ResnetTask {
    type Model = Resnet<Dispatch>;
    type Batch = Labelled;

    fn new(config: &Config, data: &DataInfo) -> Result<Self, String> {
        let (shape, classes) = data.classes("resnet")?;
        let model = &config.model;
        model.only("resnet", &["channels", "blocks", "stem"])?;
        let [_, height, width] = shape;
        if height < 8 || width < 8 {
            return Err(format!("the task `resnet` needs pictures of at least 8×8, not {height}×{width}"));
        }
        let is_small = height.max(width) <= SMALL;
        let stem = model.stem.unwrap_or(if is_small { Stem::Small } else { Stem::Large });
        let list = |given: &[u32], usual: &[usize]| match given {
            [] => usual.to_vec(),
            given => given.iter().map(|n| *n as usize).collect(),
        };
        let (channels, blocks) = match stem {
            Stem::Small => (list(&model.channels, &[16, 32, 64]), list(&model.blocks, &[3, 3, 3])),
            Stem::Large => (list(&model.channels, &[64, 128, 256, 512]), list(&model.blocks, &[2, 2, 2, 2])),
        };
        if channels.len() != blocks.len() {
            let (c, b) = (channels.len(), blocks.len());
            return Err(format!("`model.channels` has {c} stages and `model.blocks` has {b}; set both"));
        }
        Ok(ResnetTask { shape, classes, stem, stages: channels.into_iter().zip(blocks).collect() })
    }

    fn model(&self, device: &DispatchDevice) -> Resnet<Dispatch> {
        let first = self.stages[0].0;
        let (kernel, stride) = if self.stem == Stem::Large { (7, 2) } else { (3, 1) };
        let pool =
            MaxPool2dConfig::new([3, 3]).with_strides([2, 2]).with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
        let stem = ConvNorm::new([self.shape[0], first], kernel, stride, device);
        let (mut blocks, mut inputs) = (Vec::new(), first);
        for (stage, (channels, count)) in self.stages.iter().enumerate() {
            for number in 0..*count {
                let stride = if stage > 0 && number == 0 { 2 } else { 1 };
                let changes = stride > 1 || inputs != *channels;
                blocks.push(Residual {
                    first: ConvNorm::new([inputs, *channels], 3, stride, device),
                    second: ConvNorm::new([*channels, *channels], 3, 1, device),
                    shortcut: changes.then(|| ConvNorm::new([inputs, *channels], 1, stride, device)),
                });
                inputs = *channels;
            }
        }
        Resnet {
            stem,
            stem_pool: (self.stem == Stem::Large).then(|| pool.init()),
            blocks,
            pool: AdaptiveAvgPool2dConfig::new([1, 1]).init(),
            head: LinearConfig::new(inputs, self.classes).init(device),
        }
    }

    fn score(&self, model: &Resnet<Dispatch>, batch: &Labelled) -> Score {
        let [samples, _] = batch.features.dims();
        let [channels, height, width] = self.shape;
        let pictures = batch.features.clone().reshape([samples, channels, height, width]);
        cross_entropy(model.forward(pictures), batch.labels.clone())
    }
}
