//! What goes on in a push and in a pull: blocks come in and are added up, others are streamed as they are formed.

use std::sync::Arc;

use convoy_proto::{
    convert::WireError,
    fates::Fate,
    ids::{BlockId, Step},
    messages::{
        Extent, GradientBlock, ParameterBlock, Place, Pull, Pulled, PulledPart, PushHeader, PushPart, Setback, Wanted,
        Weights,
    },
    shared::View,
    wire,
};
use rayon::prelude::*;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

use crate::{
    core::{
        refusal::Refusal,
        shard::{Outcome, Push, Shard},
        versions::{Lookup, parameter_block},
    },
    frames::{Frames, Shown},
    host::Host,
};

/// Payload of a frame from which on more than one core adds it up: to wake others for less takes more than it saves
/// (docs/benchmarks.md).
const SHARED_OUT: usize = 3 << 20;

impl Host {
    /// Opens a push, or says what keeps it off. A view that the shard has not heard of is on its way.
    pub(crate) async fn open(
        &self,
        shard: &Shard,
        header: &PushHeader,
    ) -> Result<Result<(Push, Outcome), Setback>, Status> {
        let open = || match self.around.busy.work(|| shard.open(header)) {
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
    pub(crate) async fn receive<R>(
        self: &Arc<Self>,
        shard: &Arc<Shard>,
        (push, seen): (&Push, Option<Arc<View>>),
        mut inbound: impl Stream<Item = Result<R, Status>> + Unpin,
    ) -> Result<u64, Status>
    where
        PushPart: TryFrom<R, Error = WireError>,
    {
        let mut accepted = 0;
        let _open = self.around.busy.open();
        while let Some(part) = inbound.next().await {
            let PushPart::Blocks(blocks) = PushPart::try_from(part?)? else {
                return Err(Status::invalid_argument("a push has one header only"));
            };
            // What is in the worker's memory takes none of this process's while it waits.
            if let Some(first) = blocks.first().filter(|first| first.place.is_none()).map(|first| first.block)
                && !shard.admits(push, first)
            {
                self.wait(|| Ok(shard.admits(push, first).then_some(()))).await?;
            }
            let add = |block: GradientBlock| -> Result<Outcome, Status> {
                let block = found(block, seen.as_ref())?;
                let outcome = self.around.busy.work(|| shard.accept(push, &block))?;
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
    pub(crate) async fn commit(
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
    pub(crate) async fn answer(
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
