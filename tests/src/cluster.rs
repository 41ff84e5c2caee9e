//! Convoy's program, as a user's own crate would build it: the end-to-end tests run this.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    convoy_launcher::main(convoy_worker::task::TASKS)
}
