//! Whether a coordinator is there.

use std::time::{Duration, Instant};

use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{Credentials, Peer, TransportError, call, control_channel};

/// The service that is asked for.
const SERVICE: &str = "convoy.v1.CoordinationService";

/// Asks a coordinator whether it serves; gives how long the answer took.
///
/// # Errors
/// Nobody listens there, one side does not believe the other's certificate, or it does not serve.
pub async fn ping(address: &str, credentials: &Credentials) -> Result<Duration, TransportError> {
    let peer = Peer { name: "the coordinator".into(), address: address.into() };
    let mut client = HealthClient::new(control_channel(&peer, credentials).await?);
    let (request, start) = (HealthCheckRequest { service: SERVICE.into() }, Instant::now());
    let answer = client.check(call(request)).await.map_err(|status| TransportError::of(&peer, &status))?.into_inner();
    match answer.status() {
        ServingStatus::Serving => Ok(start.elapsed()),
        _ => Err(TransportError::Refused { peer, message: "it does not serve".into() }),
    }
}
