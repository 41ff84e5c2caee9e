//! The gRPC face of a server: decodes messages, calls the core, and streams what it forms.

use std::{pin::Pin, sync::Arc};

use convoy_proto::{
    fates::Fate,
    ids::{BlockId, Era, Member, Role, Step},
    messages::{
        Extent, GradientBlock, ParameterBlock, Place, Pull, Pulled, PulledPart, PushHeader, PushPart, Setback, Wanted,
        Weights,
    },
    shared::{Pass, View},
    wire::{self, parameters_service_server::ParametersService},
};
use rayon::prelude::*;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use crate::{
    core::{
        refusal::Refusal,
        shard::{Outcome, Push, Shard},
        versions::{Lookup, parameter_block},
    },
    frames::{Frames, Shown},
    host::Host,
};

/// Frames on their way to one reader: enough to keep the connection busy, few enough to bound memory.
const FRAMES_AHEAD: usize = 4;

/// Payload of a frame from which on more than one core adds it up: to wake others for less takes more than it saves
/// (docs/benchmarks.md).
const SHARED_OUT: usize = 3 << 20;

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

impl ParameterServer {
    /// Serves what a host has: calls wait until that is a shard.
    pub fn new(host: Arc<Host>) -> ParameterServer {
        ParameterServer { host }
    }
}

impl Host {
    /// Opens a push, or says what keeps it off. A view that the shard has not heard of is on its way.
    async fn open(&self, shard: &Shard, header: &PushHeader) -> Result<Result<(Push, Outcome), Setback>, Status> {
        let open = || match shard.open(header) {
            Ok(opened) => Ok(Some(Ok(opened))),
            Err(Refusal::Generation { ours, theirs }) if theirs > ours => Ok(None),
            // Another copy, which the parameters were pulled from, is ahead of this one.
            Err(Refusal::Step { asked, open }) if asked > open && shard.is_dealt() => Ok(None),
            Err(Refusal::Generation { ours, .. }) => Ok(Some(Err(Setback::Outdated(ours)))),
            Err(Refusal::Missed { open, .. }) => Ok(Some(Err(Setback::Missed(open)))),
            Err(Refusal::LossScale { ours, .. }) => Ok(Some(Err(Setback::Rescale(ours)))),
            Err(refusal) => Err(refusal.into()),
        };
        // Memory is bounded: no step begins while two checkpoints wait for the disk.
        self.wait(|| if self.is_behind() { Ok(None) } else { open() }).await
    }

    /// Adds every block of a push; returns how many were new.
    async fn receive<R>(
        self: &Arc<Self>,
        shard: &Arc<Shard>,
        (push, seen): (&Push, Option<Arc<View>>),
        mut inbound: Streaming<R>,
    ) -> Result<u64, Status>
    where
        PushPart: TryFrom<R, Error = convoy_proto::convert::WireError>,
    {
        let mut accepted = 0;
        while let Some(part) = inbound.next().await {
            let PushPart::Blocks(blocks) = PushPart::try_from(part?)? else {
                return Err(Status::invalid_argument("a push has one header only"));
            };
            let add = |block: GradientBlock| -> Result<Outcome, Status> {
                let outcome = shard.accept(push, &found(block, seen.as_ref())?)?;
                if outcome.changed {
                    self.changed();
                }
                Ok(outcome)
            };
            // Each block has its own lock, so other cores may take part. What is to be followed is followed here, where there
            // is a runtime.
            let bytes: usize = blocks.iter().map(GradientBlock::bytes).sum();
            let outcomes: Vec<Outcome> = if bytes >= SHARED_OUT {
                blocks.into_par_iter().map(add).collect::<Result<_, _>>()?
            } else {
                blocks.into_iter().map(add).collect::<Result<_, _>>()?
            };
            for outcome in outcomes {
                accepted += u64::from(outcome.fresh);
                self.follow(shard, outcome);
            }
        }
        Ok(accepted)
    }

    /// Streams blocks at `step` in order, each as soon as it is formed, in frames.
    async fn send_blocks<M>(
        &self,
        shard: &Shard,
        (step, weights): (Step, Weights),
        blocks: impl Iterator<Item = BlockId>,
        mut frames: Frames<'_, M, impl Fn(Vec<ParameterBlock>) -> M>,
    ) -> Result<Shown, Status> {
        for block in blocks {
            let version = match look_up(shard, block, step, weights)? {
                Some(version) => version,
                None => {
                    frames.flush().await?;
                    self.wait(|| look_up(shard, block, step, weights)).await?
                }
            };
            frames.add(version).await?;
        }
        frames.finish().await
    }

    /// Waits for a push's commit. Where steps are closed by all, the updated blocks are streamed as they are formed.
    async fn commit(
        &self,
        shard: &Shard,
        (push, wanted): (&Push, Wanted),
        outbound: &mpsc::Sender<Result<wire::PushPullResponse, Status>>,
    ) -> Result<(PulledPart, Shown), Status> {
        let step = push.step;
        if shard.is_dealt() {
            let verdict = self.wait(|| match shard.fate(push.id) {
                Fate::Open => Ok(None),
                Fate::Decided(verdict) => Ok(Some(verdict)),
                Fate::Dropped => Err(Status::aborted(format!("push {} was dropped", push.id))),
            });
            return Ok((PulledPart::Committed(verdict.await?), Shown::default()));
        }
        let wrap = |blocks| PulledPart::Blocks(blocks).into();
        let blocks = shard.trained_blocks().filter(|_| wanted.blocks);
        let frames = Frames::new((outbound, wanted.shared), wrap);
        let sent = match self.send_blocks(shard, (step.next(), Weights::Trained), blocks, frames).await {
            Ok(shown) => {
                self.wait(|| Ok(shard.closed(step))).await.map(|verdict| verdict.map(|verdict| (verdict, shown)))
            }
            Err(problem) => Err(problem),
        };
        match sent {
            Ok(Some((verdict, shown))) => Ok((PulledPart::Committed(verdict), shown)),
            // A quorum went on without this worker, so far that what it waits for is gone.
            _ if shard.open_step() > step.next() => {
                Ok((PulledPart::Setback(Setback::Missed(shard.open_step())), Shown::default()))
            }
            Ok(None) => Err(Status::aborted(format!("the verdict on step {step} is gone"))),
            Err(problem) => Err(problem),
        }
    }

    /// Answers a pull: a step's parameters once they are formed, or the newest; gives the step.
    async fn answer(
        &self,
        shard: &Shard,
        pull: Pull,
        outbound: &mpsc::Sender<Result<wire::PullResponse, Status>>,
    ) -> Result<(Step, Shown), Status> {
        let Pull { member, step, weights, extent, is_shared, .. } = pull;
        let wrap = |step| move |blocks| Pulled { step, blocks, is_last: false }.into();
        let frames = |step| Frames::new((outbound, is_shared), wrap(step));
        if let Some(step) = step {
            let shown = match extent {
                Extent::All => self.send_blocks(shard, (step, weights), shard.all_blocks(), frames(step)).await?,
                Extent::Trained => {
                    self.send_blocks(shard, (step, weights), shard.trained_blocks(), frames(step)).await?
                }
                Extent::Nothing => Shown::default(),
            };
            return Ok((step, shown));
        }
        if extent == Extent::Nothing {
            let step = shard.open_step();
            frames(step).send().await?;
            return Ok((step, Shown::default()));
        }
        let (step, versions) = shard.newest(member, (weights, extent))?;
        let mut frames = frames(step);
        if versions.is_empty() {
            // A shard without blocks says which step it is at, too.
            frames.send().await?;
        }
        for (block, version) in versions {
            frames.add(parameter_block(block, version)).await?;
        }
        Ok((step, frames.finish().await?))
    }
}

fn look_up(shard: &Shard, block: BlockId, step: Step, weights: Weights) -> Result<Option<ParameterBlock>, Status> {
    match shard.version(block, step, weights)? {
        Lookup::Ready(version) => Ok(Some(parameter_block(block, version))),
        Lookup::Pending => Ok(None),
        Lookup::Gone => Err(Status::aborted(format!("the parameters of step {step} are gone"))),
    }
}

/// A block with its payload, if that is in memory which this process sees.
fn found(block: GradientBlock, seen: Option<&Arc<View>>) -> Result<GradientBlock, Status> {
    let Some(place) = block.place else { return Ok(block) };
    let payload = seen.and_then(|seen| seen.bytes(place.offset, place.bytes));
    let payload = payload.ok_or_else(|| {
        let Place { offset, bytes } = place;
        Status::invalid_argument(format!("block {} is at {offset}+{bytes} of memory that is not shared", block.block))
    })?;
    Ok(GradientBlock { payload, place: None, ..block })
}

/// The header that opens a push.
async fn opening<R>(inbound: &mut Streaming<R>) -> Result<PushHeader, Status>
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
async fn opening_pull(inbound: &mut Streaming<wire::PushPullRequest>) -> Result<(PushHeader, Wanted), Status> {
    let first = inbound.next().await.ok_or_else(|| Status::invalid_argument("the push is empty"))??;
    let wanted = Wanted { blocks: !first.without_blocks, shared: first.shared };
    match PushPart::try_from(first)? {
        PushPart::Header(header) => Ok((header, wanted)),
        PushPart::Blocks(_) => Err(Status::invalid_argument("a push opens with its header")),
    }
}

type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

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
                let commit = host.commit(&shard, (&push, wanted), &outbound);
                tokio::try_join!(host.receive(&shard, (&push, seen), inbound), commit).map(|(_, last)| last)
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
