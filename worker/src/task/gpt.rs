//! A causal transformer that predicts the next token (Radford et al., 2019): blocks of attention and a dense layer, each
//! behind a layer normalisation. By default 6 blocks of width 256 with 8 heads, as the benchmarks measure it.

use burn::{
    Dispatch, DispatchDevice,
    module::{Initializer, Module},
    nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig},
    tensor::{Bool, DType, Int, Tensor, TensorCreationOptions, TensorData, activation::softmax, backend::Backend},
};
use convoy_proto::config::{Config, model::Positions};

use super::{Score, Sequences, Task, cross_entropy};
use crate::data::DataInfo;

/// What stands for minus infinity; 16 bits hold it, too.
const NEVER: f32 = -3e4;
/// The base of rotary frequencies.
const THETA: f64 = 10_000.0;

/// The model.
#[derive(Module, Debug)]
pub struct Gpt<B: Backend> {
    token: Embedding<B>,
    position: Option<Embedding<B>>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
    head: Linear<B>,
    dropout: Dropout,
}

/// A block: attention, then a dense layer four times as wide.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    attention_norm: LayerNorm<B>,
    qkv: Linear<B>,
    out: Linear<B>,
    dense_norm: LayerNorm<B>,
    up: Linear<B>,
    down: Linear<B>,
    dropout: Dropout,
    heads: usize,
}

/// What all blocks of a pass share.
struct Pass<B: Backend> {
    /// `[1, 1, length, length]`: what a position must not see.
    hidden: Tensor<B, 4, Bool>,
    /// Cosines and sines, `[1, 1, length, head / 2]`.
    turn: Option<(Tensor<B, 4>, Tensor<B, 4>)>,
}

impl<B: Backend> Block<B> {
    fn forward(&self, x: Tensor<B, 3>, pass: &Pass<B>) -> Tensor<B, 3> {
        let attended = self.attend(self.attention_norm.forward(x.clone()), pass);
        let x = x + self.dropout.forward(attended);
        let dense = self.down.forward(gelu(self.up.forward(self.dense_norm.forward(x.clone()))));
        x + self.dropout.forward(dense)
    }

    fn attend(&self, x: Tensor<B, 3>, pass: &Pass<B>) -> Tensor<B, 3> {
        let [windows, length, width] = x.dims();
        let head = width / self.heads;
        let parts = self.qkv.forward(x).chunk(3, 2).into_iter();
        let mut parts = parts.map(|part| part.reshape([windows, length, self.heads, head]).swap_dims(1, 2));
        let mut part = || parts.next().expect("three chunks were cut");
        let (mut q, mut k, v) = (part(), part(), part());
        if let Some((cos, sin)) = &pass.turn {
            (q, k) = (rotate(q, cos, sin), rotate(k, cos, sin));
        }
        let scores = q.matmul(k.swap_dims(2, 3)) * (head as f32).sqrt().recip();
        let hidden = pass.hidden.clone().expand([windows, self.heads, length, length]);
        let shares = self.dropout.forward(softmax(scores.mask_fill(hidden, NEVER), 3));
        self.out.forward(shares.matmul(v).swap_dims(1, 2).reshape([windows, length, width]))
    }
}

/// The approximation by tanh (Hendrycks and Gimpel, 2016), multiplied out.
fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let inner = (x.clone() * x.clone() * x.clone() * 0.044_715 + x.clone()) * (2.0 / std::f64::consts::PI).sqrt();
    x * (inner.tanh() + 1.0) * 0.5
}

/// Turns each pair of a head's halves by its position's angle.
fn rotate<B: Backend>(x: Tensor<B, 4>, cos: &Tensor<B, 4>, sin: &Tensor<B, 4>) -> Tensor<B, 4> {
    let mut halves = x.chunk(2, 3).into_iter();
    let mut half = || halves.next().expect("two chunks were cut");
    let (a, b) = (half(), half());
    let (cos, sin) = (cos.clone(), sin.clone());
    Tensor::cat(vec![a.clone() * cos.clone() - b.clone() * sin.clone(), a * sin + b * cos], 3)
}

impl<B: Backend> Gpt<B> {
    /// Logits, `[windows × length, vocabulary]`, of tokens, `[windows, length]`.
    fn forward(&self, tokens: Tensor<B, 2, Int>) -> Tensor<B, 2> {
        let [windows, length] = tokens.dims();
        let mut x = self.token.forward(tokens);
        // Of a tensor of numbers: only those know whether they are on an autodiff device.
        let device = x.device();
        let [_, _, width] = x.dims();
        if let Some(position) = &self.position {
            let places = Tensor::<B, 1, Int>::arange(0..length as i64, &device).reshape([1, length]);
            x = x + position.forward(places);
        }
        let heads = self.blocks.first().map_or(1, |block| block.heads);
        let turn = self.position.is_none().then(|| turns(length, width / heads, x.dtype(), &device));
        let hidden = Tensor::<B, 2, Bool>::tril_mask([length, length], 0, &device).reshape([1, 1, length, length]);
        let pass = Pass { hidden, turn };
        x = self.dropout.forward(x);
        for block in &self.blocks {
            x = block.forward(x, &pass);
        }
        let logits = self.head.forward(self.norm.forward(x));
        let [_, _, vocabulary] = logits.dims();
        logits.reshape([windows * length, vocabulary])
    }
}

/// Cosines and sines of every position's angles.
fn turns<B: Backend>(length: usize, head: usize, dtype: DType, device: &B::Device) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let half = head / 2;
    let angle = |place: usize, pair: usize| place as f64 / THETA.powf(2.0 * pair as f64 / head as f64);
    let angles: Vec<f64> = (0..length).flat_map(|place| (0..half).map(move |pair| angle(place, pair))).collect();
    let table = |of: fn(f64) -> f64| {
        let values: Vec<f32> = angles.iter().map(|angle| of(*angle) as f32).collect();
        let options = TensorCreationOptions::new(device.clone()).with_dtype(dtype);
        Tensor::from_data(TensorData::new(values, [1, 1, length, half]), options)
    };
    (table(f64::cos), table(f64::sin))
}

/// The task.
#[derive(Debug)]
pub struct GptTask {
    layers: usize,
    width: usize,
    heads: usize,
    context: usize,
    vocabulary: usize,
    dropout: f64,
    positions: Positions,
}

impl Task for GptTask {
    type Model = Gpt<Dispatch>;
    type Batch = Sequences;

    fn new(config: &Config, data: &DataInfo) -> Result<Self, String> {
        let (context, vocabulary) = data.tokens("gpt")?;
        let model = &config.model;
        model.only("gpt", &["layers", "width", "heads", "context", "dropout", "positions"])?;
        let size = |value: Option<u32>, usual| value.map_or(usual, |n| n as usize);
        let (layers, width, heads) = (size(model.layers, 6), size(model.width, 256), size(model.heads, 8));
        let positions = model.positions.unwrap_or(Positions::Learned);
        if !width.is_multiple_of(heads) {
            return Err(format!("`model.width` = {width}: must be a multiple of `model.heads`, which is {heads}"));
        }
        if positions == Positions::Rotary && !(width / heads).is_multiple_of(2) {
            let head = width / heads;
            return Err(format!("`model.positions` = \"rotary\": heads must have an even width, not {head}"));
        }
        let dropout = model.dropout.unwrap_or(0.0).into();
        Ok(GptTask { layers, width, heads, context, vocabulary, dropout, positions })
    }

    fn model(&self, device: &DispatchDevice) -> Gpt<Dispatch> {
        let normal = |std| Initializer::Normal { mean: 0.0, std };
        // The more blocks add to the sum, the less each does at first (Radford et al., 2019).
        let last = 0.02 / (2.0 * self.layers as f64).sqrt();
        let linear = |inputs, outputs, std| {
            LinearConfig::new(inputs, outputs).with_initializer(normal(std)).init::<Dispatch>(device)
        };
        let embedding = |count| EmbeddingConfig::new(count, self.width).with_initializer(normal(0.02)).init(device);
        let norm = || LayerNormConfig::new(self.width).init(device);
        let dropout = DropoutConfig::new(self.dropout).init();
        let width = self.width;
        let block = |_| Block {
            attention_norm: norm(),
            qkv: linear(width, 3 * width, 0.02),
            out: linear(width, width, last),
            dense_norm: norm(),
            up: linear(width, 4 * width, 0.02),
            down: linear(4 * width, width, last),
            dropout: dropout.clone(),
            heads: self.heads,
        };
        Gpt {
            token: embedding(self.vocabulary),
            position: (self.positions == Positions::Learned).then(|| embedding(self.context)),
            blocks: (0..self.layers).map(block).collect(),
            norm: norm(),
            head: LinearConfig::new(width, self.vocabulary)
                .with_bias(false)
                .with_initializer(normal(0.02))
                .init(device),
            dropout: dropout.clone(),
        }
    }

    fn score(&self, model: &Gpt<Dispatch>, batch: &Sequences) -> Score {
        cross_entropy(model.forward(batch.tokens.clone()), batch.next.clone())
    }
}
