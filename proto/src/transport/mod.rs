//! Connections: gRPC channels and listeners, tuned in one place, and clients that speak domain types.
//!
//! Control and bulk data never share a connection, so that tensors cannot starve heartbeats. Everything is bounded:
//! connects and unary calls have deadlines here, streams are given theirs by whoever waits for them.

use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

use crate::{convert::WireError, limits};

mod coordinator;
mod membership;
mod shard;

pub use coordinator::Coordinator;
pub use membership::Membership;
pub use shard::ShardClient;

/// How long a connection may take.
const CONNECT_MS: u64 = 5_000;
/// How long a unary control call may take.
const CALL_MS: u64 = 10_000;

/// Another process, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it is, such as `server 1`.
    pub name: String,
    /// Where it is, `host:port`.
    pub address: String,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {}", self.name, self.address)
    }
}

/// Why a call did not give an answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nobody answers.
    #[error("cannot reach {peer}: {problem}")]
    Unreachable {
        /// Whom.
        peer: Peer,
        /// Why.
        problem: String,
    },
    /// The peer answers, with no.
    #[error("{peer} refuses: {message}")]
    Refused {
        /// Who.
        peer: Peer,
        /// Why.
        message: String,
    },
    /// The peer's answer makes no sense.
    #[error("{peer} sent a {problem}")]
    Malformed {
        /// Who.
        peer: Peer,
        /// What is wrong with it.
        problem: WireError,
    },
    /// The peer ended a stream before it was complete.
    #[error("{peer} stopped before {missing}")]
    Incomplete {
        /// Who.
        peer: Peer,
        /// What was still to come.
        missing: &'static str,
    },
}

impl TransportError {
    fn of(peer: &Peer, status: &tonic::Status) -> TransportError {
        use tonic::Code;
        let (peer, message) = (peer.clone(), status.message().to_string());
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Internal => {
                let problem = if message.is_empty() { status.code().to_string() } else { message };
                TransportError::Unreachable { peer, problem }
            }
            _ => TransportError::Refused { peer, message },
        }
    }

    fn malformed(peer: &Peer) -> impl FnOnce(WireError) -> TransportError {
        let peer = peer.clone();
        move |problem| TransportError::Malformed { peer, problem }
    }
}

fn endpoint(peer: &Peer) -> Result<Endpoint, TransportError> {
    let unreachable = |error: tonic::transport::Error| unreachable(peer, &error);
    let endpoint = Endpoint::from_shared(format!("http://{}", peer.address)).map_err(unreachable)?;
    Ok(endpoint.connect_timeout(Duration::from_millis(CONNECT_MS)).tcp_nodelay(true))
}

fn unreachable(peer: &Peer, error: &dyn std::error::Error) -> TransportError {
    let mut problem = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        problem = format!("{problem}: {cause}");
        source = cause.source();
    }
    TransportError::Unreachable { peer: peer.clone(), problem }
}

/// A connection for control: small messages, each with a deadline.
async fn control_channel(peer: &Peer) -> Result<Channel, TransportError> {
    endpoint(peer)?.connect().await.map_err(|error| unreachable(peer, &error))
}

/// A connection for blocks: windows as wide as several frames.
async fn bulk_channel(peer: &Peer) -> Result<Channel, TransportError> {
    let endpoint = endpoint(peer)?
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES * 2)
        .max_frame_size(limits::HTTP_FRAME_BYTES);
    endpoint.connect().await.map_err(|error| unreachable(peer, &error))
}

/// The connections of a listener, each without Nagle's delay: a builder's own setting for that does not reach listeners
/// that are handed to it, and small messages would wait 40 ms for an acknowledgement.
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// A listener's settings for control.
pub fn control_server() -> Server {
    Server::builder()
}

/// A listener's settings for blocks.
pub fn bulk_server() -> Server {
    Server::builder()
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES * 2)
        .max_frame_size(limits::HTTP_FRAME_BYTES)
}
