//! The gRPC face of a server: decodes messages, calls the core, and streams what it forms.

use std::{pin::Pin, sync::Arc};

use convoy_proto::{
    ids::{Era, Member, Role, Step},
    messages::{Extent, ParameterBlock, Pull, Pulled, PulledPart, PushHeader, PushPart, Wanted},
    shared::Pass,
    trace,
    transport::{Exchange, Inbound},
    wire::{self, parameters_service_server::ParametersService},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use crate::{core::refusal::Refusal, frames::Shown, host::Host};

/// Frames on their way to one reader: enough to keep the connection busy, few enough to bound memory.
const FRAMES_AHEAD: usize = 4;

/// The gRPC face of one server. Clones share it.
#[derive(Clone, Debug)]
pub struct ParameterServer {
    host: Arc<Host>,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NotInitialised => Status::failed_precondition(text),
            Refusal::Era { .. }
            | Refusal::Generation { .. }
            | Refusal::Fenced { .. }
            | Refusal::Step { .. }
            | Refusal::Missed { .. } => Status::aborted(text),
            Refusal::Stranger(_) | Refusal::NotOwner { .. } => Status::permission_denied(text),
            Refusal::Initialised(_) => Status::already_exists(text),
            Refusal::UnknownBlock { .. } => Status::not_found(text),
            Refusal::Length { .. }
            | Refusal::Encoding { .. }
            | Refusal::Frozen(_)
            | Refusal::Node(..)
            | Refusal::LossScale { .. }
            | Refusal::Contradiction(_)
            | Refusal::Ledger(_) => Status::invalid_argument(text),
        }
    }
}

type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl ParameterServer {
    /// Serves what a host has: calls wait until that is a shard.
    pub fn new(host: Arc<Host>) -> ParameterServer {
        ParameterServer { host }
    }

    async fn push_pull_of(
        &self,
        request: Request<impl Messages<wire::PushPullRequest> + Send + Unpin + 'static>,
    ) -> Result<Response<Outbound<wire::PushPullResponse>>, Status> {
        let caller = request.metadata().get(trace::HEADER).and_then(|caller| trace::caller(caller.to_str().ok()?));
        let mut inbound = request.into_inner();
        let (header, wanted) = opening_pull(&mut inbound).await?;
        let shard = self.host.shard(header.era).await?;
        let (push, outcome) = match self.host.open(&shard, &header).await? {
            Ok(opened) => opened,
            Err(setback) => {
                let answer = Ok(PulledPart::Setback(setback).into());
                return Ok(Response::new(Box::pin(tokio_stream::once(answer))));
            }
        };
        self.host.follow(&shard, outcome);
        let (outbound, answers) = mpsc::channel(FRAMES_AHEAD);
        let host = self.host.clone();
        let seen = host.seen(header.member).filter(|_| wanted.shared);
        self.host.around.tasks.spawn(async move {
            let exchange = async {
                // A track for each worker: its calls follow each other.
                let span = |name| trace::open_below(caller, (name, header.member.rank, push.step.0));
                let receive = async {
                    let _span = span("receive");
                    host.receive(&shard, (&push, seen), inbound).await
                };
                let commit = host.commit(&shard, (&push, wanted), &outbound);
                let _span = span("push-pull");
                tokio::try_join!(receive, commit).map(|(_, last)| last)
            };
            let closing = tokio::select! {
                () = outbound.closed() => {
                    return debug!("{} left before step {} was committed", header.member, push.step);
                }
                last = exchange => last,
            };
            let (closing, shown) = match closing {
                Ok((last, shown)) => (Ok(last.into()), shown),
                Err(status) => (Err(status), Shown::default()),
            };
            // If the reader is gone by now, there is nobody to tell.
            let _ = outbound.send(closing).await;
            host.keep(shown, outbound).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

/// What a caller sends.
trait Messages<R>: Stream<Item = Result<R, Status>> {}

impl<R, S: Stream<Item = Result<R, Status>>> Messages<R> for S {}

/// The header that opens a push.
async fn opening<R>(inbound: &mut (impl Messages<R> + Unpin)) -> Result<PushHeader, Status>
where
    PushPart: TryFrom<R, Error = convoy_proto::convert::WireError>,
{
    let first = inbound.next().await.ok_or_else(|| Status::invalid_argument("the push is empty"))??;
    match PushPart::try_from(first)? {
        PushPart::Header(header) => Ok(header),
        PushPart::Blocks(_) => Err(Status::invalid_argument("a push opens with its header")),
    }
}

/// The header that opens a push-pull, and what is to come back.
async fn opening_pull(
    inbound: &mut (impl Messages<wire::PushPullRequest> + Unpin),
) -> Result<(PushHeader, Wanted), Status> {
    let first = inbound.next().await.ok_or_else(|| Status::invalid_argument("the push is empty"))??;
    let wanted = Wanted { blocks: !first.without_blocks, shared: first.shared };
    match PushPart::try_from(first)? {
        PushPart::Header(header) => Ok((header, wanted)),
        PushPart::Blocks(_) => Err(Status::invalid_argument("a push opens with its header")),
    }
}

#[tonic::async_trait]
impl ParametersService for ParameterServer {
    type PullStream = Outbound<wire::PullResponse>;
    type PushPullStream = Outbound<wire::PushPullResponse>;
    type CopyStream = Outbound<wire::CopyResponse>;
    type ShareStream = Outbound<wire::ShareResponse>;

    async fn initialise(
        &self,
        request: Request<Streaming<wire::InitialiseRequest>>,
    ) -> Result<Response<wire::InitialiseResponse>, Status> {
        let mut inbound = request.into_inner();
        let mut shard = None;
        while let Some(frame) = inbound.next().await {
            let frame = frame?;
            let member = Member::try_from(frame.member)?;
            let blocks = frame.blocks.into_iter().map(ParameterBlock::try_from).collect::<Result<Vec<_>, _>>()?;
            let shard = shard.insert(self.host.shard(Era(frame.era)).await?);
            let outcome = shard.initialise(member, &blocks)?;
            self.host.follow(shard, outcome);
        }
        if !shard.is_some_and(|shard| shard.is_initialised()) {
            return Err(Status::invalid_argument("some blocks of the shard were not sent"));
        }
        Ok(Response::new(wire::InitialiseResponse {}))
    }

    async fn push(
        &self,
        request: Request<Streaming<wire::PushRequest>>,
    ) -> Result<Response<wire::PushResponse>, Status> {
        let mut inbound = request.into_inner();
        let header = opening(&mut inbound).await?;
        let shard = self.host.shard(header.era).await?;
        let (push, outcome) = shard.open(&header)?;
        self.host.follow(&shard, outcome);
        let accepted = self.host.receive(&shard, (&push, None), inbound).await?;
        Ok(Response::new(wire::PushResponse { step: push.step.0, accepted }))
    }

    async fn pull(&self, request: Request<wire::PullRequest>) -> Result<Response<Self::PullStream>, Status> {
        let pull = Pull::try_from(request.into_inner())?;
        let Pull { member, era, extent, .. } = pull;
        let shard = match extent {
            // Whoever asks where a server stands does not wait until it stands somewhere.
            Extent::Nothing => self.host.current().filter(|shard| shard.era() == era),
            Extent::All | Extent::Trained => Some(self.host.shard(era).await?),
        };
        let shard = shard.ok_or_else(|| Status::failed_precondition("the shard is not here yet"))?;
        if member.role == Role::Server {
            return Err(Refusal::Stranger(member).into());
        }
        let (outbound, answers) = mpsc::channel(FRAMES_AHEAD);
        let host = self.host.clone();
        self.host.around.tasks.spawn(async move {
            let send = host.answer(&shard, pull, &outbound);
            let shown = tokio::select! {
                () = outbound.closed() => return debug!("{member} left before its pull ended"),
                sent = send => sent,
            };
            match shown {
                Ok((_, shown)) if shown.is_empty() => {}
                Ok((step, shown)) => {
                    let last = Pulled { step, blocks: Vec::new(), is_last: true };
                    let _ = outbound.send(Ok(last.into())).await;
                    host.keep(shown, outbound).await;
                }
                Err(status) => drop(outbound.send(Err(status)).await),
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn push_pull(
        &self,
        request: Request<Streaming<wire::PushPullRequest>>,
    ) -> Result<Response<Self::PushPullStream>, Status> {
        self.push_pull_of(request).await
    }

    async fn share(&self, request: Request<wire::ShareRequest>) -> Result<Response<Self::ShareStream>, Status> {
        let wire::ShareRequest { member, era, segment } = request.into_inner();
        let member = Member::try_from(member)?;
        let segment = segment.ok_or_else(|| Status::invalid_argument("malformed message: segment is missing"))?;
        let shard = self.host.shard(Era(era)).await?;
        let answer = self.host.share(&shard, member, Pass::try_from(segment)?)?;
        let (outbound, answers) = mpsc::channel(1);
        let host = self.host.clone();
        self.host.around.tasks.spawn(async move {
            let segment = answer.as_ref().map(|(_, ours)| (*ours).into());
            let _ = outbound.send(Ok(wire::ShareResponse { segment })).await;
            if let Some((view, _)) = answer {
                host.until_gone(&outbound).await;
                host.forget(member, &view);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn copy(&self, request: Request<wire::CopyRequest>) -> Result<Response<Self::CopyStream>, Status> {
        let wire::CopyRequest { member, era, commit } = request.into_inner();
        let member = Member::try_from(member)?;
        if member.role != Role::Server {
            return Err(Refusal::Stranger(member).into());
        }
        self.host.shard(Era(era)).await?;
        let (outbound, answers) = mpsc::channel(FRAMES_AHEAD);
        let host = self.host.clone();
        self.host.around.tasks.spawn(async move {
            let send = host.hand_over((member, Step(commit)), &outbound);
            tokio::select! {
                () = outbound.closed() => debug!("{member} left before it had a copy"),
                sent = send => if let Err(status) = sent {
                    let _ = outbound.send(Err(status)).await;
                },
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

#[tonic::async_trait]
impl Exchange for ParameterServer {
    async fn exchange(
        &self,
        request: Request<Inbound<wire::PushPullRequest>>,
    ) -> Result<Response<Self::PushPullStream>, Status> {
        self.push_pull_of(request).await
    }
}
