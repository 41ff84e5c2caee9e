//! Convoy's one program.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    convoy_launcher::main(convoy_worker::task::TASKS)
}
