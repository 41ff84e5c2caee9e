//! The configuration as it is written, and its checks.

use serde::{Deserialize, Serialize};
use toml::Table;

use super::{
    Backend, Config, ConfigError, Length, Mode, Network, Precision, Timeouts,
    chaos::RawChaos,
    checkpoint::RawCheckpoints,
    consistency::{Around, RawConsistency},
    input::RawInput,
    model::RawModel,
    network::{Transport, local_servers, network},
    optimizer::RawOptimizer,
    origins::Origins,
    schedule::RawSchedule,
    watch::RawWatch,
};
use crate::{codec::Codec, loss_scale::LossScale, order::LastBatch, slow::SlowWorker};

/// A whole number or `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CountOrAuto {
    /// So many.
    Count(u64),
    /// As many as fit the machine.
    Auto(Auto),
}

/// The word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// The word `auto`.
    Auto,
}

/// What was written, nothing filled in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "the keys are documented in `keys::KEYS`, which a test holds to these fields")]
pub struct RawConfig {
    pub name: Option<String>,
    pub run_dir: Option<String>,
    pub workers: Option<CountOrAuto>,
    pub local_workers: Option<u64>,
    pub local_servers: Option<u64>,
    pub min_workers: Option<u64>,
    pub max_workers: Option<u64>,
    pub max_restarts: Option<u64>,
    pub servers: Option<u64>,
    pub replicas: Option<u64>,
    pub mode: Option<String>,
    pub task: Option<String>,
    pub data: Option<String>,
    pub backend: Option<String>,
    pub steps: Option<u64>,
    pub epochs: Option<u64>,
    pub batch_size: Option<u64>,
    pub slices: Option<u64>,
    pub grad_accum: Option<u64>,
    pub last_batch: Option<String>,
    pub seed: Option<u64>,
    pub eval_every: Option<u64>,
    pub eval_samples: Option<u64>,
    pub patience: Option<u64>,
    pub keep_best: Option<bool>,
    pub precision: Option<String>,
    pub loss_scale: Option<f64>,
    pub max_skipped: Option<u64>,
    pub slow_worker: Option<String>,
    pub listen: Option<String>,
    pub advertise_addr: Option<String>,
    pub certs: Option<String>,
    pub insecure: Option<bool>,
    pub transport: Option<String>,
    pub codec: Option<String>,
    pub chaos: RawChaos,
    pub checkpoint: RawCheckpoints,
    pub consistency: RawConsistency,
    pub input: RawInput,
    pub optimizer: RawOptimizer,
    pub schedule: RawSchedule,
    pub model: RawModel,
    pub timeouts: RawTimeouts,
    pub watch: RawWatch,
    #[serde(skip)]
    pub origins: Origins,
}

/// The `[timeouts]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawTimeouts {
    pub heartbeat_ms: Option<u64>,
    pub lease_ms: Option<u64>,
    pub start_ms: Option<u64>,
    pub step_ms: Option<u64>,
    pub restart_ms: Option<u64>,
    pub stop_ms: Option<u64>,
}

pub(super) fn value_error(key: &'static str, value: impl ToString, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, value: value.to_string(), problem: problem.into() }
}

pub(super) fn count(key: &'static str, value: u64, least: u32, most: u32) -> Result<u32, ConfigError> {
    u32::try_from(value)
        .ok()
        .filter(|n| (least..=most).contains(n))
        .ok_or_else(|| value_error(key, value, format!("must be between {least} and {most}")))
}

pub(super) fn number(
    key: &'static str,
    value: f64,
    wanted: &str,
    fits: impl Fn(f64) -> bool,
) -> Result<f64, ConfigError> {
    // As an f32 too, which is what servers compute with.
    let narrow = f64::from(value as f32);
    match (value.is_finite() && fits(value), narrow.is_finite() && fits(narrow)) {
        (true, true) => Ok(value),
        (true, false) => Err(value_error(key, value, format!("is {narrow} as a 32-bit number, but must be {wanted}"))),
        (false, _) if !value.is_finite() => Err(value_error(key, value, format!("must be a number, and {wanted}"))),
        (false, _) => Err(value_error(key, value, format!("must be {wanted}"))),
    }
}

/// A word out of a list, or an error with the list and the nearest of it.
pub fn choice<'a>(key: &'static str, value: &str, known: &[&'a str]) -> Result<&'a str, ConfigError> {
    known.iter().find(|word| **word == value).copied().ok_or_else(|| {
        let nearest = super::keys::nearest(value, known.iter().copied());
        let hint = nearest.map(|word| format!("did you mean `{word}`? ")).unwrap_or_default();
        value_error(key, format!("\"{value}\""), format!("{hint}there is {}", known.join(", ")))
    })
}

impl RawConfig {
    /// Reads a table.
    ///
    /// # Errors
    /// A key or value that does not fit.
    pub fn try_from_table(table: Table) -> Result<RawConfig, ConfigError> {
        table.try_into().map_err(|error: toml::de::Error| ConfigError::Syntax {
            origin: "configuration".into(),
            problem: error.message().replace('\n', ", "),
        })
    }

    /// The backend that is asked for.
    ///
    /// # Errors
    /// A word that names none.
    pub fn backend(&self) -> Result<Backend, ConfigError> {
        let word = self.backend.as_deref().unwrap_or("auto");
        Ok(match choice("backend", word, &["auto", "cuda", "wgpu", "cpu"])? {
            "cuda" => Backend::Cuda,
            "wgpu" => Backend::Wgpu,
            "cpu" => Backend::Cpu,
            _ => Backend::Auto,
        })
    }

    fn network(&self) -> Result<Network, ConfigError> {
        let (advertise_addr, certs) = (self.advertise_addr.clone(), self.certs.clone());
        let (insecure, transport) = (self.insecure.unwrap_or(false), Transport::named(self.transport.as_deref())?);
        network(self.listen.as_deref(), advertise_addr, certs, insecure, transport)
    }

    /// Checks everything and fills in what is not said; `auto_workers` is how many `workers = "auto"` means here.
    ///
    /// # Errors
    /// The first value that is out of range or does not fit the others, and what would.
    pub fn resolve(self, auto_workers: u32) -> Result<Config, ConfigError> {
        let origins = self.origins.clone();
        self.resolve_values(auto_workers).map_err(|problem| origins.explain(problem))
    }

    fn resolve_values(self, auto_workers: u32) -> Result<Config, ConfigError> {
        let network = self.network()?;
        let workers = match self.workers {
            Some(CountOrAuto::Count(n)) => count("workers", n, 1, 4096)?,
            Some(CountOrAuto::Auto(Auto::Auto)) | None => auto_workers,
        };
        let min_workers = count("min_workers", self.min_workers.unwrap_or(workers.into()), 1, workers)?;
        let max_workers = count("max_workers", self.max_workers.unwrap_or(4096), workers, 4096)?;
        let backend = self.backend()?;
        let length = match (self.steps, self.epochs) {
            (Some(steps), None) => Length::Steps(u64::from(count("steps", steps, 1, u32::MAX)?)),
            (None, epochs) => Length::Epochs(u64::from(count("epochs", epochs.unwrap_or(4), 1, u32::MAX)?)),
            (Some(steps), Some(_)) => return Err(value_error("steps", steps, "excludes `epochs`; give one of them")),
        };
        let accumulated = u64::from(count("grad_accum", self.grad_accum.unwrap_or(1), 1, 4096)?);
        let slices = count("slices", self.slices.unwrap_or(workers.into()).saturating_mul(accumulated), 1, 4096)?;
        let batch_size = count("batch_size", self.batch_size.unwrap_or(128).saturating_mul(accumulated), 1, 1 << 24)?;
        if batch_size < slices {
            let problem = format!("is less than the {slices} slices that a batch is cut into");
            return Err(value_error("batch_size", batch_size, problem));
        }
        let (precision, loss_scale) = precision(self.precision.as_deref(), self.loss_scale)?;
        let mode = self.consistency.resolve(self.mode.as_deref(), Around { slices, workers: workers.min(slices) })?;
        if precision == Precision::F16 && (mode.is_chosen() || matches!(mode, Mode::Local(_))) {
            let problem = format!("`f16` needs a loss scale that all follow, which mode {mode} has not; use bf16");
            return Err(value_error("precision", "\"f16\"", problem));
        }
        let servers = count("servers", self.servers.unwrap_or(1), 1, 1024)?;
        let (codec, eval_every) = (codec(self.codec.as_deref())?, self.eval_every.unwrap_or(100));
        let replicas = replicas(self.replicas.unwrap_or(0), mode, codec)?;
        let local_servers = local_servers(self.local_servers, servers * (replicas + 1), &self.checkpoint)?;
        Ok(Config {
            name: run_name(self.name.unwrap_or_default())?,
            run_dir: self.run_dir.unwrap_or_else(|| "runs".into()),
            workers,
            local_workers: count("local_workers", self.local_workers.unwrap_or(workers.into()), 0, workers)?,
            min_workers,
            max_workers,
            max_restarts: count("max_restarts", self.max_restarts.unwrap_or(3), 0, 1_000_000)?,
            servers,
            replicas,
            local_servers,
            mode,
            data: self.data.unwrap_or_else(|| "digits".into()),
            task: self.task.unwrap_or_else(|| "cnn".into()),
            backend,
            length,
            batch_size,
            slices,
            last_batch: last_batch(self.last_batch.as_deref().unwrap_or("ragged"))?,
            seed: self.seed.unwrap_or(0),
            eval_every,
            eval_samples: count("eval_samples", self.eval_samples.unwrap_or(10_000), 0, u32::MAX)?,
            patience: patience(self.patience.unwrap_or(0), eval_every)?,
            keep_best: self.keep_best.unwrap_or(false),
            precision,
            loss_scale,
            max_skipped: u64::from(count("max_skipped", self.max_skipped.unwrap_or(10), 1, u32::MAX)?),
            chaos: self.chaos.resolve()?,
            checkpoint: self.checkpoint.resolve()?,
            slow_worker: slow_worker(self.slow_worker.as_deref(), workers)?,
            network,
            codec,
            input: self.input.resolve()?,
            optimizer: self.optimizer.resolve()?,
            schedule: self.schedule.resolve()?,
            model: self.model.resolve()?,
            timeouts: self.timeouts.resolve()?,
            watch: self.watch.resolve()?,
        })
    }
}

/// Evaluations in a row without a lower loss that end the run.
fn patience(number: u64, eval_every: u64) -> Result<u64, ConfigError> {
    match (number, eval_every) {
        (1.., 0) => Err(value_error("patience", number, "needs evaluations on the way; set `eval_every` above 0")),
        _ => Ok(number),
    }
}

/// How many further servers hold each shard.
fn replicas(number: u64, mode: Mode, codec: Codec) -> Result<u32, ConfigError> {
    let number = count("replicas", number, 0, 1)?;
    if number > 0 && codec.feeds_back() {
        let problem = format!(
            "excludes `codec` = \"{codec}\": when a slice changes hands, what was lost of it stays behind, and copies of a shard \
             would no longer be alike; bf16 and f16 lose nothing that has to be kept"
        );
        return Err(value_error("replicas", number, problem));
    }
    if number > 0 && mode.staleness().is_some_and(|staleness| staleness.compensation > 0.0) {
        let problem =
            "excludes `consistency.compensation`: only the server that a worker pulled from knows what it corrects by";
        return Err(value_error("replicas", number, problem));
    }
    Ok(number)
}

/// The precision, and the loss scale that it begins with.
fn precision(word: Option<&str>, loss_scale: Option<f64>) -> Result<(Precision, f64), ConfigError> {
    let precision = match choice("precision", word.unwrap_or("f32"), &["f32", "bf16", "f16"])? {
        "bf16" => Precision::Bf16,
        "f16" => Precision::F16,
        _ => Precision::F32,
    };
    match (loss_scale, precision) {
        (None, Precision::F16) => Ok((precision, LossScale::USUAL)),
        (None, _) => Ok((precision, 1.0)),
        (Some(scale), _) if !LossScale::fits(scale) => {
            Err(value_error("loss_scale", scale, "must be a power of two between 1 and 2^24, such as 65536"))
        }
        (Some(scale), Precision::F32 | Precision::Bf16) if scale > 1.0 => {
            Err(value_error("loss_scale", scale, "has no meaning but with `precision` = \"f16\""))
        }
        (Some(scale), _) => Ok((precision, scale)),
    }
}

fn last_batch(word: &str) -> Result<LastBatch, ConfigError> {
    Ok(match choice("last_batch", word, &["ragged", "drop", "wrap"])? {
        "drop" => LastBatch::Drop,
        "wrap" => LastBatch::Wrap,
        _ => LastBatch::Ragged,
    })
}

fn slow_worker(text: Option<&str>, workers: u32) -> Result<Option<SlowWorker>, ConfigError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong = |problem: String| value_error("slow_worker", format!("\"{text}\""), problem);
    let slow: SlowWorker = text.parse().map_err(wrong)?;
    match slow.who {
        Some(rank) if rank.0 >= workers => Err(wrong(format!("there is no worker {rank} in a run of {workers}"))),
        _ => Ok(Some(slow)),
    }
}

fn run_name(name: String) -> Result<String, ConfigError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.len() > 200 {
        return Err(value_error(
            "name",
            format!("\"{}…\"", &name.chars().take(20).collect::<String>()),
            "is longer than 200 characters",
        ));
    }
    if !name.chars().all(plain) || name.starts_with('.') || name == "latest" {
        let problem = "must be made of letters, digits, `-`, `_` and `.`, not begin with `.`, and not be `latest`";
        return Err(value_error("name", format!("\"{name}\""), problem));
    }
    Ok(name)
}

impl RawTimeouts {
    fn resolve(self) -> Result<Timeouts, ConfigError> {
        const DAY: u32 = 86_400_000;
        let heartbeat_ms = count("timeouts.heartbeat_ms", self.heartbeat_ms.unwrap_or(1_000), 10, DAY)?;
        let lease_ms = count("timeouts.lease_ms", self.lease_ms.unwrap_or(15_000), 10, DAY)?;
        if lease_ms < heartbeat_ms.saturating_mul(2) {
            let problem = format!("must be at least twice timeouts.heartbeat_ms, which is {heartbeat_ms}");
            return Err(value_error("timeouts.lease_ms", lease_ms, problem));
        }
        Ok(Timeouts {
            heartbeat_ms,
            lease_ms,
            start_ms: count("timeouts.start_ms", self.start_ms.unwrap_or(120_000), 100, DAY)?,
            step_ms: count("timeouts.step_ms", self.step_ms.unwrap_or(600_000), 100, DAY)?,
            restart_ms: count("timeouts.restart_ms", self.restart_ms.unwrap_or(500), 1, DAY)?,
            stop_ms: count("timeouts.stop_ms", self.stop_ms.unwrap_or(60_000), 100, DAY)?,
        })
    }
}

fn codec(word: Option<&str>) -> Result<Codec, ConfigError> {
    let word = word.unwrap_or("f32");
    word.parse().map_err(|problem| value_error("codec", format!("\"{word}\""), problem))
}

/// The f64 that prints like the f32: 0.9 and not 0.8999999761581421.
pub fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}
