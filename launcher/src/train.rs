//! `launcher`: from what was asked for to a trained model.
//!
//! [`train`] prepares (configuration, data, devices, directory), [`Session`] runs the cluster and sees it to its end.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use convoy_proto::{
    ids::Step,
    manifest::Manifest,
    messages::{Action, Phase, Verdict},
    process,
};
use convoy_worker::{exchange::Exchange, parameters::Tensors, task::TaskEntry};
use serde_json::json;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use crate::{
    children::{ChildExit, Children},
    cli::{Places, TrainArgs, say},
    coordinator::{
        core::Event,
        service::{CoordinatorService, launcher},
    },
    model_file,
    outcome::Failure,
    progress::Progress,
    run_dir::{self, RunDir},
    summary::{Notes, Status, Summary},
};

mod listen;
mod prepare;

use prepare::{Prepared, prepare};

/// Steps in a row that may be skipped before the run counts as diverged.
const SKIPS_IN_A_ROW: u64 = 10;
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
    progress: Progress,
    notes: Notes,
    began: Option<Instant>,
    last_change: Instant,
    skips_in_a_row: u64,
    stopping: Option<i32>,
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
            progress: Progress::new(prepared.steps),
            notes: Notes { epoch_samples: prepared.data.info().train.into(), ..Notes::default() },
            run_dir,
            service,
            events,
            began: None,
            last_change: Instant::now(),
            skips_in_a_row: 0,
            stopping: None,
            prepared,
        };
        let result = session.train(address, signals).await;
        let ended = session.end(result).await;
        stop.cancel();
        // Connections of killed children may linger.
        let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
        ended
    }

    /// Everything up to the final parameters.
    async fn train(&mut self, address: SocketAddr, mut signals: Signals) -> Result<(), Failure> {
        let manifest = self.prepared.manifest.clone();
        self.write_json("manifest.json", &manifest)?;
        self.progress.say(&self.prepared.headline());
        for line in &self.prepared.devices.passed_over {
            self.progress.say(&format!("passed over {line}"));
        }
        self.progress.say(&format!("run {}", self.run_dir.path().display()));
        self.save_summary();
        self.start_children(address)?;
        let step = self.watch(&mut signals).await?;
        let tensors = self.pull_model(&manifest, step, &mut signals).await?;
        let path = self.run_dir.path().join("model.safetensors");
        model_file::write(&path, &manifest, &tensors).map_err(Failure::Environment)?;
        self.notes.params_sha256 = Some(model_file::params_sha256(&tensors));
        Ok(())
    }

    fn start_children(&self, address: SocketAddr) -> Result<(), Failure> {
        // Absolute, so that a person finds a child by its run wherever they are.
        let run = std::path::absolute(self.run_dir.path()).unwrap_or_else(|_| self.run_dir.path().into());
        let run = run.display().to_string();
        for spec in self.prepared.children(&run, address, |process| self.run_dir.log(process)) {
            self.children.start(spec)?;
        }
        Ok(())
    }

    /// Watches the cluster until all workers made their last step.
    async fn watch(&mut self, signals: &mut Signals) -> Result<Step, Failure> {
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                biased;
                signal = signals.next() => self.stop(signal)?,
                Some(event) = self.events.recv() => {
                    if let Some(step) = self.follow(event)? {
                        return Ok(step);
                    }
                }
                Some(exit) = self.children.next_exit() => return Err(self.diagnose(exit).await),
                _ = tick.tick() => self.check_deadlines()?,
            }
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

    fn follow(&mut self, event: Event) -> Result<Option<Step>, Failure> {
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
            Event::Evaluated(score) => {
                self.notes.eval = Some(score);
                let (loss, accuracy) = (score.loss, score.accuracy);
                self.metric(
                    &json!({ "event": "eval", "era": 0, "step": score.step, "loss": loss, "accuracy": accuracy }),
                );
                self.progress.say(&format!("step {}  held-out loss {loss:.4}  accuracy {accuracy:.4}", score.step));
                self.save_summary();
            }
            Event::Finished(step) => return Ok(Some(step)),
            Event::Diverging(problem) => return Err(Failure::Failed(problem)),
        }
        Ok(None)
    }

    fn committed(&mut self, verdict: &Verdict) -> Result<(), Failure> {
        let step = verdict.step.0 + 1;
        let seconds = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.notes.wall_seconds = seconds;
        self.notes.final_loss = Some(verdict.loss());
        self.metric(&json!({
            "event": "step", "era": 0, "step": step, "loss": verdict.loss(), "lr": verdict.learning_rate,
            "gradient_norm": verdict.gradient_norm, "clip": verdict.clip, "action": verdict.action,
            "samples": verdict.weight, "seconds": seconds,
        }));
        let samples = self.service.cluster().workers().iter().flatten().map(|worker| worker.samples).sum();
        self.progress.step(step, verdict.loss(), samples);
        match verdict.action {
            Action::Apply => self.skips_in_a_row = 0,
            Action::SkipNonFinite => {
                self.skips_in_a_row += 1;
                self.notes.skipped += 1;
                self.progress.say(&format!("step {step} skipped: the loss or a gradient is not finite"));
            }
        }
        if self.skips_in_a_row >= SKIPS_IN_A_ROW {
            let lr = verdict.learning_rate;
            let advice = format!("the learning rate is {lr}; try a smaller one, or --clip-norm");
            return Err(Failure::Diverged(format!(
                "diverged: {SKIPS_IN_A_ROW} steps up to {step} in a row were not finite; {advice}"
            )));
        }
        Ok(())
    }

    fn check_deadlines(&self) -> Result<(), Failure> {
        let cluster = self.service.cluster();
        if let Some((member, silence)) = cluster.silent(self.service.now_ms()).first() {
            let log = self.run_dir.log(&format!("{}-{}", member.role, member.rank));
            let what = format!("{member} has not been heard of for {:.1} s", *silence as f64 / 1e3);
            return Err(Failure::Lost(with_log(&what, &log)));
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

    /// Finds out what happened first when a child ends before its time.
    async fn diagnose(&mut self, first: ChildExit) -> Failure {
        let mut exits = vec![first];
        let deadline = tokio::time::Instant::now() + GATHER_EXITS;
        while let Ok(Some(exit)) = tokio::time::timeout_at(deadline, self.children.next_exit()).await {
            exits.push(exit);
        }
        // Stable: of equal suspicion, the first to go.
        exits.sort_by_key(ChildExit::suspicion);
        let cause = &exits[0];
        self.notes.faults += 1;
        let description = cause.describe();
        self.metric(&json!({ "event": "fault", "era": 0, "what": description }));
        let message = with_log(&description, &cause.log);
        match (cause.signal(), cause.status.code()) {
            (None, Some(2)) => Failure::Usage(message),
            (None, Some(3)) => Failure::Environment(message),
            (None, Some(1)) => Failure::Failed(message),
            _ => Failure::Lost(message),
        }
    }

    /// Reads the final parameters, with an eye on signals and on children that end.
    async fn pull_model(&mut self, manifest: &Manifest, step: Step, signals: &mut Signals) -> Result<Tensors, Failure> {
        let view = self.service.cluster().view();
        let limit = Duration::from_millis(self.prepared.config.timeouts.start_ms.into());
        let pull = async {
            let exchange = Exchange::connect(launcher(), manifest, &view).await?;
            exchange.pull(view.era, step).await
        };
        let exit = tokio::select! {
            biased;
            pulled = tokio::time::timeout(limit, pull) => {
                let late = |_| Failure::Failed("the servers did not send the final parameters in time".into());
                let cannot = |problem| Failure::Failed(format!("cannot read the final parameters: {problem}"));
                return pulled.map_err(late)?.map_err(cannot);
            }
            signal = signals.next() => return Err(Failure::Signal(signal)),
            Some(exit) = self.children.next_exit() => exit,
        };
        Err(self.diagnose(exit).await)
    }

    /// Ends all processes and says how it went.
    async fn end(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        self.service.advance(Phase::Ended);
        if result.is_err() || tokio::time::timeout(GOODBYE, self.children.all_ended()).await.is_err() {
            // A child that even a kill does not end, stuck in a driver, does not hold up the end.
            let _ = tokio::time::timeout(GOODBYE, self.children.kill()).await;
        }
        self.progress.end();
        let result = match (result, self.stopping) {
            (Ok(()), Some(signal)) => Err(Failure::Signal(signal)),
            (result, _) => result,
        };
        let summary = Summary::new(&self.prepared.config, &self.service.cluster(), &self.notes);
        let summary = match &result {
            Ok(()) => summary.ended(Status::Done, 0, None),
            Err(failure) => {
                let status = match failure {
                    Failure::Signal(_) => Status::Stopped,
                    Failure::Diverged(_) => Status::Diverged,
                    _ => Status::Failed,
                };
                summary.ended(status, failure.exit_code(), Some(failure.to_string()))
            }
        };
        self.metric(&json!({ "event": "end", "era": 0, "status": summary.status, "exit_code": summary.exit_code }));
        self.write_json("summary.json", &summary)?;
        if result.is_ok() {
            let accuracy = summary.eval.map(|eval| format!("accuracy {:.4}  loss {:.4}  ", eval.accuracy, eval.loss));
            say(format_args!(
                "done: {} steps  {}{:.0} samples/s  {:.1} s\nmodel: {}",
                summary.steps,
                accuracy.unwrap_or_default(),
                summary.samples_per_second,
                summary.wall_seconds,
                self.run_dir.path().join("model.safetensors").display(),
            ))?;
        }
        result
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

/// A message, followed by the last lines of a process's log.
fn with_log(what: &str, log: &std::path::Path) -> String {
    let lines = run_dir::last_lines(log, 5);
    if lines.is_empty() {
        return format!("{what}; its log {} is empty", log.display());
    }
    format!("{what}; the last lines of {}:\n  {}", log.display(), lines.join("\n  "))
}

/// Requests to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|problem| Failure::Environment(format!("cannot listen for signals: {problem}")))
        };
        Ok(Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
        }
    }
}
