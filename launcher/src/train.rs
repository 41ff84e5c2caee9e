//! `launcher`: from what was asked for to a trained model.
//!
//! [`train`] prepares (configuration, data, devices, directory), [`Session`] runs the cluster and sees it to its end.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use convoy_proto::{
    config::raw::decimal,
    ids::{NodeId, Role, Step},
    messages::{Phase, Weights},
    process,
    transport::Defence,
};
use convoy_worker::task::TaskEntry;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    args::{Places, TrainArgs, Which},
    checkpoints::{Bad, Checkpoints},
    children::{ChildSpec, Children},
    cli::say,
    coordinator::{
        core::Event,
        node_service::{NodeEvent, NodesService},
        nodes::Home,
        service::CoordinatorService,
    },
    outcome::Failure,
    progress::Progress,
    remote::Remotes,
    resume::{self, Resumed},
    run_dir::RunDir,
    scale::{self as whereabouts, Whereabouts},
    settings,
    summary::{EmaSummary, Notes, Summary},
};

mod advice;
mod beginning;
mod chaos;
pub(crate) mod ending;
mod eras;
mod events;
mod keeper;
mod listen;
pub(crate) mod losses;
mod nodes;
pub mod prepare;
pub(crate) mod pulse;
mod remotes;
pub(crate) mod restarts;
pub mod review;
mod saves;
mod scale;
pub(crate) mod signals;
mod stopping;
mod watched;

use beginning::Beginning;
use chaos::Turmoil;
use keeper::Keeper;
use prepare::{Prepared, prepare};
use remotes::Remote;
use restarts::{Place, Restarts};
use review::Review;
use saves::Saving;
use signals::Signals;
use watched::{Ready, Watched};

/// After the first child is lost: how long to see which others go, so that the first cause is named.
const GATHER_EXITS: Duration = Duration::from_millis(300);
/// How often leases and deadlines are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long servers and workers may take to end by themselves.
const GOODBYE: Duration = Duration::from_secs(5);
/// How quickly servers take a checkpoint at least: 20 MB/s.
const RESTORED_BYTES_A_MS: u64 = 20_000;
/// Events on their way from the coordinator to the display and the files.
const EVENTS_AHEAD: usize = 1024;

/// Trains a model, or prints how it would be trained.
///
/// # Errors
/// Whatever keeps the run from its end; the exit code tells which kind.
pub fn train(args: &TrainArgs, places: &Places, remotes: Remotes, tasks: &[TaskEntry]) -> Result<(), Failure> {
    process::init_logs();
    let raw = settings::gather(args, places)?;
    let Some(remotes) = resume::instead(args, &raw, remotes, tasks)? else { return Ok(()) };
    let mut prepared = prepare(raw, tasks)?;
    prepared.remotes = remotes;
    if args.dry_run {
        return say(prepared.describe());
    }
    let resumed = match args.resume.as_deref() {
        None | Some("auto" | "never") => None,
        Some(place) => Some(resume::from_checkpoint(place, &mut prepared)?),
    };
    run(prepared, resumed)
}

/// Runs a cluster to its end.
///
/// # Errors
/// Whatever keeps the run from its end.
pub fn run(prepared: Prepared, resumed: Option<Resumed>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|problem| Failure::Environment(format!("cannot start the runtime: {problem}")))?;
    let result = runtime.block_on(Session::run(prepared, resumed));
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
    /// The other machines, what happens there, and which may have room for more workers.
    nodes: NodesService,
    node_events: mpsc::Receiver<NodeEvent>,
    offers: Vec<NodeId>,
    /// What they told while something else had to be found out first.
    put_off: VecDeque<NodeEvent>,
    /// Launchers that ssh started on other machines.
    remote: Remote,
    /// Places whose node is gone, and until when they wait for another.
    away: BTreeMap<Place, Instant>,
    /// Where others reach the coordinator.
    address: String,
    restarts: Restarts,
    /// The process that was started last in the place of one that died, and when, until it joins.
    starting: BTreeMap<Place, (u32, Instant)>,
    progress: Progress,
    /// Those who look.
    watched: Watched,
    notes: Notes,
    began: Option<Instant>,
    /// Seconds of training before this launcher.
    wall_before: f64,
    last_change: Instant,
    skips_in_a_row: u64,
    stopping: Option<i32>,
    /// When a run that is told to stop ends with what it has.
    stop_by: Instant,
    /// The step that the run ends with, once all workers have made it.
    ended: Option<Step>,
    saving: Saving,
    checkpoints: Checkpoints,
    keeper: Keeper,
    turmoil: Turmoil,
    /// Whose fault training has not got over yet, and since when.
    struck: Option<(Role, Instant)>,
    /// How large the checkpoint is that servers take.
    restored_bytes: u64,
    /// How many workers a person asked for.
    scale_to: Option<u32>,
    /// Names of checkpoints that servers could not take.
    bad_checkpoints: Bad,
    review: Review,
    /// Which score comes last in an evaluation.
    reviewed: Weights,
}

impl Session {
    async fn run(mut prepared: Prepared, resumed: Option<Resumed>) -> Result<(), Failure> {
        let signals = Signals::new()?;
        let listener = listen::bind(prepared.config.network.listen).await?;
        let ready = Ready::new(&prepared.config)?;
        let Beginning { run_dir, cluster, notes, review, lines, newest, restored_bytes } =
            Beginning::of(&mut prepared, resumed)?;
        let config = &prepared.config;
        let (sender, events) = mpsc::channel(EVENTS_AHEAD);
        let (commits, guard) = (cluster.engine().commits(), prepared.security.guard());
        let service = CoordinatorService::new(cluster, config, sender, guard.clone());
        let watched = ready.begin(config, &run_dir, &service)?;
        let stop = CancellationToken::new();
        let defence = Defence { tls: prepared.security.tls.clone(), guard };
        let (nodes, node_events) = nodes::open(config, run_dir.path());
        let (port, serving) = listen::serve(listener, (service.clone(), nodes.clone()), &defence, stop.clone())?;
        let checkpoints = Checkpoints::of_run(config, run_dir.path())?;
        let keeper = Keeper::new(checkpoints.clone())
            .map_err(|problem| Failure::Environment(format!("cannot start a thread: {problem}")))?;
        let turmoil = Turmoil::new(config.chaos.clone(), run_dir.fired());
        let mut session = Session {
            children: Children::default(),
            nodes,
            node_events,
            offers: Vec::new(),
            put_off: VecDeque::new(),
            remote: Remote::default(),
            away: BTreeMap::new(),
            address: config.network.reached_at(port),
            restarts: Restarts::new(config.max_restarts, Duration::from_millis(config.timeouts.restart_ms.into())),
            progress: Progress::new(prepared.shown(run_dir.path())),
            watched,
            wall_before: notes.wall_seconds,
            notes: Notes { epoch_samples: prepared.data.info().train.into(), ..notes },
            run_dir,
            service,
            events,
            began: None,
            last_change: Instant::now(),
            skips_in_a_row: 0,
            starting: BTreeMap::new(),
            stopping: None,
            stop_by: Instant::now(),
            ended: None,
            saving: Saving::new(commits, newest),
            checkpoints,
            keeper,
            turmoil,
            struck: None,
            restored_bytes,
            scale_to: None,
            bad_checkpoints: Bad::new(),
            review,
            reviewed: if config.optimizer.ema.is_some() { Weights::Averaged } else { Weights::Trained },
            prepared,
        };
        let result = session.train(signals, lines).await;
        let ended = session.end(result).await;
        stop.cancel();
        // Connections of killed children may linger.
        let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
        ended
    }

    /// Everything up to the final parameters.
    async fn train(&mut self, mut signals: Signals, lines: Vec<String>) -> Result<(), Failure> {
        self.write_json("manifest.json", &self.prepared.manifest)?;
        self.write_json("data.json", &self.prepared.report)?;
        self.progress.say(&self.prepared.headline());
        for line in lines {
            self.progress.say(&line);
            self.metric(json!({ "event": "resume", "what": line }));
        }
        for line in &self.prepared.devices.passed_over {
            self.progress.say(&format!("passed over {line}"));
        }
        for line in self.prepared.report.to_string().lines() {
            self.progress.say(line);
        }
        self.progress.say(&format!("run {}", self.run_dir.path().display()));
        self.watched.dashboard().iter().for_each(|told| self.progress.say(told));
        let here = Whereabouts { address: self.address.clone(), pid: std::process::id(), host: process::host_name() };
        self.write_json(whereabouts::FILE, &here)?;
        self.save_summary();
        let here = |spec: &ChildSpec| self.nodes.order((spec.role, spec.rank)) == Home::Here;
        let specs: Vec<_> = self.children_of_run().into_iter().filter(here).collect();
        specs.into_iter().try_for_each(|spec| self.children.start(spec).map(drop))?;
        match self.prepared.remotes.count() {
            0 => self.tell_how_to_join(),
            _ => self.start_remotes()?,
        }
        loop {
            let end = self.watch(&mut signals).await?;
            if self.save_results(end, &mut signals).await? {
                return Ok(());
            }
        }
    }

    /// Saves the final parameters, and a checkpoint if one is wanted; false if a new era begins instead.
    async fn save_results(&mut self, end: Step, signals: &mut Signals) -> Result<bool, Failure> {
        self.check_learnt(end)?;
        if !self.save_end(end, signals).await? {
            return Ok(false);
        }
        let saved = self.save_parameters((end, Weights::Trained), Which::Final, signals).await?;
        let Some(hash) = saved else { return Ok(false) };
        if let Some(ema) = self.prepared.config.optimizer.ema {
            let saved = self.save_parameters((end, Weights::Averaged), Which::Ema, signals).await?;
            let Some(params_sha256) = saved else { return Ok(false) };
            let (decay, eval) = (decimal(ema), self.notes.ema_eval);
            self.notes.ema = Some(EmaSummary { decay, eval, params_sha256 });
        }
        self.notes.params_sha256 = Some(hash);
        Ok(true)
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
        self.prepared.children(&run.display().to_string(), &self.address, |process| self.run_dir.log(process))
    }

    /// Watches the cluster until all workers made their last step.
    async fn watch(&mut self, signals: &mut Signals) -> Result<Step, Failure> {
        let mut tick = tokio::time::interval(TICK);
        loop {
            if let Some(end) = self.ended {
                return Ok(end);
            }
            while let Some(event) = self.put_off.pop_front() {
                self.heed_node(event, signals).await?;
            }
            self.scale_if_asked(signals).await?;
            self.take_offers(signals).await?;
            tokio::select! {
                biased;
                request = signals.next() => self.request(request)?,
                Some(event) = self.events.recv() => self.heed(event, signals).await?,
                Some(event) = self.node_events.recv() => self.heed_node(event, signals).await?,
                Some(ended) = self.remote.sessions.next_exit() => self.session_ended(ended)?,
                done = self.keeper.next() => self.kept(done),
                Some(exit) = self.children.next_exit() => self.child_ended(exit, signals).await?,
                () = until(self.restarts.next()) => self.restart()?,
                () = until(self.remote.again.next()) => self.begin_sessions(),
                () = until(self.turmoil.next()) => self.chaos_due(),
                _ = tick.tick() => {
                    self.check_nodes(signals).await?;
                    self.check_leases(signals).await?;
                    self.check_starting(signals).await?;
                    self.check_progress()?;
                    self.check_saves();
                    self.pulse();
                }
            }
        }
    }

    fn check_progress(&self) -> Result<(), Failure> {
        let cluster = self.service.cluster();
        if let Some(signal) = self.stopping
            && (cluster.alive() == 0 || Instant::now() > self.stop_by)
        {
            // Nobody is left to finish a step, or somebody takes too long.
            return Err(self.stopped(signal));
        }
        let timeouts = &self.prepared.config.timeouts;
        let (what, limit_ms) = match cluster.phase() {
            // A large checkpoint, from far away, takes its time.
            Phase::Gathering | Phase::Initialising => {
                ("start", u64::from(timeouts.start_ms) + self.restored_bytes / RESTORED_BYTES_A_MS)
            }
            _ => ("next step", timeouts.step_ms.into()),
        };
        if self.last_change.elapsed() > Duration::from_millis(limit_ms) {
            let vacant = self.vacant();
            let join = if vacant == (0, 0) { String::new() } else { format!("; {}", self.how_to_join(vacant)) };
            let problem = format!("no {what} within {limit_ms} ms; waiting for {}{join}", cluster.awaited());
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
        self.run_dir.write_json(name, value).map_err(cannot)
    }

    /// Adds an event, with its era and the time, to metrics.jsonl.
    fn metric(&mut self, mut event: serde_json::Value) {
        event["time"] = pulse::time().into();
        event["era"] = self.service.cluster().era().0.into();
        if let Err(problem) = self.run_dir.metric(&event) {
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
