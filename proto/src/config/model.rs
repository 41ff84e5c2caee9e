//! The model's size, as it is configured. What is not said is the task's own choice.

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    raw::{choice, count, decimal, number, value_error},
};

/// How a transformer knows where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// A learned vector a position (Radford et al., 2019).
    Learned,
    /// Rotations of queries and keys (Su et al., 2021).
    Rotary,
}

/// What a residual network does to pictures first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stem {
    /// A 3×3 convolution: for pictures like CIFAR's.
    Small,
    /// A 7×7 convolution with stride 2 and pooling: for pictures like ImageNet's.
    Large,
}

/// The model's size; `None` and empty lists mean the task's own.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Widths of the hidden dense layers.
    pub hidden: Vec<u32>,
    /// Channels of the convolutions, or of a residual network's stages.
    pub channels: Vec<u32>,
    /// Residual blocks in each stage.
    pub blocks: Vec<u32>,
    /// What a residual network does first.
    pub stem: Option<Stem>,
    /// Transformer blocks.
    pub layers: Option<u32>,
    /// Width of a transformer.
    pub width: Option<u32>,
    /// Attention heads; they divide the width.
    pub heads: Option<u32>,
    /// Tokens that a transformer sees.
    pub context: Option<u32>,
    /// The share of activations that are dropped while training.
    pub dropout: Option<f32>,
    /// How a transformer knows where a token stands.
    pub positions: Option<Positions>,
}

impl Model {
    /// Refuses keys that a task does not have; `allowed` are the names of those it has.
    ///
    /// # Errors
    /// The first key that is set and not allowed, in words.
    pub fn only(&self, task: &str, allowed: &[&str]) -> Result<(), String> {
        let set = [
            ("hidden", !self.hidden.is_empty()),
            ("channels", !self.channels.is_empty()),
            ("blocks", !self.blocks.is_empty()),
            ("stem", self.stem.is_some()),
            ("layers", self.layers.is_some()),
            ("width", self.width.is_some()),
            ("heads", self.heads.is_some()),
            ("context", self.context.is_some()),
            ("dropout", self.dropout.is_some()),
            ("positions", self.positions.is_some()),
        ];
        let stray = set.iter().find(|(key, is_set)| *is_set && !allowed.contains(key));
        match stray {
            None => Ok(()),
            Some((key, _)) => Err(format!("`model.{key}` has no meaning for the task `{task}`")),
        }
    }
}

/// The `[model]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawModel {
    pub hidden: Option<Vec<u64>>,
    pub channels: Option<Vec<u64>>,
    pub blocks: Option<Vec<u64>>,
    pub stem: Option<String>,
    pub layers: Option<u64>,
    pub width: Option<u64>,
    pub heads: Option<u64>,
    pub context: Option<u64>,
    pub dropout: Option<f64>,
    pub positions: Option<String>,
}

impl RawModel {
    /// Checks every value by itself.
    ///
    /// # Errors
    /// A value that is out of range.
    pub(super) fn resolve(self) -> Result<Model, ConfigError> {
        let widths = |key, list: Option<Vec<u64>>| {
            list.unwrap_or_default().into_iter().map(|n| count(key, n, 1, 65_536)).collect::<Result<Vec<_>, _>>()
        };
        let size = |key, value: Option<u64>, most| value.map(|n| count(key, n, 1, most)).transpose();
        let stem = self.stem.map(|word| choice("model.stem", &word, &["small", "large"]).map(|word| word == "large"));
        let positions =
            self.positions.map(|word| choice("model.positions", &word, &["learned", "rotary"]).map(|w| w == "rotary"));
        let share = |x: f64| number("model.dropout", x, "at least 0 and below 1", |x| (0.0..1.0).contains(&x));
        let model = Model {
            hidden: widths("model.hidden", self.hidden)?,
            channels: widths("model.channels", self.channels)?,
            blocks: widths("model.blocks", self.blocks)?,
            stem: stem.transpose()?.map(|large| if large { Stem::Large } else { Stem::Small }),
            layers: size("model.layers", self.layers, 1024)?,
            width: size("model.width", self.width, 1 << 20)?,
            heads: size("model.heads", self.heads, 1024)?,
            context: size("model.context", self.context, 1 << 20)?,
            dropout: self.dropout.map(share).transpose()?.map(|x| x as f32),
            positions: positions.transpose()?.map(|r| if r { Positions::Rotary } else { Positions::Learned }),
        };
        if !model.blocks.is_empty() && !model.channels.is_empty() && model.blocks.len() != model.channels.len() {
            let problem = format!("must have as many entries as model.channels, {}", model.channels.len());
            return Err(value_error("model.blocks", format!("{:?}", model.blocks), problem));
        }
        Ok(model)
    }
}

impl From<&Model> for RawModel {
    fn from(model: &Model) -> Self {
        let wide = |list: &[u32]| Some(list.iter().map(|n| u64::from(*n)).collect());
        let stem = |stem| if stem == Stem::Large { "large" } else { "small" };
        let positions = |positions| if positions == Positions::Rotary { "rotary" } else { "learned" };
        RawModel {
            hidden: wide(&model.hidden),
            channels: wide(&model.channels),
            blocks: wide(&model.blocks),
            stem: model.stem.map(|s| stem(s).into()),
            layers: model.layers.map(Into::into),
            width: model.width.map(Into::into),
            heads: model.heads.map(Into::into),
            context: model.context.map(Into::into),
            dropout: model.dropout.map(decimal),
            positions: model.positions.map(|p| positions(p).into()),
        }
    }
}
