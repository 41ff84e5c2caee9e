//! Training in steps that everybody makes: synchronous, by quorum, or in rounds of local steps.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use convoy_proto::{
    ids::{Generation, SliceId, WorkerId},
    messages::{ClusterView, Effort, Extent, Phase, Report, Setback, StepReport, StepTimes, Weights},
    trace,
};
use tokio::sync::watch;

use super::Worker;
use crate::{
    exchange::{Exchanged, Position, Spent},
    failure::WorkError,
    step::{Contribution, STEPS},
};

/// What became of a step.
enum Ended {
    /// It is committed.
    Committed(Box<Exchanged>),
    /// It is not: a server says so, or the view shows that slices have changed hands.
    Setback(Setback),
    /// The cluster stops, and nobody makes this step.
    GivenUp,
}

impl Worker<'_> {
    pub(super) fn train_in_steps(&mut self) -> Result<(), WorkError> {
        while self.step < self.commits {
            let view = self.membership.view();
            if view.era > self.era {
                return Err(WorkError::EraOver(self.era));
            }
            if self.is_evaluation_due() {
                self.evaluate(&view)?;
                self.await_review()?;
            } else if view.phase >= Phase::Stopping {
                return self.pause();
            } else {
                self.make_step(view)?;
            }
        }
        self.evaluate(&self.membership.view())
    }

    fn is_evaluation_due(&self) -> bool {
        !self.is_evaluated() && self.feed.clock().is_due(self.step, self.config.eval_every)
    }

    /// Pushes nothing more and waits until it is known where everybody stops, which is here, or where a quorum got to.
    fn pause(&mut self) -> Result<(), WorkError> {
        if !std::mem::replace(&mut self.announced, true) {
            self.report(Report::Pausing { pushed: self.step });
        }
        let view = self.await_view(|view| view.stop_at.is_some())?;
        let stop = view.stop_at.unwrap_or(self.step);
        if self.step < stop {
            self.step = stop;
            self.take(Weights::Trained)?;
        }
        tracing::info!("stopped after {} steps", self.feed.clock().steps_after(self.step));
        Ok(())
    }

    /// Where evaluations are reviewed, waits for the word that training goes on, or that it stops.
    fn await_review(&mut self) -> Result<(), WorkError> {
        if !self.config.reviews_evaluations() || self.step == self.commits {
            return Ok(());
        }
        let step = self.step;
        self.await_view(move |view| view.reviewed >= step || view.phase >= Phase::Stopping).map(drop)
    }

    /// Makes a step, unless the cluster stops and somebody has not pushed it. When slices change hands meanwhile, because
    /// somebody died, computes those that have become this worker's and pushes again.
    fn make_step(&mut self, mut view: ClusterView) -> Result<(), WorkError> {
        let made = self.feed.clock().steps_of(self.step);
        let mut dawdled = Some(made.end - made.start);
        let mut contribution = Contribution::new(self.loss_scale.get());
        let mut waited = 0.0;
        let exchanged = loop {
            if self.is_evaluated() {
                // Of somebody who died since, too: only what is scored may be trained on.
                self.evaluate(&view)?;
            }
            let (owned, start) = (self.owned(&view), (self.step, &self.parameters));
            let computing = self.membership.computing();
            contribution = self.feed.contribute(&mut *self.replica, start, (&owned, contribution))?;
            if let Some(steps) = dawdled.take() {
                contribution.times.compute += self.dawdle(steps)?;
            }
            drop(computing);
            self.feed.prepare(self.step.next(), &owned);
            let start = Instant::now();
            let ended = self.exchange(&view, (&contribution, &owned))?;
            waited += start.elapsed().as_secs_f64();
            match ended {
                Ended::Committed(exchanged) => break exchanged,
                Ended::Setback(Setback::Missed(_)) => return self.catch_up(contribution),
                Ended::GivenUp => return Ok(()),
                // So much is done already.
                Ended::Setback(Setback::Outdated(_)) => {}
                Ended::Setback(Setback::Rescale(scale)) => {
                    self.loss_scale.adopt(scale);
                    contribution = Contribution::new(scale);
                }
            }
            view = self.membership.view();
        };
        let Exchanged { verdict, tensors, pushed: bytes_pushed, pulled: bytes_pulled, spent } = *exchanged;
        let (start, mut load) = (self.step.0, 0.0);
        trace::timed(&mut load, ("load", STEPS, start), || self.load(tensors))?;
        self.loss_scale.follow(verdict.action);
        let Spent { push, pull, .. } = spent;
        // Exchanges that came to nothing are waiting, too.
        let wait = (waited - push - pull).max(0.0);
        let times = StepTimes { push, wait, pull, load, ..contribution.times };
        let effort = Effort { samples: contribution.samples, bytes_pushed, bytes_pulled, times };
        self.report(Report::Step(StepReport { verdict, effort }));
        self.step = self.step.next();
        Ok(())
    }

    /// Takes up with the step that is open.
    fn catch_up(&mut self, missed: Contribution) -> Result<(), WorkError> {
        let (era, exchange) = (self.era, self.exchange.clone());
        let pulled = self.attend(async { Ok(exchange.pull_common(era, Extent::Trained).await?) })?;
        tracing::debug!("step {} was made without this worker, which goes on with step {}", self.step, pulled.step);
        self.load(pulled.tensors)?;
        self.step = pulled.step;
        let Contribution { samples, times, .. } = missed;
        let effort = Effort { samples, bytes_pushed: 0, bytes_pulled: pulled.bytes, times };
        self.report(Report::Missed { next: self.step, effort });
        Ok(())
    }

    /// Pushes and pulls, until slices change hands. When the cluster stops meanwhile, this step is finished if all have
    /// pushed it and given up if not, which the coordinator knows once all have said what they pushed.
    fn exchange(
        &mut self,
        view: &ClusterView,
        (contribution, owned): (&Contribution, &BTreeSet<SliceId>),
    ) -> Result<Ended, WorkError> {
        let (step, limit_ms) = (self.step, self.config.timeouts.step_ms);
        self.pushes += 1;
        let at = Position { generation: view.generation, era: self.era, step, sequence: self.pushes, dealt: None };
        let (mut views, mut other_views) = (self.membership.views(), self.membership.views());
        let exchange = self.exchange.clone();
        let (pushing, reports) = (Report::Pausing { pushed: step.next() }, self.reports.queue());
        let worker = WorkerId(self.membership.member.rank);
        let mut announced = self.announced;
        let result = self.place().stay(self.era, async {
            let given_up = async {
                if views.wait_for(|view| view.phase >= Phase::Stopping).await.is_ok() && !announced {
                    reports.put(pushing).await;
                    announced = true;
                }
                let given_up = |view: &ClusterView| view.stop_at.is_some_and(|stop| stop <= step);
                if views.wait_for(given_up).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            let push = async {
                let answer = exchange.push_pull(at, contribution).await?;
                if let Err(Setback::Outdated(generation)) = answer {
                    // Fails only if the coordinator is gone, which `lost` tells, too.
                    let _ = other_views.wait_for(|view| view.generation >= generation).await;
                }
                Ok(answer.map_or_else(Ended::Setback, |exchanged| Ended::Committed(Box::new(exchanged))))
            };
            tokio::select! {
                biased;
                ended = push => ended,
                () = given_up => Ok(Ended::GivenUp),
                generation = changed(self.membership.views(), worker, owned) => {
                    Ok(Ended::Setback(Setback::Outdated(generation)))
                }
                () = tokio::time::sleep(Duration::from_millis(limit_ms.into())) => Err(WorkError::Late { step, limit_ms }),
            }
        });
        self.announced = announced;
        result
    }
}

/// Waits until a worker no longer owns just these slices; gives the generation.
async fn changed(mut views: watch::Receiver<ClusterView>, worker: WorkerId, owned: &BTreeSet<SliceId>) -> Generation {
    match views.wait_for(|view| view.owned_by(worker) != *owned).await {
        Ok(view) => view.generation,
        Err(_) => std::future::pending().await,
    }
}
