//! Connections: gRPC channels and listeners, tuned in one place, and clients that speak domain types.
//!
//! Control and bulk data never share a connection, so that tensors cannot starve heartbeats. Everything is bounded:
//! connects and unary calls have deadlines here, streams are given theirs by whoever waits for them.

use std::time::Duration;

use tonic::{
    Request,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint, Server},
};
use tower_layer::{Identity, Stack};

use crate::{access::Guard, convert::WireError, limits};

mod bulk;
mod codec;
mod coordinator;
mod gate;
mod incoming;
mod membership;
mod node;
mod pace;
mod ping;
mod security;
mod shard;

pub use bulk::{Bulk, Exchange, Inbound};
pub use codec::MessageCodec;
pub use coordinator::Coordinator;
pub use gate::Gate;
pub use incoming::{Caller, Incoming, incoming, incoming_at_most};
pub use membership::Membership;
pub use node::NodeClient;
pub use ping::ping;
use security::Show;
pub use security::{Credentials, Security, Tls};
pub use shard::{Lease, ShardClient, Sight};

/// How long a connection may take.
const CONNECT_MS: u64 = 5_000;
/// How often a listener looks whether a caller that says nothing is there.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Long: an answer may wait behind full windows on a slow link, 16 MiB each way.
const PING_WITHIN: Duration = Duration::from_secs(60);
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
    /// The peer and this process do not believe each other's certificates, or one has none.
    #[error("cannot talk to {peer}: {problem}")]
    Distrusted {
        /// Whom.
        peer: Peer,
        /// Why.
        problem: String,
    },
    /// The peer and this process do not see each other's memory, and are to.
    #[error("no memory can be shared with {peer}: with --transport auto or grpc, tensors go through the connection")]
    Apart {
        /// Whom.
        peer: Peer,
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
                let what = if message.is_empty() { status.code().to_string() } else { message };
                let problem = match std::error::Error::source(status).map(chain) {
                    Some(cause) if cause.contains(&what) => cause,
                    Some(cause) => format!("{what}: {cause}"),
                    None => what,
                };
                failed(peer, problem)
            }
            _ => TransportError::Refused { peer, message },
        }
    }

    fn malformed(peer: &Peer) -> impl FnOnce(WireError) -> TransportError {
        let peer = peer.clone();
        move |problem| TransportError::Malformed { peer, problem }
    }
}

/// A channel that shows a token with every call.
type Shown = InterceptedService<Channel, Show>;

fn endpoint(peer: &Peer, credentials: &Credentials) -> Result<Endpoint, TransportError> {
    let unreachable = |error: tonic::transport::Error| unreachable(peer, &error);
    let scheme = if credentials.tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", peer.address)).map_err(unreachable)?;
    let endpoint = endpoint.connect_timeout(Duration::from_millis(CONNECT_MS)).tcp_nodelay(true);
    match &credentials.tls {
        Some(tls) => endpoint.tls_config(tls.of_caller()).map_err(unreachable),
        None => Ok(endpoint),
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut problem = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !problem.ends_with(&text) {
            problem = format!("{problem}: {text}");
        }
        source = cause.source();
    }
    problem
}

/// A call that was not answered, and whose fault that is.
fn failed(peer: Peer, problem: String) -> TransportError {
    match security::explained(&problem) {
        Some(problem) => TransportError::Distrusted { peer, problem },
        None => TransportError::Unreachable { peer, problem },
    }
}

fn unreachable(peer: &Peer, error: &dyn std::error::Error) -> TransportError {
    failed(peer.clone(), chain(error))
}

/// A request that is to be answered in time.
fn within<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// A request of a unary control call.
fn call<T>(message: T) -> Request<T> {
    within(message, Duration::from_millis(CALL_MS))
}

/// A connection for control: small messages, each with a deadline.
async fn control_channel(peer: &Peer, credentials: &Credentials) -> Result<Shown, TransportError> {
    let channel = endpoint(peer, credentials)?.connect().await.map_err(|error| unreachable(peer, &error))?;
    Ok(InterceptedService::new(channel, credentials.into()))
}

/// A connection for blocks: windows as wide as several frames.
async fn bulk_channel(peer: &Peer, credentials: &Credentials) -> Result<Shown, TransportError> {
    let endpoint = endpoint(peer, credentials)?
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES * 2)
        .max_frame_size(limits::HTTP_FRAME_BYTES);
    let channel = endpoint.connect().await.map_err(|error| unreachable(peer, &error))?;
    Ok(InterceptedService::new(channel, credentials.into()))
}

/// A listener, with a gate in front of all that it serves.
pub type Listener = Server<Stack<Gate, Identity>>;

/// What a listener asks of its callers.
#[derive(Clone, Debug, Default)]
pub struct Defence {
    /// Its certificate, and the authority of callers' certificates.
    pub tls: Option<Tls>,
    /// What checks their tokens.
    pub guard: Option<Guard>,
}

impl Defence {
    /// Whether nobody calls without a certificate and a token.
    pub fn is_complete(&self) -> bool {
        self.tls.is_some() && self.guard.is_some()
    }
}

fn guarded(server: Server, defence: &Defence) -> Result<Listener, String> {
    let server = match &defence.tls {
        Some(tls) => server.tls_config(tls.of_listener()).map_err(|problem| chain(&problem))?,
        None => server,
    };
    // A caller that is gone without a word is found out.
    let server = server.http2_keepalive_interval(Some(PING_EVERY)).http2_keepalive_timeout(Some(PING_WITHIN));
    let server = server.http2_max_header_list_size(limits::HEADER_BYTES);
    Ok(server.layer(Gate::new(defence.guard.clone())))
}

/// A listener for control.
///
/// # Errors
/// Certificates that make no sense, in words.
pub fn control_server(defence: &Defence) -> Result<Listener, String> {
    guarded(Server::builder().max_concurrent_streams(limits::CONTROL_STREAMS), defence)
}

/// A listener for blocks, for so many callers.
///
/// # Errors
/// As [`control_server`].
pub fn bulk_server(defence: &Defence, callers: u32) -> Result<Listener, String> {
    let window = limits::window(callers);
    let server = Server::builder()
        .max_concurrent_streams(limits::BULK_STREAMS)
        .initial_stream_window_size(window)
        .initial_connection_window_size(window * 2)
        .max_frame_size(limits::HTTP_FRAME_BYTES);
    guarded(server, defence)
}
