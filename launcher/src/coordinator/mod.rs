//! The coordinator: who is there, who owns what, and the decisions that need all shards.
//!
//! [`core`] knows the members and where the cluster stands, [`handshake`] says who may join, [`records`] is what it knows
//! of each. [`engine`] is what they train: [`commits`] and [`dealer`] carry out the consistency mode, [`decision`] joins the
//! shards' parts of a verdict and [`evaluation`] the workers' parts of a score, [`history`] makes steps of commits, [`stragglers`]
//! finds who keeps the others waiting, [`durations`] count how long steps take, and [`saves`] are the checkpoints in the making. [`service`] speaks gRPC for all of
//! them. [`nodes`] are the other machines of a run, and their places; [`node_service`] speaks with them.

mod callers;
pub mod commits;
pub mod core;
pub mod deadlines;
pub mod dealer;
pub mod decision;
pub mod durations;
pub mod engine;
pub mod evaluation;
pub mod handshake;
pub mod history;
pub mod node_service;
pub mod nodes;
pub mod records;
pub mod refusal;
pub mod saves;
pub mod service;
pub mod stragglers;
mod telemetry;
