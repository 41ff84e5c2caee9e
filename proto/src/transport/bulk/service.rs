//! The calls of a shard that carry parameters, answered in chunks; all others as tonic does.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, header::CONTENT_TYPE};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, body::Body, server::NamedService};
use tower_service::Service;

use super::{Chunked, Inbound, Messages};
use crate::{
    limits,
    wire::{
        self,
        parameters_service_server::{ParametersService, ParametersServiceServer, SERVICE_NAME},
    },
};

/// A shard that takes pushes as they arrive in pieces.
#[tonic::async_trait]
pub trait Exchange: ParametersService {
    /// As [`ParametersService::push_pull`].
    async fn exchange(
        &self,
        request: Request<Inbound<wire::PushPullRequest>>,
    ) -> Result<Response<Self::PushPullStream>, Status>;
}

/// A shard's service. Clones share it.
#[derive(Clone, Debug)]
pub struct Bulk<T> {
    shard: T,
    others: ParametersServiceServer<T>,
}

impl<T: ParametersService + Clone> Bulk<T> {
    /// Of a shard.
    pub fn new(shard: T) -> Bulk<T> {
        let others = ParametersServiceServer::new(shard.clone())
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES);
        Bulk { shard, others }
    }
}

impl<T> NamedService for Bulk<T> {
    const NAME: &'static str = SERVICE_NAME;
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl<T: Exchange + Clone> Service<http::Request<Body>> for Bulk<T> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let shard = self.shard.clone();
        match request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(SERVICE_NAME)) {
            Some("/Pull") => Box::pin(async move {
                let answer = match one(request.map(Inbound::asked)).await {
                    Ok(request) => shard.pull(request).await,
                    Err(status) => Err(status),
                };
                Ok(in_chunks(answer))
            }),
            Some("/PushPull") => Box::pin(async move {
                let request = Request::from_http(request.map(Inbound::asked));
                Ok(in_chunks(shard.exchange(request).await))
            }),
            _ => self.others.call(request),
        }
    }
}

/// A call's only message.
async fn one<M: prost::Message + Default>(request: http::Request<Inbound<M>>) -> Result<Request<M>, Status> {
    let (parts, mut messages) = request.into_parts();
    let message = messages.next().await.ok_or_else(|| Status::invalid_argument("the call has no message"))??;
    Ok(Request::from_http(http::Request::from_parts(parts, message)))
}

fn in_chunks<M, S>(answer: Result<Response<S>, Status>) -> http::Response<Body>
where
    M: Chunked + 'static,
    S: Stream<Item = Result<M, Status>> + Send + 'static,
{
    match answer {
        Ok(answer) => {
            let mut response = http::Response::new(Body::new(Messages::answered(answer.into_inner())));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response
        }
        Err(status) => status.into_http(),
    }
}
