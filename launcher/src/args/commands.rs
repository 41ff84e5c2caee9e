//! What the commands beside training are told.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, ValueEnum};

use super::{HostsArgs, InputArgs, NetworkArgs, Pairs, RendezvousArgs, WatchFlags, given};

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
    /// Those of the server processes that this machine runs; the rest wait for `launcher join` on others
    /// [default: as before]
    #[arg(long, value_name = "N")]
    pub local_servers: Option<String>,
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
    /// Go back to the first step if no checkpoint is whole any more
    #[arg(long)]
    pub begin_anew: bool,
    /// How it is reached.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// What there is to see of it.
    #[command(flatten)]
    pub watch: WatchFlags,
    /// Which machines are reached by ssh.
    #[command(flatten)]
    pub hosts: HostsArgs,
}

impl From<&ResumeArgs> for Pairs {
    fn from(args: &ResumeArgs) -> Self {
        let mut pairs = given([
            ("workers", &args.workers),
            ("local_workers", &args.local_workers),
            ("local_servers", &args.local_servers),
            ("servers", &args.servers),
            ("replicas", &args.replicas),
            ("min_workers", &args.min_workers),
            ("max_restarts", &args.max_restarts),
        ]);
        pairs.extend(Pairs::from(&args.network));
        pairs.extend(Pairs::from(&args.watch));
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

/// A name or an address, and a port.
fn address(text: &str) -> Result<String, String> {
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    port.map(|_| text.to_string()).ok_or_else(|| "must be a name or address and a port, such as node1:7000".into())
}

/// What run to join, and with how many workers.
#[derive(Args, Clone, Debug)]
pub struct JoinArgs {
    /// Where the launcher that coordinates listens
    #[arg(value_name = "HOST:PORT", value_parser = address)]
    pub coordinator: String,
    /// Worker processes to run here
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=4096))]
    pub workers: u32,
    /// Server processes to run here, of those that the run leaves to other machines (--local-servers)
    #[arg(long, value_name = "M", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub servers: u32,
    /// Address that servers here listen on [default: that on the way to the coordinator]
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,
    /// Network interface whose address servers here listen on
    #[arg(long, value_name = "NAME", conflicts_with = "listen")]
    pub interface: Option<String>,
    /// Name or address that others reach servers here at [default: the one they listen on]
    #[arg(long, value_name = "HOST")]
    pub advertise_addr: Option<String>,
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
    /// End when standard input ends
    #[arg(long, hide = true)]
    pub supervised: bool,
    /// How long to wait for the run to be there, or to be there again, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub wait: u64,
}

/// What to look at.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// This launcher's place among others, in place of the machine: what flags and schedulers say, who is believed, and why
    #[arg(long)]
    pub rank: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "rank")]
    pub json: bool,
    /// As training would be told
    #[arg(long, value_name = "N|auto")]
    pub workers: Option<String>,
    /// As training would be told.
    #[command(flatten)]
    pub rendezvous: RendezvousArgs,
}

/// Whom to ask whether it is there.
#[derive(Args, Clone, Debug)]
pub struct PingArgs {
    /// Where the launcher that coordinates listens [default: CONVOY_RDZV_ENDPOINT]
    #[arg(value_name = "HOST:PORT")]
    pub coordinator: Option<String>,
    /// Directory with ca.crt, tls.crt, tls.key and token [default: CONVOY_CERTS]
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
}

/// What starts a run on several machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// A batch script.
    Slurm,
    /// An Indexed Job with a headless Service and a Secret.
    K8s,
    /// A JobSet with a Secret.
    Jobset,
    /// A file for Docker Compose.
    Compose,
}

/// What to print for which system.
#[derive(Args, Clone, Debug)]
pub struct EmitArgs {
    /// The system
    #[arg(value_enum)]
    pub target: Target,
    /// Machines
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub nodes: u32,
    /// Workers of each: a number, or auto
    #[arg(long, value_name = "N|auto", default_value = "auto")]
    pub workers: String,
    /// GPUs of each
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub gpus: u32,
    /// Cores of each
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory of each, as the system has it, such as 16G or 16Gi
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Slurm: how long the run may take, such as 2:00:00
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
    /// Containers: the program's image; the Dockerfile makes it
    #[arg(long, value_name = "IMAGE", default_value = "convoy:latest")]
    pub image: String,
    /// What keeps runs: a PersistentVolumeClaim of Kubernetes, or a directory
    #[arg(long, value_name = "CLAIM|DIR")]
    pub storage: Option<String>,
    /// Directory with ca.crt, tls.crt, tls.key and token to put into the Secret [default: made now]
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// What the launchers are told beside that
    #[arg(last = true, value_name = "FLAGS")]
    pub arguments: Vec<String>,
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

/// What runs to list.
#[derive(Args, Clone, Copy, Debug)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What run to show.
#[derive(Args, Clone, Debug)]
pub struct ShowRunArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
    /// Print JSON: its summary
    #[arg(long)]
    pub json: bool,
}

/// What run to look at.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
    /// Print JSON: the fields of summary.json and, of members, what they are at
    #[arg(long)]
    pub json: bool,
}

/// What runs to compare.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// The runs: names below the root of runs, or directories
    #[arg(required = true, num_args = 2..)]
    pub runs: Vec<String>,
    /// Draw their loss and accuracy into a file
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Print JSON: {"differences": {…}, "runs": […]}
    #[arg(long)]
    pub json: bool,
}

/// A role of processes that have logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LoggedRole {
    /// Workers.
    Worker,
    /// Parameter servers.
    Server,
}

impl LoggedRole {
    /// As files are named.
    pub fn name(self) -> &'static str {
        match self {
            LoggedRole::Worker => "worker",
            LoggedRole::Server => "server",
        }
    }
}

/// Whose logs to print.
#[derive(Args, Clone, Debug)]
pub struct LogsArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
    /// Go on until the run ends
    #[arg(short, long)]
    pub follow: bool,
    /// Of processes of this rank only
    #[arg(long, value_name = "N")]
    pub rank: Option<u32>,
    /// Of workers, or servers, only
    #[arg(long, value_enum)]
    pub role: Option<LoggedRole>,
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
