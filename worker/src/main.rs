//! The worker as a program of its own; `launcher worker` is the same.

use std::process::ExitCode;

use clap::Parser;
use convoy_proto::shared::Heap;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Heap<MiMalloc> = Heap::new(MiMalloc);

#[derive(Parser)]
#[command(name = "worker", version, about = "One worker of a Convoy cluster")]
struct Cli {
    #[command(flatten)]
    args: convoy_worker::WorkerArgs,
}

fn main() -> ExitCode {
    convoy_worker::main(&Cli::parse().args, convoy_worker::task::TASKS)
}
