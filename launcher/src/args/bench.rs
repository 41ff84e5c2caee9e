//! What `launcher bench` is told.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::TrainArgs;

/// What to measure.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What.
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// What can be measured.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Transfers: parameters pulled, gradients pushed, and both at once, beside a plain TCP connection
    Net(ExchangeArgs),
    /// Synchronous rounds: all workers write gradients, servers sum and update, all workers read the parameters
    Round(ExchangeArgs),
    /// Training on workers beside the fastest plain loop in one process on the same cores
    Train(BenchTrainArgs),
    /// What a server sums and updates, beside a plain copy
    Server(BenchServerArgs),
    /// A plain training loop in one process, with these flags of training
    #[command(hide = true)]
    Plain(Box<PlainArgs>),
}

/// How results are shown.
#[derive(Args, Clone, Copy, Debug)]
pub struct ShowArgs {
    /// Print JSON: {"rows": […], "raw": {…}}
    #[arg(long)]
    pub json: bool,
}

/// A grid of exchanges.
#[derive(Args, Clone, Debug)]
pub struct ExchangeArgs {
    /// Worker processes, numbers with commas between them
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4")]
    pub workers: Vec<u32>,
    /// Server processes
    #[arg(long, value_name = "M,…", value_delimiter = ',', default_value = "1")]
    pub servers: Vec<u32>,
    /// Sizes of the parameters in MiB; 0.0625 is 64 KiB
    #[arg(long, value_name = "MIB,…", value_delimiter = ',', default_value = "64")]
    pub mib: Vec<f64>,
    /// How tensors get from process to process: shm, grpc
    #[arg(long, value_name = "WAY,…", value_delimiter = ',', default_value = "shm,grpc")]
    pub transport: Vec<String>,
    /// How gradients are pushed: f32, bf16, f16, int8, topk:SHARE
    #[arg(long, value_name = "CODEC,…", value_delimiter = ',', default_value = "f32")]
    pub codec: Vec<String>,
    /// Draw the medians into a file, by size and workers (for `round`)
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Rounds that are timed
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rounds: u32,
    /// How they are shown.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// A grid of trainings.
#[derive(Args, Clone, Debug)]
pub struct BenchTrainArgs {
    /// Tasks: mlp, cnn, gpt
    #[arg(long, value_name = "TASK,…", value_delimiter = ',', default_value = "mlp,cnn,gpt")]
    pub tasks: Vec<String>,
    /// Worker processes, numbers with commas between them
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4")]
    pub workers: Vec<u32>,
    /// Samples a worker computes in a step [default: 128 for mlp, 64 for cnn, 8 for gpt]
    #[arg(long, value_name = "N")]
    pub batch: Option<u32>,
    /// Seconds that each training is timed, about
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub seconds: f64,
    /// Seconds before that which are not timed: memory is taken, kernels are compiled [default: 1, or 8 on GPUs]
    #[arg(long, value_name = "S")]
    pub warm: Option<f64>,
    /// Where to compute: cuda, wgpu or cpu
    #[arg(long, default_value = "cpu")]
    pub backend: String,
    /// How they are shown.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// A grid of shards.
#[derive(Args, Clone, Debug)]
pub struct BenchServerArgs {
    /// Gradients that are summed, numbers with commas between them
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4")]
    pub workers: Vec<u32>,
    /// Sizes of the parameters in MiB
    #[arg(long, value_name = "MIB,…", value_delimiter = ',', default_value = "64")]
    pub mib: Vec<f64>,
    /// Optimizers
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "sgd,adamw")]
    pub optimizers: Vec<String>,
    /// How they are shown.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// A plain loop.
#[derive(Args, Clone, Debug)]
pub struct PlainArgs {
    /// What to train, and how.
    #[command(flatten)]
    pub train: TrainArgs,
    /// Threads for computing
    #[arg(long)]
    pub threads: usize,
    /// Seconds before the clock starts
    #[arg(long)]
    pub warm: f64,
    /// Seconds to go on for
    #[arg(long)]
    pub seconds: f64,
}
