//! The coordinator: who is there, who owns what, and the decisions that need all shards.
//!
//! [`core`] decides and [`records`] is what it knows of each member, [`decision`] joins the shards' parts of a verdict, [`evaluation`] the workers' parts of a score,
//! [`service`] speaks gRPC for them.

pub mod core;
pub mod decision;
pub mod evaluation;
pub mod records;
pub mod service;
