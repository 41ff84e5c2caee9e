//! Convoy's launcher: one command that starts, coordinates and watches a training cluster.
//!
//! [`main`] is the whole program: launcher, server and worker in one binary that re-executes itself. A crate with models
//! of its own becomes a cluster by calling it with its own table of tasks.
//!
//! [`settings`] resolves the configuration, [`plan`] decides who computes where, [`train`] runs the cluster: children
//! ([`children`]), the coordinator ([`coordinator`]), the run's directory ([`run_dir`], [`summary`], [`model_file`]) and
//! what a person sees ([`progress`], [`watch`]). [`finished`] opens a finished run: [`eval`] scores it again, [`generate`] lets it
//! write. [`inspect`] looks at data.

pub mod args;
mod bench;
mod certs;
pub mod checkpoints;
pub mod children;
pub mod cli;
pub mod coordinator;
mod difference;
mod doctor;
mod emit;
pub mod eval;
pub mod finished;
pub mod generate;
pub mod inspect;
mod join;
mod links;
mod machine;
pub mod model_file;
pub mod outcome;
mod palette;
mod ping;
pub mod plan;
pub mod probe;
pub mod progress;
mod remote;
mod rendezvous;
pub mod resume;
pub mod run_dir;
mod runs;
pub mod scale;
pub mod settings;
pub mod summary;
mod table;
pub mod train;
pub mod verify;
mod watch;

pub use cli::main;
