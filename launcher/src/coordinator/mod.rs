//! The coordinator: who is there, who owns what, and the decisions that need all shards.
//!
//! [`core`] decides, [`decision`] joins the shards' parts of a verdict, [`evaluation`] the workers' parts of a score,
//! [`service`] speaks gRPC for them.

pub mod core;
pub mod decision;
pub mod evaluation;
pub mod service;
