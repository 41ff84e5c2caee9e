//! `launcher`: from what was asked for to a trained model.
//!
//! [`train`] prepares (configuration, data, devices, directory), [`Session`] runs the cluster and sees it to its end.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use convoy_proto::{
    config::raw::decimal,
    ids::Step,
    messages::{Action, Phase, Verdict, Weights},
    process,
};
use convoy_worker::task::TaskEntry;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    args::{Places, TrainArgs, Which},
    children::{ChildSpec, Children},
    cli::say,
    coordinator::{
        core::{Event, Lag},
        evaluation::Score,
        service::CoordinatorService,
        stragglers::Straggler,
    },
    outcome::Failure,
    progress::Progress,
    run_dir::RunDir,
    summary::{BestSummary, EmaSummary, Notes, Summary},
};

mod ending;
mod listen;
mod losses;
mod prepare;
mod restarts;
mod review;
mod signals;

use prepare::{Prepared, prepare};
use restarts::Restarts;
use review::Review;
use signals::Signals;

/// After the first child is lost: how long to see which others go, so that the first cause is named.
const GATHER_EXITS: Duration = Duration::from_millis(300);
/// How often leases and deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long servers and workers may take to end by themselves.
const GOODBYE: Duration = Duration::from_secs(5);
/// Events on their way from the coordinator to the display and the files.
const EVENTS_AHEAD: usize = 1024;

/// Trains a model, or prints how it would be trained.
///
/// # Errors
/// Whatever keeps the run from its end; the exit code tells which kind.
pub fn train(args: &TrainArgs, places: &Places, tasks: &[TaskEntry]) -> Result<(), Failure> {
    process::init_logs();
    let prepared = prepare(args, places, tasks)?;
    if args.dry_run {
        return say(prepared.describe());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|problem| Failure::Environment(format!("cannot start the runtime: {problem}")))?;
    let result = runtime.block_on(Session::run(prepared));
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// A run in progress.
struct Session {
    prepared: Prepared,
    run_dir: RunDir,
    service: CoordinatorService,
    events: mpsc::Receiver<Event>,
    children: Children,
    /// Where the coordinator listens.
    address: SocketAddr,
    restarts: Restarts,
    /// By rank, the process that was started last in the place of one that died.
    starting: BTreeMap<u32, u32>,
    progress: Progress,
    notes: Notes,
    began: Option<Instant>,
    last_change: Instant,
    skips_in_a_row: u64,
    stopping: Option<i32>,
    /// The step that the run ends with, once all workers have made it.
    ended: Option<Step>,
    review: Review,
    /// Which score comes last in an evaluation.
    reviewed: Weights,
}

impl Session {
    async fn run(mut prepared: Prepared) -> Result<(), Failure> {
        let signals = Signals::new()?;
        let listener = listen::bind(prepared.config.listen).await?;
        let run_dir = prepared.create_run_dir()?;
        let config = &prepared.config;
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let service = CoordinatorService::new(config.clone(), prepared.reference(), sender);
        let stop = CancellationToken::new();
        let (address, serving) = listen::serve(listener, service.clone(), stop.clone())?;
        let mut session = Session {
            children: Children::new((config.workers + config.servers) as usize),
            address,
            restarts: Restarts::new(config.max_restarts, Duration::from_millis(config.timeouts.restart_ms.into())),
            progress: Progress::new(prepared.horizon.steps),
            notes: Notes { epoch_samples: prepared.data.info().train.into(), ..Notes::default() },
            run_dir,
            service,
            events,
            began: None,
            last_change: Instant::now(),
            skips_in_a_row: 0,
            starting: BTreeMap::new(),
            stopping: None,
            ended: None,
            review: Review::new(config.patience),
            reviewed: if config.optimizer.ema.is_some() { Weights::Averaged } else { Weights::Trained },
            prepared,
        };
        let result = session.train(signals).await;
        let ended = session.end(result).await;
        stop.cancel();
        // Connections of killed children may linger.
        let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
        ended
    }

    /// Everything up to the final parameters.
    async fn train(&mut self, mut signals: Signals) -> Result<(), Failure> {
        self.write_json("manifest.json", &self.prepared.manifest)?;
        self.write_json("data.json", &self.prepared.report)?;
        self.progress.say(&self.prepared.headline());
        for line in &self.prepared.devices.passed_over {
            self.progress.say(&format!("passed over {line}"));
        }
        for line in self.prepared.report.to_string().lines() {
            self.progress.say(line);
        }
        self.progress.say(&format!("run {}", self.run_dir.path().display()));
        self.save_summary();
        self.children_of_run().into_iter().try_for_each(|spec| self.children.start(spec).map(drop))?;
        let step = self.watch(&mut signals).await?;
        self.check_learnt(step)?;
        let hash = self.save_parameters((step, Weights::Trained), Which::Final, &mut signals).await?;
        self.notes.params_sha256 = Some(hash);
        if let Some(ema) = self.prepared.config.optimizer.ema {
            let hash = self.save_parameters((step, Weights::Averaged), Which::Ema, &mut signals).await?;
            let (decay, eval) = (decimal(ema), self.notes.ema_eval);
            self.notes.ema = Some(EmaSummary { decay, eval, params_sha256: hash });
        }
        Ok(())
    }

    /// A run whose last loss is no number, or that never changed a parameter, has not trained.
    fn check_learnt(&self, step: Step) -> Result<(), Failure> {
        if self.notes.final_loss.is_some_and(|loss| !loss.is_finite()) {
            return Err(Failure::Diverged(format!(
                "diverged: the loss of step {step} is not finite; try a smaller --lr"
            )));
        }
        if step.0 > 0 && self.notes.skipped > 0 && self.notes.skipped >= self.notes.committed {
            return Err(Failure::Diverged(format!("diverged: all {step} steps were skipped, so nothing was learnt")));
        }
        Ok(())
    }

    /// The processes of the run.
    fn children_of_run(&self) -> Vec<ChildSpec> {
        // Absolute, so that a person finds a child by its run wherever they are.
        let run = std::path::absolute(self.run_dir.path()).unwrap_or_else(|_| self.run_dir.path().into());
        self.prepared.children(&run.display().to_string(), self.address, |process| self.run_dir.log(process))
    }

    /// Watches the cluster until all workers made their last step.
    async fn watch(&mut self, signals: &mut Signals) -> Result<Step, Failure> {
        let mut tick = tokio::time::interval(TICK);
        loop {
            if let Some(end) = self.ended {
                return Ok(end);
            }
            tokio::select! {
                biased;
                signal = signals.next() => self.stop(signal)?,
                Some(event) = self.events.recv() => self.heed(event, signals).await?,
                Some(exit) = self.children.next_exit() => self.child_ended(exit, signals).await?,
                () = until(self.restarts.next()) => self.restart()?,
                _ = tick.tick() => {
                    self.check_leases(signals).await?;
                    self.check_progress()?;
                }
            }
        }
    }

    /// Follows an event, and reviews an evaluation that it completes.
    async fn heed(&mut self, event: Event, signals: &mut Signals) -> Result<(), Failure> {
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

    /// The first signal finishes the step in progress, the second ends at once.
    fn stop(&mut self, signal: i32) -> Result<(), Failure> {
        self.metric(&json!({ "event": "signal", "era": 0, "signal": signal }));
        let training = self.service.cluster().phase() >= Phase::Training;
        if self.stopping.replace(signal).is_some() || !training {
            return Err(Failure::Signal(signal));
        }
        self.progress.say("stopping after the step in progress; once more stops at once");
        self.service.advance(Phase::Stopping);
        Ok(())
    }

    fn follow(&mut self, event: Event) -> Result<(), Failure> {
        self.last_change = Instant::now();
        match event {
            Event::Joined(member) => self.metric(&json!({ "event": "joined", "era": 0, "member": member.to_string() })),
            Event::Phase(phase) => {
                self.metric(&json!({ "event": "phase", "era": 0, "phase": format!("{phase:?}").to_lowercase() }));
                if phase == Phase::Training {
                    self.began = Some(Instant::now());
                    self.progress.begin();
                    self.save_summary();
                }
            }
            Event::Step(verdict) => self.committed(&verdict)?,
            Event::Evaluated(weights, _, score) => self.evaluated(weights, score),
            Event::Lost(member) => self.metric(&json!({ "event": "lost", "era": 0, "member": member.to_string() })),
            Event::TooFew(alive) => {
                let least = self.prepared.config.min_workers;
                return Err(Failure::Lost(format!("{} left, at least {least} must be there", losses::workers(alive))));
            }
            Event::Straggler(straggler, lag) => self.straggles(straggler, lag),
            Event::Finished(step) => self.ended = Some(step),
            Event::Diverging(problem) => return Err(Failure::Failed(problem)),
        }
        Ok(())
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
        self.metric(&json!({
            "event": "straggler", "era": 0, "worker": worker.0, "seconds": seconds, "usual": usual, "lag": lag,
        }));
    }

    fn evaluated(&mut self, weights: Weights, score: Score) {
        let (place, of) = match weights {
            Weights::Trained => (&mut self.notes.eval, "weights"),
            Weights::Averaged => (&mut self.notes.ema_eval, "ema"),
        };
        *place = Some(score);
        let mut event = json!({ "event": "eval", "era": 0, "of": of });
        if let (Some(event), serde_json::Value::Object(score)) = (event.as_object_mut(), json!(score)) {
            event.extend(score);
        }
        self.metric(&event);
        let of = if weights == Weights::Averaged { "average of weights, " } else { "" };
        self.progress.say(&format!("step {}  {of}held-out {score}", score.step));
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
            let hash = self.save_parameters((step, Weights::Trained), Which::Best, signals).await?;
            self.notes.best = Some(BestSummary { score, params_sha256: hash });
            self.save_summary();
        }
        if judgement.is_enough && score.step < self.prepared.horizon.steps {
            let best = self.review.best().map(|best| format!(", which was {:.4} at step {}", best.loss, best.step));
            self.progress.say(&format!("stopping: no lower held-out loss{}", best.unwrap_or_default()));
            self.metric(&json!({ "event": "patience", "era": 0, "step": score.step }));
            self.notes.stopped_early = true;
            self.service.advance(Phase::Stopping);
        } else {
            self.service.review(step);
        }
        // Saving may take long; the next step's time begins now.
        self.last_change = Instant::now();
        Ok(())
    }

    fn committed(&mut self, verdict: &Verdict) -> Result<(), Failure> {
        let (step, commits) = self.service.cluster().engine().made(verdict.step);
        let seconds = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.notes.wall_seconds = seconds;
        self.notes.committed += 1;
        self.notes.final_loss = Some(verdict.loss());
        self.metric(&json!({
            "event": "step", "era": 0, "step": step, "loss": verdict.loss(), "lr": verdict.learning_rate,
            "gradient_norm": verdict.gradient_norm, "clip": verdict.clip, "action": verdict.action,
            "samples": verdict.weight, "seconds": seconds, "loss_scale": verdict.loss_scale,
            "commits": commits, "staleness": verdict.staleness,
        }));
        let samples = self.service.cluster().workers().iter().flatten().map(|worker| worker.samples).sum();
        self.progress.step(step, verdict.loss(), samples);
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

    fn check_progress(&self) -> Result<(), Failure> {
        let cluster = self.service.cluster();
        if let Some(signal) = self.stopping
            && cluster.alive() == 0
        {
            // Nobody is left to finish a step.
            return Err(Failure::Signal(signal));
        }
        let timeouts = &self.prepared.config.timeouts;
        let (what, limit_ms) = match cluster.phase() {
            Phase::Gathering | Phase::Initialising => ("start", timeouts.start_ms),
            _ => ("next step", timeouts.step_ms),
        };
        if self.last_change.elapsed() > Duration::from_millis(limit_ms.into()) {
            let problem = format!("no {what} within {limit_ms} ms; waiting for {}", cluster.awaited());
            return Err(Failure::Failed(problem));
        }
        Ok(())
    }

    fn save_summary(&self) {
        let summary = Summary::new(&self.prepared.config, &self.service.cluster(), &self.notes);
        if let Err(problem) = self.run_dir.replace_json("summary.json", &summary) {
            self.progress.say(&format!("cannot write summary.json, training goes on: {problem}"));
        }
    }

    fn write_json(&self, name: &str, value: &impl serde::Serialize) -> Result<(), Failure> {
        let cannot = |problem| {
            Failure::Environment(format!("cannot write {}: {problem}", self.run_dir.path().join(name).display()))
        };
        self.run_dir.replace_json(name, value).map_err(cannot)
    }

    fn metric(&mut self, event: &serde_json::Value) {
        if let Err(problem) = self.run_dir.metric(event) {
            self.progress.say(&format!("cannot write metrics.jsonl, training goes on: {problem}"));
        }
    }
}

/// Waits for a moment; for ever, if there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
