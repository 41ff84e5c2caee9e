//! Memory that processes on one machine share: made by one, which alone writes to it, and read in place by others.
//!
//! A [`Segment`] is anonymous memory (memfd), so nothing is left behind however its processes end. Another process opens
//! it as a [`View`] through the maker's entry in /proc, which works as far as the two see each other's processes: whether
//! they do is found out by trying. What a peer says of its segment is not trusted: it must be such memory, sealed against
//! shrinking, of at least that size, and begin with a key that was told over the connection.
//!
//! Who writes what when is not decided here, but for one thing: of the owner's process, nobody reads a [`Slot`] while it
//! is written to, and nobody has a slot twice. That a peer does not read what is being written is for the protocol to see to
//! (docs/adr/0024); if it did, it would read wrong numbers, and nothing worse.

use std::io;

mod arena;
pub mod heap;
mod ranges;
mod segment;
mod view;

pub use arena::{Arena, Buffer, Slot};
pub use heap::Heap;
pub use segment::{Pass, Segment};
pub use view::View;

/// What a segment begins with, before its key.
const MAGIC: [u8; 16] = *b"convoy segment 1";
/// Bytes before the first that is for others.
const HEADER: usize = 4096;
/// What segments are called in /proc.
const NAME: &str = "convoy";

/// Why a segment cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The system's reason.
    #[error("cannot {what} shared memory: {problem}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        problem: io::Error,
    },
    /// What a peer named is something else, or not on this machine.
    #[error("process {pid} has no such shared memory here: {problem}")]
    Other {
        /// The peer's process.
        pid: u32,
        /// What it has.
        problem: &'static str,
    },
}

fn cannot(what: &'static str) -> impl FnOnce(io::Error) -> SharedError {
    move |problem| SharedError::System { what, problem }
}
