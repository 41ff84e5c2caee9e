//! Convoy's parameter server.

pub mod core;
