//! Messages of the data path as the bodies of HTTP/2 calls, without a copy of what they carry.
//!
//! tonic encodes a message into one buffer, which copies every payload once on each side. Here a message becomes chunks: what
//! is around payloads is encoded by prost, and large payloads are chunks by themselves, handed to the connection as they lie.
//! The bytes on the wire are the same, so any gRPC peer understands them, and tonic's own decoder reads them.

mod body;
mod chunks;
mod service;

pub(super) use body::Messages;
pub use service::Bulk;
