//! What is asked for on the command line: flags, and the configuration keys that they stand for.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use crate::outcome::Failure;

mod bench;
mod commands;
mod network;
mod watch;

pub use bench::{BenchArgs, BenchCommand, BenchServerArgs, BenchTrainArgs, ExchangeArgs, PlainArgs, ShowArgs};
pub use commands::{
    CertsArgs, CompareArgs, DoctorArgs, EmitArgs, EvalArgs, GenerateArgs, InspectArgs, JoinArgs, ListArgs, LoggedRole,
    LogsArgs, PingArgs, ResumeArgs, RunArgs, ScaleArgs, ShowRunArgs, StatusArgs, Target, VerifyArgs, Which,
};
pub use network::{HostsArgs, NetworkArgs, RendezvousArgs};
pub use watch::{DashboardArgs, WatchArgs, WatchFlags};

/// The run that is meant if nothing is said.
const LATEST: &str = "latest";

/// Where runs are; before or after any subcommand.
#[derive(Args, Clone, Debug)]
pub struct Places {
    /// Root of runs [default: runs]
    #[arg(long, value_name = "DIR", global = true)]
    pub run_dir: Option<String>,
    /// Name of the run: its folder below the root [default: from task, data and time]
    #[arg(long, global = true)]
    pub name: Option<String>,
}

impl Places {
    /// The run that a command is about: what it says, or what --name says if it says nothing else.
    ///
    /// # Errors
    /// Both say something, and not the same.
    pub fn meant<'a>(&'a self, run: &'a str) -> Result<&'a str, Failure> {
        match &self.name {
            None => Ok(run),
            Some(name) if run == LATEST || run == name => Ok(name),
            Some(name) => Err(Failure::Usage(format!("{run} and --name {name} name two runs; give one of them"))),
        }
    }

    /// The root of runs.
    pub fn root(&self) -> &str {
        self.run_dir.as_deref().unwrap_or("runs")
    }
}

/// What to train, and how.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct TrainArgs {
    /// Worker processes, or auto: one a GPU, one on the CPU [default: auto]
    #[arg(long, value_name = "N|auto", help_heading = "Cluster")]
    pub workers: Option<String>,
    /// How often each worker or server that dies is started again [default: 3]
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    pub max_restarts: Option<String>,
    /// Worker processes that must be alive, or about to be started again, for the run to go on [default: all]
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    pub min_workers: Option<String>,
    /// Worker processes that `launcher scale` may ask for while the run goes on [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    pub max_workers: Option<String>,
    /// Those of the --workers that this machine runs; the rest wait for `launcher join` on others [default: all]
    #[arg(long, value_name = "N", help_heading = "Network")]
    pub local_workers: Option<String>,
    /// Those of the server processes that this machine runs; the rest wait for `launcher join --servers` on others
    /// [default: all]
    #[arg(long, value_name = "N", help_heading = "Network")]
    pub local_servers: Option<String>,
    /// Shards of the parameters, each on a server process of its own [default: 1]
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    pub servers: Option<String>,
    /// Further servers that hold each shard, too, so that one may die and training goes on: 0 or 1 [default: 0]
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    pub replicas: Option<String>,
    /// Steps between checkpoints, or time such as 30s or 10m; 0 writes one only when told to stop [default: 60s]
    #[arg(long, value_name = "N|TIME", help_heading = "Checkpoints")]
    pub checkpoint_every: Option<String>,
    /// Where to keep checkpoints, under the run's name: a directory, or s3://BUCKET/PREFIX, gs://… or az://… with
    /// credentials from the environment [default: the run's directory]
    #[arg(long, value_name = "DIR|URL", help_heading = "Checkpoints")]
    pub checkpoint_to: Option<String>,
    /// Checkpoints to keep, the newest [default: 2]
    #[arg(long, value_name = "N", help_heading = "Checkpoints")]
    pub keep_last: Option<String>,
    /// Go on with the run of this --name if there is one (auto), or begin with a checkpoint, or the newest of a run, by its
    /// path or URL [default: never]
    #[arg(long, value_name = "auto|PATH|URL|never", help_heading = "Checkpoints")]
    pub resume: Option<String>,
    /// When gradients are aggregated.
    #[command(flatten)]
    pub consistency: ConsistencyArgs,
    /// Where workers compute: auto, cuda, wgpu or cpu [default: auto]
    #[arg(long, help_heading = "Cluster")]
    pub backend: Option<String>,
    /// What workers compute with: f32, bf16 or f16; servers keep f32 [default: f32]
    #[arg(long, help_heading = "Cluster")]
    pub precision: Option<String>,
    /// How gradients are pushed: f32 as they are, bf16, f16, int8, or topk:SHARE, the largest elements only, such as
    /// topk:0.01; what int8 and topk lose is made up for in the next step [default: f32]
    #[arg(long, value_name = "CODEC", help_heading = "Cluster")]
    pub codec: Option<String>,
    /// How it is reached.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// What there is to see of it.
    #[command(flatten)]
    pub watch: WatchFlags,
    /// Which machines take part.
    #[command(flatten)]
    pub rendezvous: RendezvousArgs,
    /// Which are reached by ssh.
    #[command(flatten)]
    pub hosts: HostsArgs,
    /// Testing aid: faults on purpose, such as kill-worker:1@20,kill-server@30, or, with --mtbf, kill-worker,kill-server;
    /// also stop-worker, disk-full and torn-checkpoint
    #[arg(long, value_name = "KIND[:RANK][@STEP],…", help_heading = "Checkpoints")]
    pub chaos: Option<String>,
    /// Testing aid: mean time between faults that come at random
    #[arg(long, value_name = "TIME", help_heading = "Checkpoints")]
    pub mtbf: Option<String>,
    /// Testing aid: seed of the times and victims of faults [default: 0]
    #[arg(long, value_name = "N", help_heading = "Checkpoints")]
    pub chaos_seed: Option<String>,
    /// What to train: cnn, mlp, regression, resnet, gpt or synthetic [default: what suits the data]
    #[arg(long, help_heading = "Training")]
    pub task: Option<String>,
    /// What to train on: digits[:SEED], mnist:DIR, cifar10:DIR, images:DIR, csv:FILE, parquet:FILE or text:PATH
    /// [default: digits]
    #[arg(long, value_name = "SPEC", help_heading = "Training")]
    pub data: Option<String>,
    /// Steps to train
    #[arg(long, value_name = "N", conflicts_with = "epochs", help_heading = "Training")]
    pub steps: Option<String>,
    /// Passes over the training data [default: 4; for tables as many as make 1500 steps, up to 200]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub epochs: Option<String>,
    /// Samples per step, over all workers [default: 128]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: Option<String>,
    /// Parts of a step's batch; results depend on it, not on the number of workers [default: as many as workers]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub slices: Option<String>,
    /// Multiplies batch size and slices: each worker computes so many parts a step, one after the other [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub grad_accum: Option<String>,
    /// What becomes of an epoch's samples that fill no batch: ragged (a smaller one), drop or wrap (filled up)
    /// [default: ragged]
    #[arg(long, value_name = "HOW", help_heading = "Training")]
    pub last_batch: Option<String>,
    /// sgd, momentum, nesterov, adagrad, rmsprop, adam, adamw, lamb or lion [default: adamw]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub optimizer: Option<String>,
    /// Highest learning rate [default: the optimizer's, such as 0.001 for adamw]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub lr: Option<String>,
    /// constant, warmup, cosine, linear, step, inverse_sqrt or one_cycle [default: constant]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub schedule: Option<String>,
    /// Steps over which the learning rate rises from near 0 [default: the schedule's]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub warmup: Option<String>,
    /// Weight decay [default: the optimizer's, such as 0.01 for adamw]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub weight_decay: Option<String>,
    /// Largest L2 norm of the mean gradient; 0 is no limit [default: 0]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip_norm: Option<String>,
    /// Largest magnitude of an element of the mean gradient; 0 is no limit [default: 0]
    #[arg(long, value_name = "VALUE", help_heading = "Training")]
    pub clip_value: Option<String>,
    /// Decay of an average of the weights, which is scored and saved, too, such as 0.999
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub ema: Option<String>,
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<String>,
    /// Steps between evaluations; 0 evaluates at the end only [default: 100]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub eval_every: Option<String>,
    /// Held-out samples that an evaluation scores at most, evenly spaced; 0 is no limit [default: 10000]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub eval_samples: Option<String>,
    /// Evaluations in a row without a lower loss after which training ends; 0 is no limit [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub patience: Option<String>,
    /// Keep the parameters with the lowest held-out loss, too
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Training")]
    pub keep_best: bool,
    /// How to read the data.
    #[command(flatten)]
    pub input: InputArgs,
    /// Configuration file; give it again for more, each above those before it
    #[arg(long, value_name = "FILE.toml", help_heading = "Configuration")]
    pub config: Vec<PathBuf>,
    /// Set one key of the configuration, such as optimizer.lr=0.01
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Configuration")]
    pub set: Vec<String>,
    /// Print the resolved configuration and who would compute where, and end
    #[arg(long, help_heading = "Configuration")]
    pub dry_run: bool,
}

/// When gradients are aggregated.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct ConsistencyArgs {
    /// Synchronous steps (the default): short for --mode sync
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Consistency")]
    pub sync: bool,
    /// Every push commits by itself: short for --mode async
    #[arg(long = "async", action = ArgAction::SetTrue, help_heading = "Consistency")]
    pub asynchronous: bool,
    /// As --async, but no worker begins a step while more than K ahead of the slowest: short for --mode ssp
    #[arg(long, value_name = "K", help_heading = "Consistency")]
    pub ssp: Option<String>,
    /// Each slice makes H steps by itself between two commits (DiLoCo): short for --mode local
    #[arg(long, value_name = "H", help_heading = "Consistency")]
    pub local_steps: Option<String>,
    /// When gradients are aggregated: sync, async, ssp or local [default: sync]
    #[arg(long, help_heading = "Consistency")]
    pub mode: Option<String>,
    /// Sync: commit a step when so many of its slices are in, and drop the rest [default: all]
    #[arg(long, value_name = "Q", help_heading = "Consistency")]
    pub quorum: Option<String>,
    /// Sync: as --quorum, with what all but so many workers own
    #[arg(long, value_name = "B", help_heading = "Consistency")]
    pub backup_workers: Option<String>,
    /// Async, ssp: divide the learning rate by the commits since the gradient's parameters
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Consistency")]
    pub staleness_lr: bool,
    /// Async, ssp: how strongly to correct stale gradients for the change since (DC-ASGD), such as 0.04 [default: 0]
    #[arg(long, value_name = "LAMBDA", help_heading = "Consistency")]
    pub compensation: Option<String>,
    /// Testing aid: add DELAY to a step of a worker, or of each, with probability P, such as 3:50ms or any:50ms@0.25
    #[arg(long, value_name = "RANK|any:DELAY[@P]", help_heading = "Consistency")]
    pub slow_worker: Option<String>,
}

impl ConsistencyArgs {
    /// Why two of the flags exclude each other, if there are two that choose a mode.
    pub fn conflict(&self) -> Option<String> {
        let given = [
            (self.sync, "--sync", "waits for the slices of each step"),
            (self.asynchronous, "--async", "never waits"),
            (self.ssp.is_some(), "--ssp", "waits when it is too far ahead"),
            (self.local_steps.is_some(), "--local-steps", "waits once a round"),
            (self.mode.is_some(), "--mode", "names the mode"),
        ];
        let mut given = given.iter().filter(|(is_given, ..)| *is_given);
        let ((_, one, does), (_, other, but)) = (given.next()?, given.next()?);
        Some(format!("{one} and {other} exclude each other: {one} {does}, {other} {but}; give one of them"))
    }
}

impl From<&ConsistencyArgs> for Pairs {
    fn from(args: &ConsistencyArgs) -> Self {
        let named = [
            (args.sync, "sync"),
            (args.asynchronous, "async"),
            (args.ssp.is_some(), "ssp"),
            (args.local_steps.is_some(), "local"),
        ];
        let mode = named.iter().find(|(is_given, _)| *is_given).map(|(_, name)| (*name).to_string());
        let staleness_lr = args.staleness_lr.then(|| "true".to_string());
        given([
            ("mode", &mode.or_else(|| args.mode.clone())),
            ("consistency.quorum", &args.quorum),
            ("consistency.backup_workers", &args.backup_workers),
            ("consistency.max_staleness", &args.ssp),
            ("consistency.staleness_lr", &staleness_lr),
            ("consistency.compensation", &args.compensation),
            ("consistency.local_steps", &args.local_steps),
            ("slow_worker", &args.slow_worker),
        ])
    }
}

/// How to read data.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct InputArgs {
    /// Share that is held out where the source has no test part [default: 0.1]
    #[arg(long, value_name = "SHARE", help_heading = "Data")]
    pub test_size: Option<String>,
    /// Tables: the column to predict, by name or index from 0 [default: the last]
    #[arg(long, value_name = "NAME|INDEX", help_heading = "Data")]
    pub label: Option<String>,
    /// Tables: columns to leave out, by name or index, commas between them
    #[arg(long, value_name = "NAMES", help_heading = "Data")]
    pub drop: Option<String>,
    /// Tables: what to do about an empty cell: refuse or mean [default: refuse]
    #[arg(long, value_name = "WHAT", help_heading = "Data")]
    pub missing: Option<String>,
    /// Csv: what separates cells, one character or tab [default: found out]
    #[arg(long, value_name = "CHARACTER", help_heading = "Data")]
    pub delimiter: Option<String>,
    /// Csv: whether the first line names the columns: auto, yes or no [default: auto]
    #[arg(long, value_name = "WHAT", help_heading = "Data")]
    pub header: Option<String>,
    /// Text: a tokenizer.json of Hugging Face's [default: bytes are the tokens]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub tokenizer: Option<String>,
    /// Images: height and width that they are brought to [default: their own if all are alike, else 64]
    #[arg(long, value_name = "PIXELS", help_heading = "Data")]
    pub image_size: Option<String>,
}

/// Keys and what flags say of them.
pub type Pairs = Vec<(String, String)>;

fn given<const N: usize>(flags: [(&str, &Option<String>); N]) -> Pairs {
    flags.into_iter().filter_map(|(key, value)| Some((key.to_string(), value.clone()?))).collect()
}

impl From<&InputArgs> for Pairs {
    fn from(args: &InputArgs) -> Self {
        given([
            ("input.test_size", &args.test_size),
            ("input.label", &args.label),
            ("input.drop", &args.drop),
            ("input.missing", &args.missing),
            ("input.delimiter", &args.delimiter),
            ("input.header", &args.header),
            ("input.tokenizer", &args.tokenizer),
            ("input.image_size", &args.image_size),
        ])
    }
}

impl From<&TrainArgs> for Pairs {
    fn from(args: &TrainArgs) -> Self {
        let keep_best = args.keep_best.then(|| "true".to_string());
        let mut pairs = given([
            ("workers", &args.workers),
            ("local_workers", &args.local_workers),
            ("local_servers", &args.local_servers),
            ("min_workers", &args.min_workers),
            ("max_workers", &args.max_workers),
            ("max_restarts", &args.max_restarts),
            ("servers", &args.servers),
            ("replicas", &args.replicas),
            ("chaos.faults", &args.chaos),
            ("chaos.mtbf", &args.mtbf),
            ("chaos.seed", &args.chaos_seed),
            ("checkpoint.every", &args.checkpoint_every),
            ("checkpoint.to", &args.checkpoint_to),
            ("checkpoint.keep_last", &args.keep_last),
            ("backend", &args.backend),
            ("precision", &args.precision),
            ("codec", &args.codec),
            ("task", &args.task),
            ("data", &args.data),
            ("steps", &args.steps),
            ("epochs", &args.epochs),
            ("batch_size", &args.batch_size),
            ("slices", &args.slices),
            ("grad_accum", &args.grad_accum),
            ("last_batch", &args.last_batch),
            ("optimizer.name", &args.optimizer),
            ("optimizer.lr", &args.lr),
            ("schedule.name", &args.schedule),
            ("schedule.warmup", &args.warmup),
            ("optimizer.weight_decay", &args.weight_decay),
            ("optimizer.clip_norm", &args.clip_norm),
            ("optimizer.clip_value", &args.clip_value),
            ("optimizer.ema", &args.ema),
            ("seed", &args.seed),
            ("eval_every", &args.eval_every),
            ("eval_samples", &args.eval_samples),
            ("patience", &args.patience),
            ("keep_best", &keep_best),
        ]);
        pairs.extend(Pairs::from(&args.network));
        pairs.extend(Pairs::from(&args.watch));
        pairs.extend(Pairs::from(&args.consistency));
        pairs.extend(Pairs::from(&args.input));
        pairs
    }
}
