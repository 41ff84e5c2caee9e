//! Long measurements, run by hand; their figures are in docs/benchmarks.md.
//!
//! `cargo test --release --workspace --test soak -- --nocapture NAME`

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement fails by panicking and prints its table")]

mod elastic;
mod kills;
mod modes;
mod tensors;

use convoy_tests::Bench;

/// A place to run the program in.
fn bench() -> Bench {
    Bench::new(env!("CARGO_BIN_EXE_cluster"))
}
