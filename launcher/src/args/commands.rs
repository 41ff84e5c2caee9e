//! What the commands beside training are told.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{InputArgs, NetworkArgs, Pairs, given};

/// Which of a run's parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Which {
    /// Those that training ended with.
    #[default]
    Final,
    /// The average of the weights, if one was kept (--ema).
    Ema,
    /// Those with the lowest held-out loss, if they were kept (--keep-best).
    Best,
}

/// A finished run, and where to compute.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
    /// Which of its parameters
    #[arg(long, value_enum, default_value_t)]
    pub weights: Which,
    /// Where to compute: auto, cuda, wgpu or cpu [default: as the run did]
    #[arg(long)]
    pub backend: Option<String>,
}

/// What run to go on with, and with how many processes.
#[derive(Args, Clone, Debug)]
pub struct ResumeArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
    /// Worker processes [default: as before]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Those of them that this machine runs; the rest wait for `launcher join` on others [default: as before]
    #[arg(long, value_name = "N")]
    pub local_workers: Option<String>,
    /// Shards of the parameters, each on a server process of its own [default: as before]
    #[arg(long, value_name = "N")]
    pub servers: Option<String>,
    /// Further servers that hold each shard, too [default: as before]
    #[arg(long, value_name = "N")]
    pub replicas: Option<String>,
    /// Worker processes that must be alive, or about to be started again, for the run to go on
    #[arg(long, value_name = "N")]
    pub min_workers: Option<String>,
    /// How often each worker or server that dies is started again
    #[arg(long, value_name = "N")]
    pub max_restarts: Option<String>,
    /// How it is reached.
    #[command(flatten)]
    pub network: NetworkArgs,
}

impl From<&ResumeArgs> for Pairs {
    fn from(args: &ResumeArgs) -> Self {
        let mut pairs = given([
            ("workers", &args.workers),
            ("local_workers", &args.local_workers),
            ("servers", &args.servers),
            ("replicas", &args.replicas),
            ("min_workers", &args.min_workers),
            ("max_restarts", &args.max_restarts),
        ]);
        pairs.extend(Pairs::from(&args.network));
        pairs
    }
}

/// What to score again.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// Which run.
    #[command(flatten)]
    pub run: RunArgs,
    /// Write one line a held-out sample: what it is, and what the model makes of it
    #[arg(long, value_name = "FILE.csv")]
    pub predictions: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What run to join, and with how many workers.
#[derive(Args, Clone, Debug)]
pub struct JoinArgs {
    /// Where the launcher that coordinates listens
    #[arg(value_name = "HOST:PORT")]
    pub coordinator: String,
    /// Worker processes to run here
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub workers: u32,
    /// The name of the run that is meant [default: whatever run is there]
    #[arg(long, visible_alias = "rdzv-id", value_name = "NAME")]
    pub id: Option<String>,
    /// Where workers compute: auto, cuda, wgpu or cpu [default: as the run says]
    #[arg(long)]
    pub backend: Option<String>,
    /// Where the run's data are on this machine [default: where they are on the coordinator's]
    #[arg(long, value_name = "SPEC")]
    pub data: Option<String>,
    /// Directory with ca.crt, tls.crt, tls.key and token; see `launcher certs`
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// How long to wait for the run to be there, or to be there again, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub wait: u64,
}

/// What certificates to make, and where.
#[derive(Args, Clone, Debug)]
pub struct CertsArgs {
    /// Directory to make, or to fill: with ca.crt, ca.key, tls.crt, tls.key and token
    pub dir: PathBuf,
    /// Name or address of a machine that the certificate is for; give it again for more [default: this one's, and loopback]
    #[arg(long = "host", value_name = "HOST")]
    pub hosts: Vec<String>,
    /// For another machine of a cluster: certify with what this made there before; gives a token of one --role alone
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// With --from: what the token allows: observer, worker, server or admin
    #[arg(long, value_name = "ROLE", default_value = "worker", requires = "from")]
    pub role: String,
}

/// What run is to have how many workers.
#[derive(Args, Clone, Debug)]
pub struct ScaleArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
    /// Worker processes from now on
    #[arg(long, value_name = "N")]
    pub workers: u32,
}

/// What run to verify.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What text to make.
#[derive(Args, Clone, Debug)]
pub struct GenerateArgs {
    /// Which run.
    #[command(flatten)]
    pub run: RunArgs,
    /// What the text begins with
    #[arg(long, default_value = "\n")]
    pub prompt: String,
    /// Tokens to add
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub tokens: u32,
    /// How freely to choose; 0 always takes the most likely token
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f64,
    /// Choose among so many of the most likely tokens; 0 is no limit
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Seed of the choices
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// What to look at.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// The data, as --data takes them
    pub spec: String,
    /// The task they are for [default: what suits the data]
    #[arg(long)]
    pub task: Option<String>,
    /// Seed of the split [default: 0]
    #[arg(long)]
    pub seed: Option<String>,
    /// How to read the data.
    #[command(flatten)]
    pub input: InputArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl From<&InspectArgs> for Pairs {
    fn from(args: &InspectArgs) -> Self {
        let mut pairs = given([("data", &Some(args.spec.clone())), ("task", &args.task), ("seed", &args.seed)]);
        pairs.extend(Pairs::from(&args.input));
        pairs
    }
}
