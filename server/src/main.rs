//! The parameter server as a program of its own; `launcher server` is the same.

use std::{alloc::System, process::ExitCode};

use clap::Parser;
use convoy_proto::shared::Heap;

#[global_allocator]
static ALLOCATOR: Heap<System> = Heap::new(System);

#[derive(Parser)]
#[command(name = "server", version, about = "One parameter server of a Convoy cluster")]
struct Cli {
    #[command(flatten)]
    args: convoy_server::ServerArgs,
}

fn main() -> ExitCode {
    convoy_server::main(&Cli::parse().args)
}
