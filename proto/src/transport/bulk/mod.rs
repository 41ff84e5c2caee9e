//! Messages of the data path as the bodies of HTTP/2 calls, without a copy of what they carry.
//!
//! tonic encodes a message into one buffer, which copies every payload once on each side. Here a message becomes chunks: what
//! is around payloads is encoded by prost, and large payloads are chunks by themselves, handed to the connection as they lie.
//! Likewise, a message that arrives is decoded from the pieces that the connection read, and payloads stay in them.
//! The bytes on the wire are the same, so any gRPC peer understands them.

mod body;
mod chunks;
mod inbound;
mod rope;
mod service;

pub(super) use body::Messages;
pub(super) use chunks::Chunked;
pub use inbound::Inbound;
pub use service::{Bulk, Exchange};

/// Bytes ahead of each gRPC message: whether it is compressed, and its size.
const PREFIX: usize = 5;
