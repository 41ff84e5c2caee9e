//! Convoy's parameter server: holds a shard of the parameters, sums gradients exactly and applies the optimizer.
//!
//! [`core`] decides, [`checkpoint`] and [`accounts`] keep on disk, [`host`] does what it asks for, `copies` and `fill` hand
//! a shard from one server to another, [`service`] speaks gRPC, [`run`] is the life of a server process. This crate
//! never depends on burn, so a server stays small.

pub mod accounts;
pub mod busy;
pub mod checkpoint;
mod copies;
pub mod core;
mod exchange;
mod fill;
mod frames;
pub mod host;
pub mod run;
pub mod service;
mod sharing;

pub use run::{ServerArgs, main};
