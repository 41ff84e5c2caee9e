//! Convoy's one program.

use std::process::ExitCode;

use convoy_proto::shared::Heap;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Heap<MiMalloc> = Heap::new(MiMalloc);

fn main() -> ExitCode {
    convoy_launcher::main(convoy_worker::task::TASKS)
}
