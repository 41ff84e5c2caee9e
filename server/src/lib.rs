//! Convoy's parameter server: holds a shard of the parameters, sums gradients exactly and applies the optimizer.
//!
//! [`core`] decides, [`service`] speaks gRPC for it, [`run`] is the life of a server process. This crate never
//! depends on burn, so a server stays small.

pub mod core;
mod frames;
pub mod run;
pub mod service;

pub use run::{ServerArgs, main};
