//! Convoy's worker: models, data and devices; pulls parameters, computes gradients, pushes them.
//!
//! The only crate that knows burn. A step's way through it: [`step`] computes the slices a worker owns and adds them
//! up as far as the slice tree allows, [`exchange`] pushes the nodes and takes the updated blocks, [`run`] does that
//! until the end. [`task`] and [`data`] are what is trained and on what.

pub mod compress;
pub mod contain;
pub mod data;
pub mod device;
pub mod exchange;
pub mod failure;
pub mod learner;
pub mod local;
pub mod monitor;
pub mod parameters;
mod reader;
pub mod run;
pub mod step;
pub mod task;

pub use run::{WorkerArgs, main};
