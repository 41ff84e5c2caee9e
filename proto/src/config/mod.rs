//! A run's configuration: what was asked for, checked, with every default filled in.
//!
//! Values come in layers (defaults < file < environment < `--set` < flags; [`layers`]), are read as a [`raw::RawConfig`]
//! and checked into a [`Config`]. This module reads neither files nor the environment: the launcher hands both in.
//! Names of tasks and data sets are checked by the worker crate, which has their tables.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub mod chaos;
pub mod checkpoint;
pub mod consistency;
pub mod input;
pub mod keys;
pub mod layers;
pub mod model;
pub mod network;
pub mod optimizer;
pub mod origins;
pub mod raw;
pub mod schedule;
pub mod watch;
mod written;

pub use checkpoint::{Checkpoints, Every};
pub use consistency::{LocalSteps, Mode, Quorum, Staleness};
pub use input::Input;
pub use model::Model;
pub use network::{Network, Transport};
pub use optimizer::{Clip, Group, Moments, Optimizer, Rule, TensorSettings};
pub use raw::RawConfig;
pub use schedule::Schedule;
pub use watch::Watch;

use crate::{chaos::Chaos, codec::Codec, order::LastBatch, slow::SlowWorker};

/// A configuration that cannot be used, and where it came from.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A key that does not exist.
    #[error("{origin}: there is no key `{key}`{}", suggestion.as_ref().map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())]
    UnknownKey {
        /// Which layer it is in.
        origin: String,
        /// The key.
        key: String,
        /// The nearest key there is.
        suggestion: Option<String>,
    },
    /// A value of the wrong kind.
    #[error("{origin}: `{key}` is {found}, but must be {wanted}")]
    Kind {
        /// Which layer it is in.
        origin: String,
        /// The key.
        key: String,
        /// What was given.
        found: String,
        /// What is needed.
        wanted: String,
    },
    /// Two keys that exclude each other, in one layer.
    #[error("{origin}: `{one}` and `{other}` exclude each other; give one of them")]
    Conflict {
        /// Which layer they are in.
        origin: String,
        /// One key.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A file that is no TOML.
    #[error("{origin}: {problem}")]
    Syntax {
        /// Which layer.
        origin: String,
        /// What is wrong and where.
        problem: String,
    },
    /// A value that is out of range or does not fit the others.
    #[error("`{key}` = {value}: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// Where workers compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The first of cuda, wgpu and cpu that opens.
    Auto,
    /// NVIDIA GPUs.
    Cuda,
    /// GPUs through Vulkan.
    Wgpu,
    /// The processor.
    Cpu,
}

impl std::fmt::Display for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Backend::Auto => "auto",
            Backend::Cuda => "cuda",
            Backend::Wgpu => "wgpu",
            Backend::Cpu => "cpu",
        })
    }
}

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many steps.
    Steps(u64),
    /// So many passes over the training data.
    Epochs(u64),
}

/// What workers compute with; servers keep 32 bits whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
    /// 16 bits with a small range: the loss is scaled.
    F16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        })
    }
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Between two heartbeats.
    pub heartbeat_ms: u32,
    /// Without a heartbeat, until a member counts as lost.
    pub lease_ms: u32,
    /// Until all members have joined.
    pub start_ms: u32,
    /// Without a committed step, until the run gives up.
    pub step_ms: u32,
    /// Before a process is started again for the first time; each time after that twice as long.
    pub restart_ms: u32,
    /// From the first request to stop until the run ends with what it has.
    pub stop_ms: u32,
}

/// A run's configuration, checked and complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The run's name: its folder below `run_dir`.
    pub name: String,
    /// The root of runs.
    pub run_dir: String,
    /// Worker processes.
    pub workers: u32,
    /// Those of them that run on the coordinator's machine; the rest wait for others to join.
    pub local_workers: u32,
    /// Server processes that run on the coordinator's machine, the first at least; the rest wait for others to join.
    pub local_servers: u32,
    /// Worker processes that must be alive for the run to go on.
    pub min_workers: u32,
    /// Worker processes that may be asked for while the run goes on.
    pub max_workers: u32,
    /// How often each worker or server that dies is started again.
    pub max_restarts: u32,
    /// Shards of the parameters, each on a server process of its own.
    pub servers: u32,
    /// Further server processes that hold each shard, too.
    pub replicas: u32,
    /// When gradients are aggregated.
    pub mode: Mode,
    /// What is trained.
    pub task: String,
    /// On what.
    pub data: String,
    /// Where.
    pub backend: Backend,
    /// For how long.
    pub length: Length,
    /// Samples per step, over all workers.
    pub batch_size: u32,
    /// Parts of a step's batch; a sum's bits depend on it, not on the number of workers.
    pub slices: u32,
    /// What becomes of an epoch's samples that fill no batch.
    pub last_batch: LastBatch,
    /// The seed of everything random.
    pub seed: u64,
    /// Steps between evaluations; 0 evaluates at the end only.
    pub eval_every: u64,
    /// Held-out samples that an evaluation scores at most, evenly spaced; 0 is no limit.
    pub eval_samples: u32,
    /// Evaluations in a row without a lower loss after which training ends; 0 is no limit.
    pub patience: u64,
    /// Whether the parameters with the lowest held-out loss are kept, too.
    pub keep_best: bool,
    /// What workers compute with.
    pub precision: Precision,
    /// What the loss is multiplied by at first; a power of two.
    pub loss_scale: f64,
    /// Skipped steps in a row after which the run counts as diverged.
    pub max_skipped: u64,
    /// Faults that the run brings about in itself.
    pub chaos: Option<Chaos>,
    /// Its checkpoints.
    pub checkpoint: Checkpoints,
    /// A worker that is slow on purpose.
    pub slow_worker: Option<SlowWorker>,
    /// Where it can be reached, and by whom.
    pub network: Network,
    /// How gradients are pushed.
    pub codec: Codec,
    /// What a person sees of it.
    pub watch: Watch,
    /// How data are read.
    pub input: Input,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// How the learning rate changes.
    pub schedule: Schedule,
    /// The model's size.
    pub model: Model,
    /// How long to wait for what.
    pub timeouts: Timeouts,
}

impl Config {
    /// The configuration as TOML, every key present; reading it gives the same configuration.
    pub fn to_toml(&self) -> String {
        toml::to_string(&RawConfig::from(self)).unwrap_or_else(|error| format!("# unwritable: {error}\n"))
    }

    /// Reads what [`Config::to_toml`] wrote.
    ///
    /// # Errors
    /// Anything that is not such a text; `origin` names it.
    pub fn from_toml(origin: &str, text: &str) -> Result<Config, ConfigError> {
        layers::Layers::new().toml(origin, text)?.raw()?.resolve(1)
    }

    /// SHA-256 of the configuration, the same for all members of a run.
    pub fn fingerprint(&self) -> Vec<u8> {
        Sha256::digest(self.to_toml()).to_vec()
    }

    /// Whether workers wait after an evaluation until the launcher has looked at it.
    pub fn reviews_evaluations(&self) -> bool {
        self.keep_best || self.patience > 0
    }

    /// What identifies the run among others: its name. Members of different runs refuse each other.
    pub fn run_id(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests;
