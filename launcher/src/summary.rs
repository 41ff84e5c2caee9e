//! summary.json: what a run was and how it ended. docs/summary.schema.json describes it.

use std::collections::BTreeMap;

use convoy_proto::{config::Config, ids::ServerId, layout::Layout};
use serde::{Deserialize, Serialize};

use crate::coordinator::{
    core::Cluster,
    evaluation::Score,
    records::{Seconds, ServerRecord, WorkerRecord},
};

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It trains.
    Running,
    /// It made all its steps.
    Done,
    /// It ended early.
    Failed,
    /// Its loss is not finite.
    Diverged,
    /// A person stopped it.
    Stopped,
}

/// Whether the run can be repeated bit for bit, or why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Exact {
    /// It can.
    Yes(bool),
    /// It cannot.
    No(String),
}

/// The file.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "docs/summary.schema.json describes each field, and a test holds it to these")]
pub struct Summary {
    pub name: String,
    pub status: Status,
    pub exit_code: Option<u8>,
    pub error: Option<String>,
    pub task: String,
    pub data: String,
    pub mode: String,
    pub seed: u64,
    pub slices: u32,
    pub batch_size: u32,
    pub parameters: u64,
    pub steps: u64,
    pub skipped_steps: u64,
    pub dropped_slices: u64,
    pub epochs: f64,
    pub samples: u64,
    pub wall_seconds: f64,
    pub samples_per_second: f64,
    pub final_loss: Option<f64>,
    pub eval: Option<Score>,
    pub ema: Option<EmaSummary>,
    pub best: Option<BestSummary>,
    pub stopped_early: bool,
    pub params_sha256: Option<String>,
    pub exact: Exact,
    pub restarts: u64,
    pub faults: u64,
    pub recoveries: BTreeMap<String, Recoveries>,
    pub rollbacks: u64,
    pub takeovers: u64,
    pub resumes: u64,
    pub lost_updates: u64,
    pub checkpoints: u64,
    pub failed_checkpoints: u64,
    pub workers: Vec<WorkerSummary>,
    pub servers: Vec<ServerSummary>,
}

/// The average of the weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "see Summary")]
pub struct EmaSummary {
    pub decay: f64,
    pub eval: Option<Score>,
    pub params_sha256: String,
}

/// The parameters with the lowest held-out loss.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "see Summary")]
pub struct BestSummary {
    #[serde(flatten)]
    pub score: Score,
    pub params_sha256: String,
}

/// A worker's row.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "see Summary")]
pub struct WorkerSummary {
    pub rank: u32,
    pub pid: u32,
    pub host: String,
    pub backend: String,
    pub device: String,
    pub slices: usize,
    pub samples: u64,
    pub bytes_pushed: u64,
    pub bytes_pulled: u64,
    pub seconds: Seconds,
    pub restarts: u64,
}

/// A server's row.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "see Summary")]
pub struct ServerSummary {
    pub rank: u32,
    pub shard: u32,
    pub pid: u32,
    pub address: String,
    pub blocks: usize,
    pub restarts: u64,
}

/// What the launcher has noted beside the cluster's own record.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Notes {
    /// Samples in one pass over the data.
    pub epoch_samples: u64,
    /// From the first step to the last commit.
    pub wall_seconds: f64,
    /// Mean loss of the last committed step.
    pub final_loss: Option<f64>,
    /// The last score of the held-out data.
    pub eval: Option<Score>,
    /// The last score by the average of the weights.
    pub ema_eval: Option<Score>,
    /// That average, once it is saved.
    pub ema: Option<EmaSummary>,
    /// The best parameters so far, where they are kept.
    pub best: Option<BestSummary>,
    /// Whether patience ran out.
    pub stopped_early: bool,
    /// Steps, or rounds, that were committed.
    pub committed: u64,
    /// Steps that were skipped because something was not finite.
    pub skipped: u64,
    /// SHA-256 of the final parameters.
    pub params_sha256: Option<String>,
    /// Samples in the commits that were made.
    pub samples: u64,
    /// Processes that died.
    pub faults: u64,
    /// Whether workers came or went while it trained, so that slices changed hands.
    #[serde(default)]
    pub has_moved: bool,
    /// How often the run went back to a checkpoint because a server died.
    pub rollbacks: u64,
    /// Servers that died while another had their shard.
    #[serde(default)]
    pub takeovers: u64,
    /// How often another launcher went on.
    pub resumes: u64,
    /// Asynchronous commits that a roll-back undid for good.
    pub lost_updates: u64,
    /// Checkpoints that were written.
    pub checkpoints: u64,
    /// Checkpoints that could not be written.
    pub failed_checkpoints: u64,
    /// By rank, how often a server was started again.
    pub server_restarts: BTreeMap<u32, u64>,
    /// By role, how long it took from a fault to the next step.
    pub recoveries: BTreeMap<String, Recoveries>,
}

/// How long it took to get over faults.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "see Summary")]
pub struct Recoveries {
    pub count: u64,
    pub mean_seconds: f64,
    pub worst_seconds: f64,
}

impl Recoveries {
    /// Adds one.
    pub fn add(&mut self, seconds: f64) {
        self.count += 1;
        self.mean_seconds += (seconds - self.mean_seconds) / self.count as f64;
        self.worst_seconds = self.worst_seconds.max(seconds);
    }
}

impl Summary {
    /// The summary as things stand.
    pub fn new(config: &Config, cluster: &Cluster, notes: &Notes) -> Summary {
        let workers: Vec<_> = cluster.workers().iter().flatten().map(|worker| worker_row(worker, cluster)).collect();
        let samples = notes.samples;
        let per_second = if notes.wall_seconds > 0.0 { samples as f64 / notes.wall_seconds } else { 0.0 };
        Summary {
            name: config.name.clone(),
            status: Status::Running,
            exit_code: None,
            error: None,
            task: config.task.clone(),
            data: config.data.clone(),
            mode: config.mode.name().into(),
            seed: config.seed,
            slices: config.slices,
            batch_size: config.batch_size,
            parameters: cluster.reference().manifest.elements(),
            steps: cluster.steps(),
            skipped_steps: notes.skipped,
            dropped_slices: cluster.engine().left_out(),
            epochs: samples as f64 / notes.epoch_samples.max(1) as f64,
            samples,
            wall_seconds: notes.wall_seconds,
            samples_per_second: per_second,
            final_loss: notes.final_loss,
            eval: notes.eval,
            ema: notes.ema.clone(),
            best: notes.best.clone(),
            stopped_early: notes.stopped_early,
            params_sha256: notes.params_sha256.clone(),
            exact: exact(config, cluster, notes),
            restarts: workers.iter().map(|worker| worker.restarts).sum::<u64>()
                + notes.server_restarts.values().sum::<u64>(),
            faults: notes.faults,
            recoveries: notes.recoveries.clone(),
            rollbacks: notes.rollbacks,
            takeovers: notes.takeovers,
            resumes: notes.resumes,
            lost_updates: notes.lost_updates,
            checkpoints: notes.checkpoints,
            failed_checkpoints: notes.failed_checkpoints,
            servers: server_rows(config, cluster, notes),
            workers,
        }
    }

    /// The same, ended.
    pub fn ended(mut self, status: Status, exit_code: u8, error: Option<String>) -> Summary {
        self.status = status;
        self.exit_code = Some(exit_code);
        self.error = error;
        self
    }
}

fn worker_row(worker: &WorkerRecord, cluster: &Cluster) -> WorkerSummary {
    let rank = worker.member.rank;
    WorkerSummary {
        rank,
        pid: worker.pid,
        host: worker.host.clone(),
        backend: worker.offer.backend.clone(),
        device: worker.offer.device.clone(),
        slices: cluster.owned_by(convoy_proto::ids::WorkerId(rank)).len(),
        samples: worker.totals.samples,
        bytes_pushed: worker.totals.bytes_pushed,
        bytes_pulled: worker.totals.bytes_pulled,
        seconds: worker.totals.seconds,
        restarts: worker.totals.restarts,
    }
}

fn server_rows(config: &Config, cluster: &Cluster, notes: &Notes) -> Vec<ServerSummary> {
    let map = convoy_proto::blocks::BlockMap::new(&cluster.reference().manifest, config.servers);
    let row = |server: &ServerRecord| {
        let rank = server.member.rank;
        let shard = Layout::of(config).shard_of(ServerId(rank));
        ServerSummary {
            rank,
            shard: shard.0,
            pid: server.pid,
            address: server.address.clone(),
            blocks: map.of_shard(shard).len(),
            restarts: notes.server_restarts.get(&rank).copied().unwrap_or(0),
        }
    };
    cluster.servers().iter().flatten().map(row).collect()
}

fn exact(config: &Config, cluster: &Cluster, notes: &Notes) -> Exact {
    if let Some(why) = config.mode.inexact() {
        return Exact::No(why.into());
    }
    // What is fed back stays with the process that computed it.
    if config.codec.feeds_back() && (notes.has_moved || notes.resumes + notes.rollbacks > 0) {
        let codec = config.codec;
        return Exact::No(format!("slices changed hands, and what --codec {codec} had lost of them stayed behind"));
    }
    let classes: Vec<_> = cluster.numeric_classes().into_iter().collect();
    match classes.as_slice() {
        [] => Exact::No("no worker has joined".into()),
        [_] => Exact::Yes(true),
        several => {
            let names: Vec<_> = several.iter().map(|(class, ranks)| format!("workers {ranks:?} on {class}")).collect();
            Exact::No(format!("workers compute in different ways: {}", names.join("; ")))
        }
    }
}
