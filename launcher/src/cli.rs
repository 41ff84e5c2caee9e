//! The command line.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};
use convoy_server::ServerArgs;
use convoy_worker::{WorkerArgs, task::TaskEntry};

use crate::{
    args::{
        BenchArgs, CertsArgs, CompareArgs, DashboardArgs, DoctorArgs, EmitArgs, EvalArgs, GenerateArgs, InspectArgs,
        JoinArgs, ListArgs, LogsArgs, PingArgs, Places, ResumeArgs, ScaleArgs, ShowRunArgs, StatusArgs, TrainArgs,
        VerifyArgs, WatchArgs,
    },
    bench, certs, doctor, emit, eval, generate, inspect, join,
    outcome::{Failure, exit},
    ping, probe, progress,
    rendezvous::{self, Part},
    resume, runs, scale, train, verify, watch,
};

const ABOUT: &str = "Trains a model on a cluster of workers around exact parameter servers";

const EXAMPLES: &str = "Examples:
  launcher --workers 4 --sync                          generated digits, a CNN, on whatever device is there
  launcher --workers 2 --data mnist:DIR --epochs 4     MNIST from a folder of IDX files
  launcher --data csv:table.csv                        a table, the last column being what is predicted
  launcher --data text:book.txt --steps 1000           a transformer that learns to write
  launcher --workers 4 --slices 8 --servers 2          the same bits for any number of workers and servers
  launcher --config run.toml --set optimizer.lr=0.01   a file, and one value changed
  launcher resume latest --workers 2                   go on with a run that was stopped
  launcher scale latest --workers 8                    more workers, or fewer, while it trains
  launcher certs certs --host node1                    certificates and a secret, for --listen off loopback
  launcher --nnodes 2 --workers 4 --rdzv-endpoint node1:7000 --certs certs
                                                       the same command on two machines, four workers on each
  launcher join node1:7000 --workers 4 --certs certs   four workers more for it, from another machine
  launcher status                                      where a run stands: how quickly, who is slow, who died
  launcher --workers 4 --dashboard                     and a page in the browser; `launcher dashboard` for past runs
  launcher list                                        all runs; `show RUN` for one, `compare RUN RUN` for some
  launcher logs latest --follow                        what its processes say
  launcher verify latest                               every sample was used once, whatever died
  launcher eval latest --predictions out.csv           score a finished run again
  launcher generate latest --prompt Once               let a text model go on
  launcher doctor                                      what this machine has, and what stands in the way
  launcher completions bash > /etc/bash_completion.d/launcher
  launcher data inspect csv:table.csv                  what the data hold, and what deserves attention

Values come from defaults < --config < CONVOY_* variables < --set < flags.
Exit codes: 0 done, 1 failed, 2 usage, 3 environment, 4 processes lost, 5 diverged, 75 stopped and resumable,
130/143 stopped by a signal.";

/// The command line of the program.
#[derive(Debug, Parser)]
#[command(name = "launcher", version, about = ABOUT, after_help = EXAMPLES, args_override_self = true)]
#[command(allow_negative_numbers = true)]
pub struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    train: TrainArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Go on with a run that was stopped or lost, from its newest checkpoint
    Resume(Box<ResumeArgs>),
    /// Give a run that trains another number of workers
    Scale(ScaleArgs),
    /// List all runs
    List(ListArgs),
    /// Show where a run stands: how quickly it goes, who is slow, who died
    Status(StatusArgs),
    /// Watch a run in this terminal, as its launcher shows it
    Watch(WatchArgs),
    /// Show all runs in the browser, as they train and afterwards
    Dashboard(DashboardArgs),
    /// Show what a run is, came to and went through, also one whose launcher was killed
    Show(ShowRunArgs),
    /// Compare runs: where they differ, and what came of it
    Compare(CompareArgs),
    /// Print what a run's processes said
    Logs(LogsArgs),
    /// Recompute which samples a run used, and fail unless each was used as often as it should be
    Verify(VerifyArgs),
    /// Score a finished run's model on the held-out data again
    Eval(EvalArgs),
    /// Let a finished run's model go on with a text
    Generate(GenerateArgs),
    /// Look at data
    #[command(subcommand)]
    Data(DataCommand),
    /// Run workers here for a run that another machine's launcher coordinates
    Join(JoinArgs),
    /// Make an authority, certificates and a secret, for a cluster off loopback
    Certs(CertsArgs),
    /// Print what Slurm, Kubernetes or Docker Compose needs to start a run on several machines
    Emit(EmitArgs),
    /// Ask whether a run's coordinator is there, as a probe
    Ping(PingArgs),
    /// Look at this machine, and what it would do among others
    Doctor(DoctorArgs),
    /// Measure the data path of this machine, beside its raw limits
    Bench(BenchArgs),
    /// Run one parameter server of a cluster
    Server(ServerArgs),
    /// Run one worker of a cluster
    Worker(WorkerArgs),
    /// Print what makes a shell complete this program's command line
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages
    Man {
        /// Directory to write them to; made if it is not there
        dir: PathBuf,
    },
    /// Look for GPUs and print what was found, as JSON
    #[command(hide = true)]
    Probe,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Print what data hold and what deserves attention: balance, constants, duplicates
    Inspect(InspectArgs),
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
    if let (Some(_), Some(problem)) = (&cli.command, misplaced(&cli.train)) {
        let _ = writeln!(std::io::stderr(), "error: {problem}");
        return ExitCode::from(exit::USAGE);
    }
    let result = match cli.command {
        Some(Command::Server(args)) => return convoy_server::main(&args),
        Some(Command::Worker(args)) => return convoy_worker::main(&args, tasks),
        Some(Command::Resume(args)) => resume::resume(&args, &cli.places, tasks),
        Some(Command::Verify(args)) => verify::verify(&args, &cli.places, tasks),
        Some(Command::List(args)) => runs::list(args, &cli.places),
        Some(Command::Watch(args)) => watch::terminal::watch(&args, &cli.places),
        Some(Command::Dashboard(args)) => watch::web::dashboard(&args, &cli.places),
        Some(Command::Status(args)) => watch::status::status(&args, &cli.places),
        Some(Command::Show(args)) => runs::show(&args, &cli.places),
        Some(Command::Compare(args)) => runs::compare(&args, &cli.places),
        Some(Command::Logs(args)) => runs::logs(&args, &cli.places),
        Some(Command::Scale(args)) => scale::scale(&args, &cli.places),
        Some(Command::Join(args)) => join::join(&args, &cli.places),
        Some(Command::Certs(args)) => certs::certs(&args),
        Some(Command::Doctor(args)) => doctor::doctor(&args, &cli.places),
        Some(Command::Emit(args)) => emit::emit(&args, &cli.places),
        Some(Command::Ping(args)) => ping::ping(&args),
        Some(Command::Bench(args)) => bench::bench(&args, tasks),
        Some(Command::Completions { shell }) => completions(shell),
        Some(Command::Man { dir }) => man(&dir),
        Some(Command::Probe) => return probe::print(),
        Some(Command::Eval(args)) => eval::eval(&args, &cli.places, tasks),
        Some(Command::Generate(args)) => generate::generate(&args, &cli.places, tasks),
        Some(Command::Data(DataCommand::Inspect(args))) => inspect::inspect(&args, &cli.places, tasks),
        None => match rendezvous::part(&cli.train, &cli.places) {
            Ok(Part::Coordinate(args, places, remotes)) => train::train(&args, &places, remotes, tasks),
            Ok(Part::Join(args)) => join::join(&args, &cli.places),
            Err(failure) => Err(failure),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A closed standard error is no reason to fail differently.
            let _ = writeln!(std::io::stderr(), "{}", progress::last_words(&failure));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// What is wrong with flags of training where nothing is trained: they would change nothing.
fn misplaced(train: &TrainArgs) -> Option<&'static str> {
    let none = Cli::try_parse_from(["launcher"]).ok()?.train;
    (*train != none)
        .then_some("flags before a command are those of training; put what is meant for the command after it")
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "launcher", &mut text);
    print(String::from_utf8_lossy(&text))
}

fn man(dir: &Path) -> Result<(), Failure> {
    let cannot = |problem| Failure::Environment(format!("cannot write to {}: {problem}", dir.display()));
    std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::command(), dir)).map_err(cannot)?;
    say(format_args!("man pages in {}; `man -l {}`", dir.display(), dir.join("launcher.1").display()))
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

/// Writes a line to standard output; a reader that went away is no reason to fail.
pub fn say(text: impl std::fmt::Display) -> Result<(), Failure> {
    print(format_args!("{text}\n"))
}

/// Writes to standard output at once; a reader that went away is no reason to fail.
pub fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    print_to_reader(text).map(drop)
}

/// The same; says whether the reader is still there.
pub fn print_to_reader(text: impl std::fmt::Display) -> Result<bool, Failure> {
    let mut out = std::io::stdout();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(problem) if problem.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(problem) => Err(Failure::Environment(format!("cannot write to standard output: {problem}"))),
    }
}

#[cfg(test)]
mod tests {
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
    fn flags_of_training_before_a_command_are_refused() {
        let misplaced = |line: &str| misplaced(&Cli::try_parse_from(line.split(' ')).unwrap().train).is_some();
        assert!(misplaced("launcher --workers 3 show one") && misplaced("launcher --steps 5 resume"));
        assert!(!misplaced("launcher show one --name x") && !misplaced("launcher --run-dir d resume --workers 2"));
    }

    #[test]
    fn a_run_is_meant_once() {
        let meant = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            let Some(Command::Show(args)) = &cli.command else { panic!("{line}") };
            cli.places.meant(&args.run).map(String::from).ok()
        };
        assert_eq!(meant("launcher show"), Some("latest".into()));
        assert_eq!(meant("launcher show --name a"), Some("a".into()));
        assert_eq!(meant("launcher show a --name a"), Some("a".into()));
        assert_eq!(meant("launcher show b --name a"), None);
    }

    #[test]
    fn flags_become_keys() {
        let cli = Cli::try_parse_from("launcher --workers 4 --sync --lr 0.5".split(' ')).unwrap();
        let pairs: crate::args::Pairs = (&cli.train).into();
        let pair = |key: &str, value: &str| (key.to_string(), value.to_string());
        assert_eq!(pairs, [pair("workers", "4"), pair("optimizer.lr", "0.5"), pair("mode", "sync")]);
    }

    #[test]
    fn modes_exclude_each_other() {
        let conflict = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().train.consistency.conflict();
        let both = conflict("launcher --sync --ssp 3").unwrap();
        assert!(both.starts_with("--sync and --ssp exclude each other: --sync waits for the slices"), "{both}");
        assert_eq!(conflict("launcher --local-steps 50"), None);
    }
}
