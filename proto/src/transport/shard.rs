//! The client of a shard's parameters.

use std::{
    any::Any,
    sync::{Arc, Mutex},
};

use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status, Streaming, body::Body};
use tower_service::Service;
use tracing::debug;

use super::{
    Credentials, Inbound, Peer, Shown, TransportError,
    bulk::{Chunked, Messages},
    bulk_channel,
};
use crate::{
    ids::{Era, Member, ServerId, Step},
    limits,
    messages::{
        BlockState, CopyPart, GradientBlock, ParameterBlock, Pull, Pulled, PulledPart, PushHeader, PushPart, Setback,
        Verdict, Wanted,
    },
    shared::{Pass, View},
    trace,
    wire::{self, parameters_service_client::ParametersServiceClient, parameters_service_server::SERVICE_NAME},
};

/// A connection to one server's shard. Clones share it.
#[derive(Clone, Debug)]
pub struct ShardClient {
    peer: Peer,
    service: Shown,
    client: ParametersServiceClient<Shown>,
}

/// Gathers blocks into frames of about [`limits::FRAME_BYTES`].
pub(super) struct Frames<I: Iterator> {
    blocks: std::iter::Peekable<I>,
}

impl<I: Iterator<Item = T>, T: Payload> Frames<I> {
    fn new(blocks: I) -> Self {
        Frames { blocks: blocks.peekable() }
    }
}

/// What frames are made of.
pub(super) trait Payload {
    /// What it takes of a frame, which may be full at [`limits::FRAME_BYTES`].
    fn weight(&self) -> usize;
}

impl Payload for GradientBlock {
    fn weight(&self) -> usize {
        limits::weight(&self.payload, self.place)
    }
}

impl Payload for ParameterBlock {
    fn weight(&self) -> usize {
        limits::weight(&self.payload, self.place)
    }
}

/// Keeps what a server shows in its memory as it is, until it is dropped.
#[derive(Debug)]
pub struct Lease {
    /// Behind a lock that nobody takes, so that threads may share it.
    _call: Mutex<Box<dyn Any + Send>>,
}

/// A server's memory, as long as the server sees this process's, too: until this is dropped, or the connection breaks.
#[derive(Debug)]
pub struct Sight {
    /// The server's memory.
    pub view: Arc<View>,
    ended: CancellationToken,
    _call: DropGuard,
}

impl Sight {
    fn new(view: View, mut call: Streaming<wire::ShareResponse>) -> Sight {
        let (ended, dropped) = (CancellationToken::new(), CancellationToken::new());
        let (ends, drops) = (ended.clone(), dropped.clone());
        tokio::spawn(async move {
            // Nothing more is said, so whatever comes is the end.
            tokio::select! {
                _ = call.message() => ends.cancel(),
                () = drops.cancelled() => {}
            }
        });
        Sight { view: Arc::new(view), ended, _call: dropped.drop_guard() }
    }

    /// Whether the server no longer sees this process's memory.
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

impl Lease {
    /// For as long as a call lasts.
    fn of(call: impl Any + Send) -> Lease {
        Lease { _call: Mutex::new(Box::new(call)) }
    }
}

impl<I: Iterator<Item = T>, T: Payload> Iterator for Frames<I> {
    type Item = Vec<T>;

    fn next(&mut self) -> Option<Vec<T>> {
        let mut frame: Vec<T> = vec![self.blocks.next()?];
        let mut weight = frame[0].weight();
        while let Some(block) = self.blocks.next_if(|next| weight + next.weight() <= limits::FRAME_BYTES) {
            weight += block.weight();
            frame.push(block);
        }
        Some(frame)
    }
}

impl ShardClient {
    /// Connects to a server.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(
        server: ServerId,
        address: &str,
        credentials: &Credentials,
    ) -> Result<ShardClient, TransportError> {
        let peer = Peer { name: format!("server {server}"), address: address.into() };
        let service = bulk_channel(&peer, credentials).await?;
        let client = ParametersServiceClient::new(service.clone())
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES);
        Ok(ShardClient { peer, service, client })
    }

    fn failed(&self) -> impl FnOnce(tonic::Status) -> TransportError + '_ {
        |status| TransportError::of(&self.peer, &status)
    }

    /// What is wrong if memory has to be shared and is not.
    pub fn apart(&self) -> TransportError {
        TransportError::Apart { peer: self.peer.clone() }
    }

    /// Sets the parameters of step 0: all blocks of the shard.
    ///
    /// # Errors
    /// A refusal, or no server.
    pub async fn initialise(
        &self,
        (member, era): (Member, Era),
        blocks: impl Iterator<Item = ParameterBlock> + Send + 'static,
    ) -> Result<(), TransportError> {
        // One frame at least, so that a shard without blocks hears of the era, too.
        let frames =
            std::iter::once(Vec::new()).chain(Frames::new(blocks)).map(move |blocks| wire::InitialiseRequest {
                member: Some(member.into()),
                era: era.0,
                blocks: blocks.into_iter().map(Into::into).collect(),
            });
        self.client.clone().initialise(tokio_stream::iter(frames)).await.map_err(self.failed()).map(drop)
    }

    /// Shows a segment to the server, and gives the server's; nothing if one of the two cannot see the other's.
    ///
    /// # Errors
    /// A refusal, no server, or a malformed answer.
    pub async fn share(&self, (member, era): (Member, Era), segment: Pass) -> Result<Option<Sight>, TransportError> {
        let request = wire::ShareRequest { member: Some(member.into()), era: era.0, segment: Some(segment.into()) };
        let mut answers = self.client.clone().share(request).await.map_err(self.failed())?.into_inner();
        let answer = answers.message().await.map_err(self.failed())?;
        let Some(segment) = answer.and_then(|answer| answer.segment) else { return Ok(None) };
        let pass = Pass::try_from(segment).map_err(TransportError::malformed(&self.peer))?;
        match View::open(&pass) {
            Ok(view) => Ok(Some(Sight::new(view, answers))),
            Err(problem) => {
                debug!("does not see the memory of {}: {problem}", self.peer);
                Ok(None)
            }
        }
    }

    /// The shard's parameters that a step starts from, once they are formed, or the newest; gives the step, and what keeps
    /// those that are shown.
    ///
    /// # Errors
    /// A refusal, no server, or a malformed answer.
    pub async fn pull(
        &self,
        pull: Pull,
        mut on_block: impl FnMut(ParameterBlock),
    ) -> Result<(Step, Lease), TransportError> {
        let request = wire::PullRequest::from(pull);
        let asked = tokio_stream::once(Ok(request));
        let mut frames = self.in_chunks::<_, wire::PullResponse>("Pull", asked).await.map_err(self.failed())?;
        let mut step = pull.step;
        while let Some(frame) = frames.next().await {
            let pulled: Pulled =
                frame.map_err(self.failed())?.try_into().map_err(TransportError::malformed(&self.peer))?;
            step = Some(pulled.step);
            pulled.blocks.into_iter().for_each(&mut on_block);
            if pulled.is_last {
                break;
            }
        }
        // A shard without a single block still says which step it is at.
        let step =
            step.ok_or_else(|| TransportError::Incomplete { peer: self.peer.clone(), missing: "a step was named" })?;
        Ok((step, Lease::of(frames)))
    }

    /// Calls with a stream of messages, whose payloads are not copied, and neither are those of the answers.
    async fn in_chunks<A: Chunked + 'static, B>(
        &self,
        method: &str,
        messages: impl Stream<Item = Result<A, Status>> + Send + 'static,
    ) -> Result<Inbound<B>, Status> {
        let mut service = self.service.clone();
        let call = http::Request::post(format!("/{SERVICE_NAME}/{method}"))
            .version(http::Version::HTTP_2)
            .header(http::header::TE, "trailers")
            .header(http::header::CONTENT_TYPE, "application/grpc");
        let call = trace::header().into_iter().fold(call, |call, caller| call.header(trace::HEADER, caller));
        let call =
            call.body(Body::new(Messages::asked(messages))).map_err(|problem| Status::internal(problem.to_string()))?;
        let ready = std::future::poll_fn(|context| Service::<http::Request<Body>>::poll_ready(&mut service, context));
        ready.await.map_err(|problem| Status::from_error(problem.into()))?;
        let response = service.call(call).await.map_err(|problem| Status::from_error(problem.into()))?;
        if let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok) {
            return Err(status);
        }
        if response.status() != http::StatusCode::OK {
            return Err(Status::unknown(format!("the answer is HTTP's {}", response.status())));
        }
        Ok(Inbound::answered(Body::new(response.into_body())))
    }

    /// Pushes a step's contributions and takes the updated blocks, if they are wanted, as they are formed, up to the verdict,
    /// or what keeps it off; with what keeps the blocks that are shown.
    ///
    /// # Errors
    /// A refusal, no server, or a malformed answer.
    pub async fn push_pull(
        &self,
        (header, wanted): (PushHeader, Wanted),
        blocks: impl Iterator<Item = GradientBlock> + Send + 'static,
        mut on_block: impl FnMut(ParameterBlock),
    ) -> Result<(Result<Verdict, Setback>, Lease), TransportError> {
        let header = PushPart::Header(header).into();
        let Wanted { blocks: wants_blocks, shared } = wanted;
        let first = wire::PushPullRequest { without_blocks: !wants_blocks, shared, ..header };
        let parts = Frames::new(blocks).map(PushPart::Blocks).map(wire::PushPullRequest::from);
        let requests = tokio_stream::iter(std::iter::once(first).chain(parts));
        let answers = self.in_chunks::<_, wire::PushPullResponse>("PushPull", requests.map(Ok)).await;
        let mut answers = answers.map_err(self.failed())?;
        while let Some(answer) = answers.next().await {
            let answer = answer.map_err(self.failed())?;
            match answer.try_into().map_err(TransportError::malformed(&self.peer))? {
                PulledPart::Blocks(blocks) => blocks.into_iter().for_each(&mut on_block),
                PulledPart::Committed(verdict) => return Ok((Ok(verdict), Lease::of(answers))),
                PulledPart::Setback(setback) => return Ok((Err(setback), Lease::of(answers))),
            }
        }
        Err(TransportError::Incomplete { peer: self.peer.clone(), missing: "the step was committed" })
    }

    /// Takes the shard as it is when a commit is the next, for another copy; gives the loss scale then, and how many
    /// clean steps there were in a row.
    ///
    /// # Errors
    /// A refusal, no server, or a malformed answer.
    pub async fn copy(
        &self,
        (member, era, commit): (Member, Era, Step),
        mut on_block: impl FnMut(BlockState),
    ) -> Result<(f64, u64), TransportError> {
        let request = wire::CopyRequest { member: Some(member.into()), era: era.0, commit: commit.0 };
        let mut answers = self.client.clone().copy(request).await.map_err(self.failed())?.into_inner();
        while let Some(answer) = answers.message().await.map_err(self.failed())? {
            match answer.try_into().map_err(TransportError::malformed(&self.peer))? {
                CopyPart::Blocks(blocks) => blocks.into_iter().for_each(&mut on_block),
                CopyPart::End { loss_scale, clean } => return Ok((loss_scale, clean)),
            }
        }
        Err(TransportError::Incomplete { peer: self.peer.clone(), missing: "all blocks were copied" })
    }

    /// Pushes a step's contributions and waits until they are received; returns how many were new.
    ///
    /// # Errors
    /// A refusal, or no server.
    pub async fn push(
        &self,
        header: PushHeader,
        blocks: impl Iterator<Item = GradientBlock> + Send + 'static,
    ) -> Result<u64, TransportError> {
        let parts = std::iter::once(PushPart::Header(header)).chain(Frames::new(blocks).map(PushPart::Blocks));
        let requests = tokio_stream::iter(parts.map(wire::PushRequest::from));
        Ok(self.client.clone().push(requests).await.map_err(self.failed())?.into_inner().accepted)
    }
}
