//! The command line.

use std::{ffi::OsString, io::Write, path::PathBuf, process::ExitCode};

use clap::{ArgAction, Args, Parser, Subcommand, error::ErrorKind};
use convoy_server::ServerArgs;
use convoy_worker::{WorkerArgs, task::TaskEntry};

use crate::{
    eval,
    outcome::{Failure, exit},
    probe, train,
};

const ABOUT: &str = "Trains a model on a cluster of workers around exact parameter servers";

const EXAMPLES: &str = "Examples:
  launcher --workers 4 --sync                          generated digits, a CNN, on whatever device is there
  launcher --workers 2 --data mnist:DIR --epochs 4     MNIST from a folder of IDX files
  launcher --workers 4 --slices 8 --servers 2          the same bits for any number of workers and servers
  launcher --config run.toml --set optimizer.lr=0.01   a file, and one value changed
  launcher eval latest --predictions out.csv           score a finished run again

Values come from defaults < --config < CONVOY_* variables < --set < flags.
Exit codes: 0 done, 1 failed, 2 usage, 3 environment, 4 processes lost, 5 diverged, 130/143 stopped by a signal.";

/// The command line of the program.
#[derive(Debug, Parser)]
#[command(name = "launcher", version, about = ABOUT, after_help = EXAMPLES, args_override_self = true)]
pub struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    train: TrainArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

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

#[derive(Debug, Subcommand)]
enum Command {
    /// Score a finished run's model on the held-out data again
    Eval(EvalArgs),
    /// Run one parameter server of a cluster
    Server(ServerArgs),
    /// Run one worker of a cluster
    Worker(WorkerArgs),
    /// Look for GPUs and print what was found, as JSON
    #[command(hide = true)]
    Probe,
}

/// What to train, and how.
#[derive(Args, Clone, Debug, Default)]
pub struct TrainArgs {
    /// Worker processes, or auto: one a GPU, one on the CPU [default: auto]
    #[arg(long, value_name = "N|auto", help_heading = "Cluster")]
    pub workers: Option<String>,
    /// Parameter server processes [default: 1]
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    pub servers: Option<String>,
    /// Synchronous steps (the default): short for --mode sync
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "mode", help_heading = "Cluster")]
    pub sync: bool,
    /// When gradients are aggregated: sync
    #[arg(long, help_heading = "Cluster")]
    pub mode: Option<String>,
    /// Where workers compute: auto, cuda, wgpu or cpu [default: auto]
    #[arg(long, help_heading = "Cluster")]
    pub backend: Option<String>,
    /// Address of the coordinator; port 0 takes a free one [default: 127.0.0.1:0]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Cluster")]
    pub listen: Option<String>,
    /// What to train: cnn or mlp [default: cnn]
    #[arg(long, help_heading = "Training")]
    pub task: Option<String>,
    /// What to train on: digits, digits:SEED or mnist:DIR [default: digits]
    #[arg(long, value_name = "SPEC", help_heading = "Training")]
    pub data: Option<String>,
    /// Steps to train
    #[arg(long, value_name = "N", conflicts_with = "epochs", help_heading = "Training")]
    pub steps: Option<String>,
    /// Passes over the training data [default: 4]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub epochs: Option<String>,
    /// Samples per step, over all workers [default: 128]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: Option<String>,
    /// Parts of a step's batch; results depend on it, not on the number of workers [default: as many as workers]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub slices: Option<String>,
    /// sgd, momentum, nesterov or adamw [default: adamw]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub optimizer: Option<String>,
    /// Learning rate [default: 0.1 for sgd, 0.05 for momentum and nesterov, 0.001 for adamw]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub lr: Option<String>,
    /// Largest L2 norm of the mean gradient; 0 is no limit [default: 0]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip_norm: Option<String>,
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<String>,
    /// Steps between evaluations; 0 evaluates at the end only [default: 100]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub eval_every: Option<String>,
    /// Configuration file
    #[arg(long, value_name = "FILE.toml", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Set one key of the configuration, such as optimizer.lr=0.01
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Configuration")]
    pub set: Vec<String>,
    /// Print the resolved configuration and who would compute where, and end
    #[arg(long, help_heading = "Configuration")]
    pub dry_run: bool,
}

/// What to score again.
#[derive(Args, Clone, Debug)]
pub struct EvalArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
    /// Where to compute: auto, cuda, wgpu or cpu [default: as the run did]
    #[arg(long)]
    pub backend: Option<String>,
    /// Write one line a sample: index, label, prediction, probability, correct
    #[arg(long, value_name = "FILE.csv")]
    pub predictions: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The whole program: parses the command line and runs what it says, with `tasks` to train.
pub fn main(tasks: &'static [TaskEntry]) -> ExitCode {
    run(std::env::args_os(), tasks)
}

fn run(arguments: impl IntoIterator<Item = OsString>, tasks: &'static [TaskEntry]) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let result = match cli.command {
        Some(Command::Server(args)) => return convoy_server::main(&args),
        Some(Command::Worker(args)) => return convoy_worker::main(&args, tasks),
        Some(Command::Probe) => return probe::print(),
        Some(Command::Eval(args)) => eval::eval(&args, &cli.places, tasks),
        None => train::train(&cli.train, &cli.places, tasks),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A closed standard error is no reason to fail differently.
            let _ = writeln!(std::io::stderr(), "error: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Help and version as they are; errors on one line.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let told: Vec<_> = lines.take_while(|line| !line.starts_with("Usage:")).collect();
    let _ = writeln!(std::io::stderr(), "{} (see launcher --help)", told.join("; "));
    ExitCode::from(exit::USAGE)
}

impl From<&TrainArgs> for Vec<(String, String)> {
    fn from(args: &TrainArgs) -> Self {
        let mode = if args.sync { Some("sync".to_string()) } else { args.mode.clone() };
        let flags = [
            ("workers", &args.workers),
            ("servers", &args.servers),
            ("mode", &mode),
            ("backend", &args.backend),
            ("listen", &args.listen),
            ("task", &args.task),
            ("data", &args.data),
            ("steps", &args.steps),
            ("epochs", &args.epochs),
            ("batch_size", &args.batch_size),
            ("slices", &args.slices),
            ("optimizer.name", &args.optimizer),
            ("optimizer.lr", &args.lr),
            ("optimizer.clip_norm", &args.clip_norm),
            ("seed", &args.seed),
            ("eval_every", &args.eval_every),
        ];
        flags.into_iter().filter_map(|(key, value)| Some((key.to_string(), value.clone()?))).collect()
    }
}

/// Writes to standard output; a reader that went away is no reason to fail.
pub fn say(text: impl std::fmt::Display) -> Result<(), Failure> {
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn places_go_before_and_after_a_subcommand() {
        for line in ["launcher --run-dir d --name n eval x", "launcher eval x --run-dir d --name n"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!((cli.places.run_dir.as_deref(), cli.places.name.as_deref()), (Some("d"), Some("n")));
        }
    }

    #[test]
    fn flags_become_keys() {
        let cli = Cli::try_parse_from("launcher --workers 4 --sync --lr 0.5".split(' ')).unwrap();
        let pairs: Vec<_> = (&cli.train).into();
        let pair = |key: &str, value: &str| (key.to_string(), value.to_string());
        assert_eq!(pairs, [pair("workers", "4"), pair("mode", "sync"), pair("optimizer.lr", "0.5")]);
    }

    #[test]
    fn modes_exclude_each_other() {
        assert!(Cli::try_parse_from("launcher --sync --mode async".split(' ')).is_err());
    }
}
