//! What is made of the cluster's events: lines for people, lines in metrics.jsonl, and the end of a run that goes wrong.

use std::time::Instant;

use convoy_proto::{
    config::{Mode, Quorum},
    ids::{Role, SliceId, Step},
    messages::{Action, Phase, Verdict, Weights},
};
use serde_json::json;

use super::{Session, losses, signals::Signals};
use crate::{
    args::Which,
    coordinator::{
        core::{Event, Lag},
        evaluation::Score,
        stragglers::Straggler,
    },
    outcome::Failure,
    summary::BestSummary,
};

impl Session {
    /// Follows an event, and reviews an evaluation that it completes.
    pub(super) async fn heed(&mut self, event: Event, signals: &mut Signals) -> Result<(), Failure> {
        let scored = match event {
            Event::Evaluated(weights, at, score) if weights == self.reviewed => Some((at, score)),
            _ => None,
        };
        self.follow(event)?;
        match scored {
            // Saving the best parameters minds signals and children, too.
            Some((at, score)) => Box::pin(self.review(at, score, signals)).await,
            None => Ok(()),
        }
    }

    /// Follows an event.
    pub(super) fn follow(&mut self, event: Event) -> Result<(), Failure> {
        self.last_change = Instant::now();
        match event {
            Event::Joined(member) => {
                self.starting.remove(&(member.role, member.rank));
                self.notes.has_moved |= self.began.is_some() && member.role == Role::Worker;
                self.metric(json!({ "event": "joined", "member": member.to_string() }));
            }
            Event::Phase(phase) => {
                self.metric(json!({ "event": "phase", "phase": format!("{phase:?}").to_lowercase() }));
                if phase == Phase::Training {
                    self.begins();
                }
            }
            Event::Step(verdict) => self.committed(&verdict)?,
            Event::Evaluated(weights, _, score) => self.evaluated(weights, score),
            Event::Lost(member) => {
                self.notes.has_moved |= member.role == Role::Worker;
                self.metric(json!({ "event": "lost", "member": member.to_string() }));
            }
            Event::TooFew(alive) => {
                let least = self.prepared.config.min_workers;
                return Err(Failure::Lost(format!("{} left, at least {least} must be there", losses::workers(alive))));
            }
            Event::Straggler(straggler, lag) => self.straggles(straggler, lag),
            Event::Finished(end) => {
                // Of the last ones, too, if who would have reported them is dead.
                self.count_samples(None, end);
                self.note_cut(end);
                self.ended = Some(end);
            }
            Event::Diverging(problem) => return Err(Failure::Failed(problem)),
            Event::Save(event) => self.follow_save(event),
            // Not here: it may take a while, and what happened before comes first.
            Event::Scale(workers) => self.scale_to = Some(workers),
            Event::NotRestored(member, problem) => self.not_restored(member, &problem)?,
            Event::Copied(member, commit) => {
                let step = self.service.cluster().engine().clock().steps_after(commit);
                self.progress
                    .say(&format!("{member} has its shard from another copy, and takes part from step {step} on"));
                self.metric(json!({ "event": "copied", "member": member.to_string(), "step": step }));
            }
        }
        Ok(())
    }

    /// Training begins, or goes on in a new era.
    fn begins(&mut self) {
        if self.began.is_none() {
            self.began = Some(Instant::now());
            self.turmoil.begin(Instant::now());
            self.progress.begin(self.notes.samples);
            self.watched.begins();
        }
        self.save_summary();
    }

    /// A step is made: training has got over a fault.
    fn recovered(&mut self) {
        let Some((role, since)) = self.struck.take() else { return };
        let seconds = since.elapsed().as_secs_f64();
        self.notes.recoveries.entry(role.to_string()).or_default().add(seconds);
        self.metric(json!({ "event": "recovered", "of": role.to_string(), "seconds": seconds }));
    }

    /// Names a worker that has become slow.
    fn straggles(&mut self, straggler: Straggler, lag: Lag) {
        let Straggler { worker, seconds, usual } = straggler;
        let (lag, lag_text) = match lag {
            Lag::None => (None, String::new()),
            Lag::Pushes(lag) => (Some(lag), format!(", {lag} pushes behind the quickest")),
            Lag::Missed(lag) => (Some(lag), format!(", {lag} steps were made without it")),
        };
        self.progress.say(&format!(
            "worker {worker} is slow: {:.0} ms a step, the others {:.0} ms{lag_text}",
            seconds * 1e3,
            usual * 1e3
        ));
        self.metric(json!({
            "event": "straggler", "worker": worker.0, "seconds": seconds, "usual": usual, "lag": lag,
        }));
    }

    fn evaluated(&mut self, weights: Weights, score: Score) {
        let (place, of) = match weights {
            Weights::Trained => (&mut self.notes.eval, "weights"),
            Weights::Averaged => (&mut self.notes.ema_eval, "ema"),
        };
        *place = Some(score);
        let mut event = json!({ "event": "eval", "of": of });
        if let (Some(event), serde_json::Value::Object(score)) = (event.as_object_mut(), json!(score)) {
            event.extend(score);
        }
        self.metric(event.clone());
        let of = if weights == Weights::Averaged { "average of weights, " } else { "" };
        self.progress.tell(event, &format!("step {}  {of}held-out {score}", score.step));
        self.save_summary();
    }

    /// Keeps the parameters if they are the best and are to be kept, and lets workers go on, or stop.
    async fn review(&mut self, step: Step, last: Score, signals: &mut Signals) -> Result<(), Failure> {
        if !self.prepared.config.reviews_evaluations() {
            return Ok(());
        }
        // The weights decide, not their average, whose score comes after theirs.
        let score = self.notes.eval.unwrap_or(last);
        let judgement = self.review.judge(score);
        if judgement.is_best && self.prepared.config.keep_best {
            let saved = self.save_parameters((step, Weights::Trained), Which::Best, signals).await?;
            // In a new era, the evaluation is made again, or was made before.
            let Some(params_sha256) = saved else { return Ok(()) };
            self.notes.best = Some(BestSummary { score, params_sha256 });
            self.review.keep(score);
            self.save_summary();
        }
        if judgement.is_enough && score.step < self.prepared.horizon.steps {
            let best = self.review.best().map(|best| format!(", which was {:.4} at step {}", best.loss, best.step));
            self.progress.say(&format!("stopping: no lower held-out loss{}", best.unwrap_or_default()));
            self.metric(json!({ "event": "patience", "step": score.step }));
            self.notes.stopped_early = true;
            self.stop_training()?;
        } else {
            self.service.review(step);
        }
        // Saving may take long; the next step's time begins now.
        self.last_change = Instant::now();
        Ok(())
    }

    fn committed(&mut self, verdict: &Verdict) -> Result<(), Failure> {
        let (step, commits) = self.service.cluster().engine().made(verdict.step);
        let seconds = self.wall_before + self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.notes.wall_seconds = seconds;
        self.notes.committed += 1;
        let before = self.notes.samples;
        self.count_samples(Some(verdict), Step(commits));
        let samples = self.notes.samples - before;
        self.notes.final_loss = Some(verdict.loss());
        self.metric(json!({
            "event": "step", "step": step, "loss": verdict.loss(), "lr": verdict.learning_rate,
            "gradient_norm": verdict.gradient_norm, "clip": verdict.clip, "action": verdict.action,
            "samples": samples, "weight": verdict.weight, "seconds": seconds, "loss_scale": verdict.loss_scale,
            "commits": commits, "staleness": verdict.staleness,
        }));
        self.progress.step(step, verdict.loss(), self.notes.samples);
        match verdict.action {
            Action::Apply => self.skips_in_a_row = 0,
            Action::SkipNonFinite => {
                // While the loss scale can still fall, a skipped step is how it finds its place.
                self.skips_in_a_row += u64::from(verdict.loss_scale == 1.0);
                self.notes.skipped += 1;
                self.progress.say(&match verdict.loss_scale {
                    1.0 => format!("step {step} skipped: the loss or a gradient is not finite"),
                    scale => format!("step {step} skipped: out of range, loss scale lowered from {scale}"),
                });
            }
        }
        self.watched.stepped(step);
        self.restarts.progressed();
        self.recovered();
        self.note_cut(Step(commits));
        self.chaos_at_step(step);
        let most = self.prepared.config.max_skipped;
        if self.skips_in_a_row >= most {
            let lr = verdict.learning_rate;
            let advice = format!("the learning rate is {lr}; try a smaller one, or --clip-norm");
            return Err(Failure::Diverged(format!(
                "diverged: {most} steps up to {step} in a row were not finite; {advice}"
            )));
        }
        Ok(())
    }

    /// Counts the samples of the commits up to one, also of those that nobody could report.
    fn count_samples(&mut self, verdict: Option<&Verdict>, commits: Step) {
        let (order, clock) = (self.prepared.order(), self.service.cluster().engine().clock());
        let all = || (0..self.prepared.config.slices).map(SliceId);
        self.notes.samples += match (self.prepared.config.mode, verdict) {
            // Some of its slices may be left out, and each commit is known.
            (Mode::Sync(Quorum::Slices(_)), Some(verdict)) => {
                order.samples(verdict.step, verdict.slices.iter().copied())
            }
            (Mode::Sync(Quorum::Slices(_)), None) => 0,
            _ => {
                let steps = clock.steps_after(self.saving.seen)..clock.steps_after(commits);
                steps.map(|step| order.samples(Step(step), all())).sum()
            }
        };
    }
}
