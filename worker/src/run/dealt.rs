//! Training by slices that are dealt out as workers ask: asynchronous, with or without a bound on staleness.

use std::time::{Duration, Instant};

use convoy_proto::{
    ids::{SliceId, Step},
    messages::{DealtSlice, Effort, Extent, Report, StepReport, StepTimes, Work},
};

use super::Worker;
use crate::{
    exchange::{ExchangeError, Position},
    failure::WorkError,
};

impl Worker<'_> {
    pub(super) fn train_dealt(&mut self) -> Result<(), WorkError> {
        loop {
            match self.ask()? {
                Work::Slice { sequence, step, slice } => self.push_slice(sequence, Step(step), slice)?,
                Work::Evaluate(step) => {
                    self.step = step;
                    self.evaluate(&self.membership.view())?;
                }
                Work::Finished(step) => {
                    self.step = step;
                    return Ok(());
                }
            }
        }
    }

    /// Asks for something to do.
    fn ask(&self) -> Result<Work, WorkError> {
        let limit = Duration::from_millis(self.config.timeouts.step_ms.into());
        let (coordinator, member) = (self.membership.coordinator.clone(), self.membership.member);
        let mut views = self.membership.views();
        self.attend(async {
            let (work, generation) = coordinator.deal(member, limit).await?;
            // Who takes part now has to be pushed to.
            views.wait_for(|view| view.generation >= generation).await.map_err(|_| WorkError::Lost)?;
            Ok(work)
        })
    }

    /// Computes a slice with the newest parameters, and pushes it until it is committed.
    fn push_slice(&mut self, sequence: u64, step: Step, slice: SliceId) -> Result<(), WorkError> {
        let (view, era) = (self.membership.view(), self.era);
        let start = Instant::now();
        let exchange = self.exchange.clone();
        let pulled = self.attend(async { Ok(exchange.pull_newest(era, Extent::Trained).await?) })?;
        let pull = start.elapsed().as_secs_f64();
        let start = Instant::now();
        self.load(pulled.tensors)?;
        let load = start.elapsed().as_secs_f64();
        let computing = self.membership.computing();
        let contribution = self.feed.contribute_dealt(&mut *self.replica, step, slice)?;
        let (samples, mut times) = (contribution.samples, contribution.times);
        times.compute += self.dawdle(1)?;
        drop(computing);
        let start = Instant::now();
        let dealt = Some(DealtSlice { step: step.0, slice });
        let at = Position { generation: view.generation, era, step: pulled.step, sequence, dealt };
        let (verdict, bytes_pushed) = self.attend(async {
            let committed = exchange.push(at, &contribution).await?;
            committed.ok_or(WorkError::Exchange(ExchangeError::Dropped { sequence }))
        })?;
        let times = StepTimes { pull, exchange: start.elapsed().as_secs_f64(), load, ..times };
        let effort = Effort { samples, bytes_pushed, bytes_pulled: pulled.bytes, times };
        self.report(Report::Step(StepReport { verdict, effort }));
        Ok(())
    }
}
