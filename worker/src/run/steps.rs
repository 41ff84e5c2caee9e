//! Training in steps that everybody makes: synchronous, by quorum, or in rounds of local steps.

use std::time::{Duration, Instant};

use convoy_proto::messages::{ClusterView, Phase, Report, StepReport, StepTimes, Weights};

use super::Worker;
use crate::{
    exchange::{Exchanged, Position},
    failure::WorkError,
    step::Contribution,
};

/// What became of a push.
enum Pushed {
    /// Its step is committed.
    Committed(Exchanged),
    /// A quorum went on without it.
    Missed,
    /// The cluster stops, and nobody makes this step.
    GivenUp,
}

impl Worker<'_> {
    pub(super) fn train_in_steps(&mut self) -> Result<(), WorkError> {
        while self.step < self.commits {
            let view = self.membership.view();
            if self.is_evaluation_due() {
                self.evaluate()?;
                self.await_review()?;
            } else if view.phase >= Phase::Stopping {
                return self.pause();
            } else {
                self.make_step(&view)?;
            }
        }
        if self.evaluated != Some(self.step) {
            self.evaluate()?;
        }
        Ok(())
    }

    fn is_evaluation_due(&self) -> bool {
        self.evaluated != Some(self.step) && self.feed.clock().is_due(self.step, self.config.eval_every)
    }

    /// Pushes nothing more and waits until it is known where everybody stops, which is here, or where a quorum got to.
    fn pause(&mut self) -> Result<(), WorkError> {
        if !std::mem::replace(&mut self.announced, true) {
            self.report(Report::Pausing { pushed: self.step });
        }
        self.await_view(|view| view.stop_at.is_some())?;
        let stop = self.membership.view().stop_at.unwrap_or(self.step);
        if self.step < stop {
            self.step = stop;
            self.take(Weights::Trained)?;
        }
        tracing::info!("stopped after {} steps", self.feed.clock().steps_after(self.step));
        Ok(())
    }

    /// Where evaluations are reviewed, waits for the word that training goes on, or that it stops.
    fn await_review(&self) -> Result<(), WorkError> {
        if !self.config.reviews_evaluations() || self.step == self.commits {
            return Ok(());
        }
        let step = self.step;
        self.await_view(move |view| view.reviewed >= step || view.phase >= Phase::Stopping)
    }

    fn await_view(&self, wanted: impl FnMut(&ClusterView) -> bool) -> Result<(), WorkError> {
        let mut views = self.membership.views();
        self.runtime.block_on(async {
            tokio::select! {
                known = views.wait_for(wanted) => known.map(drop).map_err(|_| WorkError::Lost),
                () = self.membership.lost.cancelled() => Err(WorkError::Lost),
            }
        })
    }

    /// Makes a step, unless the cluster stops and somebody has not pushed it.
    fn make_step(&mut self, view: &ClusterView) -> Result<(), WorkError> {
        let owned = self.owned(view);
        let asked = (&owned, self.loss_scale.get());
        let start = (self.step, &self.parameters);
        let contribution = self.feed.contribute(&mut *self.replica, start, asked)?;
        let made = self.feed.clock().steps_of(self.step);
        let (samples, mut times) = (contribution.samples, contribution.times);
        times.compute += self.dawdle(made.end - made.start)?;
        let start = Instant::now();
        let exchanged = match self.exchange(view, contribution)? {
            Pushed::Committed(exchanged) => exchanged,
            Pushed::Missed => return self.catch_up(),
            Pushed::GivenUp => return Ok(()),
        };
        let exchange = start.elapsed().as_secs_f64();
        let start = Instant::now();
        self.load(exchanged.tensors);
        self.loss_scale.follow(exchanged.verdict.action);
        let times = StepTimes { exchange, load: start.elapsed().as_secs_f64(), ..times };
        self.report(Report::Step(StepReport {
            verdict: exchanged.verdict,
            samples,
            bytes_pushed: exchanged.pushed,
            bytes_pulled: exchanged.pulled,
            times,
        }));
        self.step = self.step.next();
        Ok(())
    }

    /// Takes up with the step that is open.
    fn catch_up(&mut self) -> Result<(), WorkError> {
        let (era, exchange) = (self.membership.view().era, self.exchange.clone());
        let pulled = self.attend(async { Ok(exchange.pull_common(era).await?) })?;
        tracing::debug!("step {} was made without this worker, which goes on with step {}", self.step, pulled.step);
        self.load(pulled.tensors);
        self.step = pulled.step;
        Ok(())
    }

    /// Pushes and pulls. When the cluster stops meanwhile, this step is finished if all have pushed it and given up if
    /// not, which the coordinator knows once all have said what they pushed.
    fn exchange(&mut self, view: &ClusterView, contribution: Contribution) -> Result<Pushed, WorkError> {
        let (step, limit_ms) = (self.step, self.config.timeouts.step_ms);
        let at = Position { generation: view.generation, era: view.era, step, sequence: step.0 };
        let mut views = self.membership.views();
        let (exchange, lost) = (self.exchange.clone(), self.membership.lost.clone());
        let (pushing, reports) = (Report::Pausing { pushed: step.next() }, self.reports.clone());
        let (result, announced) = self.runtime.block_on(async {
            let mut announced = false;
            let given_up = async {
                if views.wait_for(|view| view.phase >= Phase::Stopping).await.is_ok() {
                    // Fails only if the coordinator is gone, which `lost` tells, too.
                    let _ = reports.send(pushing).await;
                    announced = true;
                }
                let given_up = |view: &ClusterView| view.stop_at.is_some_and(|stop| stop <= step);
                if views.wait_for(given_up).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let result = tokio::select! {
                biased;
                exchanged = exchange.push_pull(at, contribution) => match exchanged {
                    Ok(exchanged) => Ok(exchanged.map_or(Pushed::Missed, Pushed::Committed)),
                    Err(problem) => Err(problem.into()),
                },
                () = given_up => Ok(Pushed::GivenUp),
                () = lost.cancelled() => Err(WorkError::Lost),
                () = tokio::time::sleep(Duration::from_millis(limit_ms.into())) => Err(WorkError::Late { step, limit_ms }),
            };
            (result, announced)
        });
        self.announced |= announced;
        result
    }
}
