//! The parameter server as a program of its own; `launcher server` is the same.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "server", version, about = "One parameter server of a Convoy cluster")]
struct Cli {
    #[command(flatten)]
    args: convoy_server::ServerArgs,
}

fn main() -> ExitCode {
    convoy_server::main(&Cli::parse().args)
}
