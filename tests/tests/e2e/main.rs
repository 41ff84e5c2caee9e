//! Whole runs of the program, as a person starts them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says why it skips")]

mod bits;
mod buckets;
mod checkpoints;
mod data;
mod durability;
mod elastic;
mod faults;
mod features;
mod grpc;
mod inputs;
mod learning;
mod modes;
mod nodes;
mod outputs;
mod replicas;
mod schedulers;
mod security;
mod servers;
mod slow_link;
mod ssh;
mod strikes;
mod transports;
mod watching;

use convoy_tests::Bench;

/// A place to run the program under test in.
fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_cluster"))
}

/// A model that trains in no time.
const SMALL: &str = "--task mlp --set model.hidden=[16] --eval-every 0";
