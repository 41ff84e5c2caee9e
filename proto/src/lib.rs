//! Convoy's contract: what servers, workers and the launcher must agree on, bit for bit.
//!
//! Ids, the manifest and its block map, the slice tree and the one add kernel, messages with their checked
//! conversions from the wire, the consistency modes and
//! optimizers, and the run's configuration. All of that is pure: no IO, no clock, no threads. Only
//! [`transport`] and [`process`] touch the world: clients, listeners and what every role's process needs.
//! It deliberately does not know burn, and only [`wire`], [`convert`] and the services name generated types.

pub mod access;
pub mod blocks;
pub mod chaos;
pub mod clock;
pub mod codec;
pub mod config;
pub mod convert;
pub mod fates;
pub mod ids;
pub mod layout;
pub mod loss_scale;
pub mod manifest;
pub mod messages;
pub mod node;
pub mod optimizer;
pub mod order;
pub mod policy;
pub mod process;
pub mod schedule;
pub mod shard_report;
pub mod shared;
pub mod slow;
pub mod sum;
pub mod trace;
pub mod transfer;
pub mod transport;
pub mod tree;
pub mod trust;
pub mod verdict;
pub mod view;
pub mod vitals;

/// Types and services generated from `proto/convoy/v1`.
pub mod wire {
    #![allow(missing_docs, clippy::all)]
    tonic::include_proto!("convoy.v1");

    /// The encoded descriptors of every file, for reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// The version of the protocol; processes of different versions refuse each other.
pub const PROTOCOL: u32 = 1;

/// What a build calls itself in the handshake: two builds may differ in how they compute, so they do not mix.
pub const BUILD: &str = concat!("convoy ", env!("CARGO_PKG_VERSION"));

/// Bytes in hexadecimal, as hashes are shown.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sizes of messages on the data path, in one place.
pub mod limits {
    /// Payload that one frame gathers before it is sent.
    pub const FRAME_BYTES: usize = 1 << 20;
    /// What of a frame a payload in shared memory takes, as a part of its bytes: others see it at once when it is told.
    const SHARED: usize = 4;
    /// What a block takes beside its payload, at most.
    const BLOCK_BYTES: usize = 48;
    /// What a block with a payload takes of a frame.
    pub fn weight(payload: &[u8], place: Option<crate::messages::Place>) -> usize {
        let weight = place.map_or(payload.len(), |place| usize::try_from(place.bytes).unwrap_or(usize::MAX) / SHARED);
        weight.max(BLOCK_BYTES)
    }
    /// The largest message that is decoded: a frame, whatever its blocks' sizes, and its framing.
    pub const MESSAGE_BYTES: usize = FRAME_BYTES + (1 << 19);
    /// The largest control message that is decoded: a manifest of many thousands of tensors.
    pub const CONTROL_BYTES: usize = 32 << 20;
    /// HTTP/2 flow-control window of a stream on the data path; a connection's is twice that.
    pub const WINDOW_BYTES: u32 = 8 << 20;
    /// The window of each of so many callers of a server, of whom it may have to keep all that they are let send: 64 MiB
    /// together, unless that makes less than 1 MiB of a window.
    pub fn window(callers: u32) -> u32 {
        ((32 << 20) / callers.max(1)).clamp(1 << 20, WINDOW_BYTES)
    }
    /// HTTP/2 frames on the data path.
    pub const HTTP_FRAME_BYTES: u32 = 1 << 18;
    /// Headers of a call, a token among them.
    pub const HEADER_BYTES: u32 = 1 << 14;
    /// Calls at once on a connection for control: a server waits for the fate of each push that it has.
    pub const CONTROL_STREAMS: u32 = 1 << 13;
    /// Calls at once on a connection for blocks.
    pub const BULK_STREAMS: u32 = 256;
    /// Calls that a connection may make in a second; a worker makes a few for each step.
    pub const CALLS_PER_SECOND: f64 = 10_000.0;
    /// Connections at once to a listener, where the system has file handles for twice as many.
    pub const CONNECTIONS: usize = 1 << 14;
}
