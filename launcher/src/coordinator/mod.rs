//! The coordinator: who is there, who owns what, and the decisions that need all shards.
//!
//! [`core`] decides, [`handshake`] says who may join, and [`records`] is what it knows of each member. [`decision`] joins
//! the shards' parts of a verdict, [`evaluation`] the workers' parts of a score; [`service`] speaks gRPC for them.

pub mod core;
pub mod decision;
pub mod evaluation;
pub mod handshake;
pub mod records;
pub mod refusal;
pub mod service;
