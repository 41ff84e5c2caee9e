//! The client of a shard's parameters.

use tokio_stream::StreamExt;

use super::{Credentials, Peer, Shown, TransportError, bulk_channel};
use crate::{
    ids::{Era, Member, ServerId, Step},
    limits,
    messages::{
        BlockState, CopyPart, GradientBlock, ParameterBlock, Pull, Pulled, PulledPart, PushHeader, PushPart, Setback,
        Verdict,
    },
    wire::{self, parameters_service_client::ParametersServiceClient},
};

/// A connection to one server's shard. Clones share it.
#[derive(Clone, Debug)]
pub struct ShardClient {
    peer: Peer,
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
    fn bytes(&self) -> usize;
}

impl Payload for GradientBlock {
    fn bytes(&self) -> usize {
        self.payload.len()
    }
}

impl Payload for ParameterBlock {
    fn bytes(&self) -> usize {
        self.payload.len()
    }
}

impl<I: Iterator<Item = T>, T: Payload> Iterator for Frames<I> {
    type Item = Vec<T>;

    fn next(&mut self) -> Option<Vec<T>> {
        let mut frame: Vec<T> = vec![self.blocks.next()?];
        let mut bytes = frame[0].bytes();
        while let Some(block) = self.blocks.next_if(|next| bytes + next.bytes() <= limits::FRAME_BYTES) {
            bytes += block.bytes();
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
        let client = ParametersServiceClient::new(bulk_channel(&peer, credentials).await?)
            .max_decoding_message_size(limits::MESSAGE_BYTES)
            .max_encoding_message_size(limits::MESSAGE_BYTES);
        Ok(ShardClient { peer, client })
    }

    fn failed(&self) -> impl FnOnce(tonic::Status) -> TransportError + '_ {
        |status| TransportError::of(&self.peer, &status)
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

    /// The shard's parameters that a step starts from, once they are formed, or the newest; gives the step.
    ///
    /// # Errors
    /// A refusal, no server, or a malformed answer.
    pub async fn pull(&self, pull: Pull, mut on_block: impl FnMut(ParameterBlock)) -> Result<Step, TransportError> {
        let request = wire::PullRequest::from(pull);
        let mut frames = self.client.clone().pull(request).await.map_err(self.failed())?.into_inner();
        let mut step = pull.step;
        while let Some(frame) = frames.message().await.map_err(self.failed())? {
            let pulled: Pulled = frame.try_into().map_err(TransportError::malformed(&self.peer))?;
            step = Some(pulled.step);
            pulled.blocks.into_iter().for_each(&mut on_block);
        }
        // A shard without a single block still says which step it is at.
        step.ok_or_else(|| TransportError::Incomplete { peer: self.peer.clone(), missing: "a step was named" })
    }

    /// Pushes a step's contributions and takes the updated blocks, if they are wanted, as they are formed, up to the verdict,
    /// or what keeps it off.
    ///
    /// # Errors
    /// A refusal, no server, or a malformed answer.
    pub async fn push_pull(
        &self,
        (header, wants_blocks): (PushHeader, bool),
        blocks: impl Iterator<Item = GradientBlock> + Send + 'static,
        mut on_block: impl FnMut(ParameterBlock),
    ) -> Result<Result<Verdict, Setback>, TransportError> {
        let header = PushPart::Header(header).into();
        let first = wire::PushPullRequest { without_blocks: !wants_blocks, ..header };
        let parts = Frames::new(blocks).map(PushPart::Blocks).map(wire::PushPullRequest::from);
        let requests = tokio_stream::iter(std::iter::once(first).chain(parts));
        let mut answers = self.client.clone().push_pull(requests).await.map_err(self.failed())?.into_inner();
        while let Some(answer) = answers.next().await {
            let answer = answer.map_err(self.failed())?;
            match answer.try_into().map_err(TransportError::malformed(&self.peer))? {
                PulledPart::Blocks(blocks) => blocks.into_iter().for_each(&mut on_block),
                PulledPart::Committed(verdict) => return Ok(Ok(verdict)),
                PulledPart::Setback(setback) => return Ok(Err(setback)),
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
