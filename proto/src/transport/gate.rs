//! The gate in front of a listener's services: no call gets past without the token that its path takes.

use std::{
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::Either;
use tonic::{Status, body::Body, codegen::http};
use tower_layer::Layer;
use tower_service::Service;

use crate::access::{Denied, Guard, TokenRole};

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
