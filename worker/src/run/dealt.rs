//! Training by slices that are dealt out as workers ask: asynchronous, with or without a bound on staleness.
//!
//! A push waits until it is committed everywhere. Meanwhile, where that may overlap, the next slice is asked for and
//! computed; only one push of a worker is on its way at a time.

use std::time::Duration;

use convoy_proto::{
    ids::{SliceId, Step},
    messages::{DealtSlice, Effort, Extent, Report, StepReport, StepTimes, Verdict, Work},
    trace,
};
use tokio_util::task::AbortOnDropHandle;

use super::Worker;
use crate::{
    exchange::{ExchangeError, Position},
    failure::WorkError,
    step::{Contribution, STEPS},
};

/// A slice that is computed.
struct Computed {
    at: Position,
    contribution: Contribution,
    effort: Effort,
}

type Committed = (Verdict, u64);

/// A push on its way. It ends when this is dropped.
struct Pushing {
    task: AbortOnDropHandle<Result<Committed, ExchangeError>>,
    /// Once it is through.
    committed: Option<Committed>,
    effort: Effort,
    /// The step that its slice is of.
    step: u64,
}

impl Pushing {
    /// Waits until it is committed.
    async fn settle(&mut self) -> Result<(), WorkError> {
        if self.committed.is_none() {
            let ended = (&mut self.task).await;
            let committed = ended.unwrap_or_else(|problem| std::panic::resume_unwind(problem.into_panic()))?;
            self.committed = Some(committed);
        }
        Ok(())
    }
}

impl Worker<'_> {
    pub(super) fn train_dealt(&mut self) -> Result<(), WorkError> {
        let overlaps = self.config.mode.overlaps();
        let (mut heard, mut last) = (0, None);
        loop {
            match self.ask(heard, last.as_mut())? {
                Work::Slice { sequence, step, slice } => {
                    heard = sequence;
                    let computed = self.compute_slice(sequence, Step(step), slice)?;
                    self.finish(last.take())?;
                    last = Some(self.push(computed));
                    if !overlaps {
                        self.finish(last.take())?;
                    }
                }
                Work::Evaluate(step) => {
                    self.finish(last.take())?;
                    self.step = step;
                    self.evaluate(&self.membership.view())?;
                }
                Work::Finished(step) => {
                    self.finish(last.take())?;
                    self.step = step;
                    return Ok(());
                }
            }
        }
    }

    /// Asks for something to do after what it has heard of, while its last push may be on its way.
    fn ask(&self, heard: u64, last: Option<&mut Pushing>) -> Result<Work, WorkError> {
        let limit = Duration::from_millis(self.config.timeouts.step_ms.into());
        let (coordinator, member) = (self.membership.coordinator.clone(), self.membership.member);
        let mut views = self.membership.views();
        self.attend(async {
            let dealt = async {
                let (work, generation) = coordinator.deal((member, heard), limit).await?;
                // Who takes part now has to be pushed to.
                views.wait_for(|view| view.generation >= generation).await.map_err(|_| WorkError::Lost)?;
                Ok(work)
            };
            tokio::pin!(dealt);
            if let Some(last) = last {
                tokio::select! {
                    work = &mut dealt => return work,
                    settled = last.settle() => settled?,
                }
            }
            dealt.await
        })
    }

    /// Computes a slice with the newest parameters.
    fn compute_slice(&mut self, sequence: u64, step: Step, slice: SliceId) -> Result<Computed, WorkError> {
        let (view, era) = (self.membership.view(), self.era);
        let (exchange, mut pull, mut load) = (self.exchange.clone(), 0.0, 0.0);
        let pulling = || self.attend(async { Ok(exchange.pull_newest(era, Extent::Trained).await?) });
        let pulled = trace::timed(&mut pull, ("pull", STEPS, step.0), pulling)?;
        trace::timed(&mut load, ("load", STEPS, step.0), || self.load(pulled.tensors))?;
        let computing = self.membership.computing();
        let contribution = self.feed.contribute_dealt(&mut *self.replica, step, slice)?;
        let (samples, mut times) = (contribution.samples, contribution.times);
        times.compute += self.dawdle(1)?;
        drop(computing);
        let dealt = Some(DealtSlice { step: step.0, slice });
        let at = Position { generation: view.generation, era, step: pulled.step, sequence, dealt };
        let times = StepTimes { pull, load, ..times };
        let effort = Effort { samples, bytes_pushed: 0, bytes_pulled: pulled.bytes, times };
        Ok(Computed { at, contribution, effort })
    }

    /// Begins to push a slice.
    fn push(&self, computed: Computed) -> Pushing {
        let (exchange, Computed { at, contribution, effort }) = (self.exchange.clone(), computed);
        let step = at.dealt.map_or(at.step.0, |dealt| dealt.step);
        let task = self.runtime.spawn(async move {
            let committed = exchange.push(at, &contribution).await?;
            committed.ok_or(ExchangeError::Dropped { sequence: at.sequence })
        });
        Pushing { task: AbortOnDropHandle::new(task), committed: None, effort, step }
    }

    /// Waits until a push is committed, and tells of it.
    fn finish(&self, pushing: Option<Pushing>) -> Result<(), WorkError> {
        let Some(mut pushing) = pushing else { return Ok(()) };
        let mut wait = 0.0;
        trace::timed(&mut wait, ("wait", STEPS, pushing.step), || self.attend(pushing.settle()))?;
        if let Some((verdict, bytes_pushed)) = pushing.committed {
            let times = StepTimes { wait, ..pushing.effort.times };
            let effort = Effort { bytes_pushed, times, ..pushing.effort };
            self.report(Report::Step(StepReport { verdict, effort }));
        }
        Ok(())
    }
}
