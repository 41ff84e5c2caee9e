//! Watching a run: in the terminal, in a browser, by Prometheus, from another terminal, or afterwards.
//!
//! A run writes down what it is at ([`live`], [`rates`]: status.json; metrics.jsonl). Whoever watches reads that
//! ([`follow`]), makes curves and a timeline of it ([`story`], [`curve`]), and asks no process anything: so watching holds up
//! no step, works from other terminals, and works after the end.

mod beside;
pub mod curve;
pub mod exports;
mod exposition;
pub mod follow;
mod lines;
pub mod live;
#[cfg(feature = "otlp")]
mod otlp;
pub mod rates;
pub mod status;
pub mod story;
pub mod terminal;
pub mod trace;
pub mod web;
