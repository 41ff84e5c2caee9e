//! The gate in front of a listener's services: no call gets past without the token that its path takes.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures_util::future::Either;
use tonic::{Status, body::Body, codegen::http};
use tower_layer::Layer;
use tower_service::Service;

use super::pace::Pace;
use crate::{
    access::{Denied, Guard, TokenRole},
    limits::CALLS_PER_SECOND,
};

/// A gate, which lets everything in if nobody guards it.
#[derive(Clone, Debug, Default)]
pub struct Gate(Option<Arc<Guard>>);

impl Gate {
    /// A gate that somebody guards, or not.
    pub fn new(guard: Option<Guard>) -> Gate {
        Gate(guard.map(Arc::new))
    }

    /// What the caller may do; nothing where nobody asks.
    fn admit(&self, path: &str, headers: &http::HeaderMap) -> Result<Option<TokenRole>, Status> {
        let Some(guard) = &self.0 else { return Ok(None) };
        let shown = headers.get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.map(|value| value.strip_prefix("Bearer ").unwrap_or(value));
        guard.admit(path, shown).map_err(|denied| match denied {
            Denied::Lesser { .. } => Status::permission_denied(denied.to_string()),
            Denied::Missing | Denied::Wrong => Status::unauthenticated(denied.to_string()),
        })
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// Services behind a gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S, B> Service<http::Request<B>> for Gated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // What a listener knows of the connection, in the clear or not.
        if request.extensions().get().is_some_and(|pace: &Pace| !pace.may(Instant::now())) {
            let told = format!("more than {CALLS_PER_SECOND} calls a second on one connection");
            return Either::Right(ready(Ok(Status::resource_exhausted(told).into_http())));
        }
        match self.gate.admit(request.uri().path(), request.headers()) {
            Ok(role) => {
                // It has done its work, and is not for whatever may print a call's headers.
                request.headers_mut().remove(http::header::AUTHORIZATION);
                role.map(|role| request.extensions_mut().insert(role));
                Either::Left(self.inner.call(request))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tonic::transport::{Endpoint, Server};
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::*;
    use crate::transport::incoming;

    /// Takes all of a connection's calls from it before one of them comes to the gate.
    #[derive(Clone)]
    struct Greedy;

    #[derive(Clone)]
    struct Taken<S>(S);

    impl<S> Layer<S> for Greedy {
        type Service = Taken<S>;

        fn layer(&self, inner: S) -> Taken<S> {
            Taken(inner)
        }
    }

    impl<S: Service<http::Request<B>>, B> Service<http::Request<B>> for Taken<S> {
        type Response = S::Response;
        type Error = S::Error;
        type Future = S::Future;

        fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
            self.0.poll_ready(context)
        }

        fn call(&mut self, request: http::Request<B>) -> S::Future {
            let pace: &Pace = request.extensions().get().expect("the connection's pace");
            // As of a moment to come: none are added until then.
            let now = Instant::now() + std::time::Duration::from_secs(60);
            while pace.may(now) {}
            self.0.call(request)
        }
    }

    #[tokio::test]
    async fn a_connection_that_calls_too_often_is_told_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let server = Server::builder().layer(Greedy).layer(Gate::default()).add_service(health);
        tokio::spawn(server.serve_with_incoming(incoming(listener)));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let refused = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains("calls a second on one connection"), "{refused}");
    }
}
