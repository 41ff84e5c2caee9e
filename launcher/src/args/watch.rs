//! What is said of what a person sees.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::{Pairs, given};

/// What there is to see of a run.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct WatchFlags {
    /// Show the run, and past ones, in the browser: on loopback, or at the address that is given
    #[arg(long, value_name = "IP:PORT", num_args = 0..=1, default_missing_value = "on", help_heading = "Watching")]
    pub dashboard: Option<String>,
    /// File with a token; who has it may stop and scale runs from the dashboard
    #[arg(long, value_name = "FILE", help_heading = "Watching")]
    pub dashboard_token: Option<String>,
    /// Print lines also on a terminal, in place of the live view
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Watching")]
    pub plain: bool,
    /// What lines look like: text, or json, an object a line [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Watching")]
    pub log_format: Option<String>,
    /// Write where all processes spend their time to a file that Perfetto opens
    #[arg(long, value_name = "FILE.json", help_heading = "Watching")]
    pub trace: Option<String>,
    /// Send the same to an OpenTelemetry collector, such as http://127.0.0.1:4317 (builds with --features otlp)
    #[arg(long, value_name = "URL", help_heading = "Watching")]
    pub otlp: Option<String>,
}

impl From<&WatchFlags> for Pairs {
    fn from(args: &WatchFlags) -> Self {
        given([
            ("watch.dashboard", &args.dashboard),
            ("watch.dashboard_token", &args.dashboard_token),
            ("watch.view", &args.plain.then(|| "lines".to_string())),
            ("watch.log_format", &args.log_format),
            ("watch.trace", &args.trace),
            ("watch.otlp", &args.otlp),
        ])
    }
}

/// What run to watch.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// The run: its name below the root of runs, or its directory
    #[arg(default_value = "latest")]
    pub run: String,
}

/// Where to show runs.
#[derive(Args, Clone, Debug)]
pub struct DashboardArgs {
    /// Address to listen on [default: loopback]
    #[arg(value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// File with a token; who has it may stop and scale runs
    #[arg(long, value_name = "FILE")]
    pub dashboard_token: Option<PathBuf>,
}
