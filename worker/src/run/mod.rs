//! The life of a worker process: join, initialise if told to, train until told to stop.
//!
//! How it trains depends on the mode: [`steps`] where everybody makes the same steps, [`dealt`] where slices are dealt out.
//! The main thread computes and is the only one that touches burn; connections live on a small runtime beside it, so
//! that heartbeats go out whatever the main thread does.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use convoy_proto::{
    access::TokenRole,
    config::{Config, Mode},
    ids::{Era, Role, SliceId, Step, WorkerId},
    loss_scale::LossScale,
    messages::{ClusterView, JoinOffer, JoinPart, Phase, Report, Weights, WorkerOffer},
    process,
    shared::heap,
    transport::{Coordinator, Membership, TransportError},
    vitals::Sampler,
};
use tokio::runtime::Runtime;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info};

use crate::{
    data::{self, Dataset},
    device::{self, DeviceName},
    exchange::{Exchange, ExchangeError},
    failure::WorkError,
    learner::Replica,
    monitor::Monitor,
    parameters::{Tensors, Values},
    step::Feed,
    task::{self, TaskEntry},
};

mod dealt;
mod entry;
mod reports;
mod steps;

use entry::{Entry, Place};
use reports::Reports;

/// What a worker is told on its command line.
#[derive(Args, Clone, Debug)]
pub struct WorkerArgs {
    /// Directory of the run; its config.toml is read
    #[arg(long = "run", value_name = "DIR")]
    pub run: PathBuf,
    /// Which worker this is, from 0
    #[arg(long)]
    pub rank: u32,
    /// Address of the coordinator
    #[arg(long, value_name = "HOST:PORT")]
    pub coordinator: String,
    /// Device: cpu, cuda:N or wgpu:discrete|integrated|virtual|software:N
    #[arg(long, default_value = "cpu")]
    pub device: DeviceName,
    /// What people call the device
    #[arg(long, default_value = "")]
    pub device_name: String,
    /// Threads for computing on the CPU; all cores by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// Where the run's data are on this machine [default: as the run's config.toml says]
    #[arg(long, value_name = "SPEC")]
    pub data: Option<String>,
    /// Directory with ca.crt, tls.crt, tls.key and token [default: as the run's config.toml says]
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// End when standard input ends
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// Runs a worker to its end and says how it ended; `tasks` is the table that the run's task is looked up in.
pub fn main(args: &WorkerArgs, tasks: &[TaskEntry]) -> ExitCode {
    process::init_logs();
    if let Some(threads) = args.threads {
        // A second pool in one process is refused; then the first one's size stays.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build_global();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(WorkError::Runtime).and_then(|runtime| {
        let result = work(args, tasks, &runtime);
        runtime.shutdown_timeout(Duration::from_millis(200));
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("worker {}: {problem}", args.rank);
            ExitCode::from(problem.exit_code())
        }
    }
}

fn work(args: &WorkerArgs, tasks: &[TaskEntry], runtime: &Runtime) -> Result<(), WorkError> {
    let (lost, tracker) = (CancellationToken::new(), TaskTracker::new());
    if args.supervised {
        process::watch_parent(lost.clone());
    }
    let config = process::load_config(&args.run)?;
    process::trace(&config, Role::Worker, args.rank);
    let security = process::load_security(args.certs.as_deref().or(config.network.certs_dir()))?;
    let entry = task::find(tasks, &config.task)?;
    // What the run says holds for the coordinator's machine: here, data and caches may be elsewhere.
    let data = args.data.clone().unwrap_or_else(|| config.data.clone());
    let root = args.run.parent().map_or_else(|| config.run_dir.clone(), |root| root.display().to_string());
    let here = Config { data, run_dir: root, ..config.clone() };
    let data = data::open(&here, entry.wanted)?;
    // What was needed to open the data is not needed again; what comes now is.
    if let Err(problem) = heap::begin() {
        debug!("large blocks are not kept: {problem}");
    }
    let replica = entry.open(&config, data.info(), args.device)?;
    let offer = offer(args, &config, &*data, &*replica);
    let mut gpu = Monitor::of(args.device);
    let vitals = Sampler::start(move |vitals| vitals.gpu = gpu.look());
    let membership = runtime.block_on(async {
        let coordinator = Coordinator::connect(&args.coordinator, security.credentials(TokenRole::Worker)).await?;
        Membership::join(coordinator, (offer, vitals), &tracker, lost).await
    })?;
    info!("worker {} computes on {}, process {}", args.rank, args.device, std::process::id());
    let mut worker = Worker::start(runtime, config, data, replica, membership)?;
    loop {
        match worker.train_to_end() {
            Ok(()) => return worker.leave(),
            Err(problem) => worker.begin_anew(problem)?,
        }
    }
}

fn offer(args: &WorkerArgs, config: &Config, data: &dyn Dataset, replica: &dyn Replica) -> JoinOffer {
    let worker = WorkerOffer {
        backend: args.device.backend().to_string(),
        device: if args.device_name.is_empty() { args.device.to_string() } else { args.device_name.clone() },
        numeric_class: device::numeric_class(args.device, &args.device_name),
        data_fingerprint: data.info().fingerprint.clone(),
        manifest: replica.manifest().clone(),
    };
    process::join_offer(config, args.rank, JoinPart::Worker(Box::new(worker)))
}

struct Worker<'a> {
    runtime: &'a Runtime,
    config: Config,
    replica: Box<dyn Replica>,
    feed: Feed,
    membership: Membership,
    /// The era that the rest belongs to.
    era: Era,
    exchange: Exchange,
    reports: Reports,
    /// How many commits this worker's parameters have seen, and how many the run has.
    step: Step,
    commits: Step,
    /// Steps that this worker made.
    made: u64,
    /// What local steps start from; empty in other modes.
    parameters: Tensors,
    loss_scale: LossScale,
    /// The last evaluation that this worker took part in, and the slices of it that it scored.
    evaluated: Option<(Step, BTreeSet<SliceId>)>,
    /// Pushes that this worker began, where it numbers them itself.
    pushes: u64,
    /// Whether the coordinator knows what this worker has pushed before it stops.
    announced: bool,
}

impl<'a> Worker<'a> {
    /// Takes up with the step that is open; the first time, somebody sets the parameters first.
    fn start(
        runtime: &'a Runtime,
        config: Config,
        data: Arc<dyn Dataset>,
        replica: Box<dyn Replica>,
        membership: Membership,
    ) -> Result<Self, WorkError> {
        let Entry { era, exchange, reports, pulled } = place(runtime, &membership, &config).enter(&*replica)?;
        let feed = Feed::new(data, &config, replica.manifest());
        let mut worker = Worker {
            runtime,
            loss_scale: LossScale::new(config.loss_scale),
            config,
            replica,
            membership,
            era,
            exchange,
            reports,
            step: pulled.step,
            commits: Step(feed.clock().commits()),
            feed,
            made: 0,
            parameters: Tensors::new(),
            evaluated: None,
            pushes: 0,
            announced: false,
        };
        worker.load(pulled.tensors)?;
        Ok(worker)
    }

    fn place(&self) -> Place<'_> {
        place(self.runtime, &self.membership, &self.config)
    }

    /// If the era is over, or will be, because a server died: takes up the next one from where it begins.
    fn begin_anew(&mut self, problem: WorkError) -> Result<(), WorkError> {
        self.place().outlive(self.era, problem)?;
        let Entry { era, exchange, reports, pulled } = self.place().enter(&*self.replica)?;
        self.exchange.release();
        info!("goes on in era {era} with commit {}", pulled.step);
        (self.era, self.exchange, self.reports) = (era, exchange, reports);
        self.step = pulled.step;
        self.loss_scale = LossScale::new(self.config.loss_scale);
        (self.evaluated, self.announced) = (None, false);
        self.load(pulled.tensors)?;
        Ok(())
    }

    /// Takes over parameters; tensors that are empty stay as they are.
    fn load(&mut self, tensors: Tensors) -> Result<(), WorkError> {
        self.replica.check(&tensors).map_err(WorkError::Inexact)?;
        if matches!(self.config.mode, Mode::Local(_)) {
            self.parameters.resize(tensors.len(), Values::default());
            let kept = self.parameters.iter_mut().zip(&tensors).filter(|(_, values)| !values.is_empty());
            kept.for_each(|(kept, values)| kept.clone_from(values));
        }
        self.replica.load(tensors);
        Ok(())
    }

    fn owned(&self, view: &ClusterView) -> BTreeSet<SliceId> {
        view.owned_by(WorkerId(self.membership.member.rank))
    }

    /// Makes all steps, and stays until the cluster ends.
    fn train_to_end(&mut self) -> Result<(), WorkError> {
        if self.config.mode.is_dealt() { self.train_dealt() } else { self.train_in_steps() }?;
        self.report(Report::Finished { step: self.step });
        self.await_view(|view| view.phase == Phase::Ended).map(drop)
    }

    /// Waits for something, but not beyond the era, and not for ever.
    fn attend<T>(&self, work: impl Future<Output = Result<T, WorkError>>) -> Result<T, WorkError> {
        let (step, limit_ms) = (self.step, self.config.timeouts.step_ms);
        self.place().stay(self.era, async {
            let limit = Duration::from_millis(limit_ms.into());
            tokio::time::timeout(limit, work).await.unwrap_or(Err(WorkError::Late { step, limit_ms }))
        })
    }

    /// Where this worker is to be slow, waits; gives the seconds.
    fn dawdle(&mut self, steps: u64) -> Result<f64, WorkError> {
        let Some(slow) = self.config.slow_worker else { return Ok(0.0) };
        let worker = WorkerId(self.membership.member.rank);
        let counts = self.made..self.made + steps;
        self.made = counts.end;
        let delay: Duration = counts.map(|count| slow.delay(self.config.seed, worker, count)).sum();
        if delay.is_zero() {
            return Ok(0.0);
        }
        let start = Instant::now();
        self.place().stay(self.era, async {
            tokio::time::sleep(delay).await;
            Ok(start.elapsed().as_secs_f64())
        })
    }

    /// Scores the parameters and, where one is kept, their average: the slices that are this worker's in a view and that it
    /// has not scored yet. Nobody can commit this step before the coordinator has the scores, so both versions stay.
    fn evaluate(&mut self, view: &ClusterView) -> Result<(), WorkError> {
        let scored = match self.evaluated.take() {
            Some((step, scored)) if step == self.step => scored,
            _ => BTreeSet::new(),
        };
        let missing = &self.owned(view) - &scored;
        // Unless this is a step's beginning, the replica may hold anything.
        let is_loaded = scored.is_empty() && !self.config.mode.is_dealt();
        self.evaluated = Some((self.step, scored));
        if missing.is_empty() {
            return Ok(());
        }
        match self.score_all(&missing, is_loaded) {
            // They are kept until they are scored: others have done it, and the next push will be told where they are.
            Err(WorkError::Exchange(ExchangeError::Transport(TransportError::Refused { .. }))) => return Ok(()),
            scored => scored?,
        }
        self.evaluated.iter_mut().for_each(|(_, scored)| scored.extend(missing.iter().copied()));
        let queue = self.reports.queue();
        self.attend(async { queue.delivered().await })
    }

    fn score_all(&mut self, slices: &BTreeSet<SliceId>, is_loaded: bool) -> Result<(), WorkError> {
        if !is_loaded {
            self.take(Weights::Trained)?;
        }
        self.score(Weights::Trained, slices)?;
        if self.config.optimizer.ema.is_some() {
            self.take(Weights::Averaged)?;
            self.score(Weights::Averaged, slices)?;
            self.take(Weights::Trained)?;
        }
        Ok(())
    }

    fn is_evaluated(&self) -> bool {
        self.evaluated.as_ref().is_some_and(|(step, _)| *step == self.step)
    }

    fn score(&mut self, weights: Weights, slices: &BTreeSet<SliceId>) -> Result<(), WorkError> {
        let parts = self.feed.evaluate(&*self.replica, slices)?;
        self.report(Report::Evaluation { step: self.step, weights, parts });
        Ok(())
    }

    /// Waits for a view of the cluster. Where others die meanwhile, takes over their part of the last evaluation.
    fn await_view(&mut self, wanted: impl Fn(&ClusterView) -> bool) -> Result<ClusterView, WorkError> {
        loop {
            let worker = WorkerId(self.membership.member.rank);
            let scored = self.evaluated.as_ref().filter(|(step, _)| *step == self.step).map(|(_, scored)| scored);
            let lacks = |view: &ClusterView| scored.is_some_and(|scored| !view.owned_by(worker).is_subset(scored));
            let mut views = self.membership.views();
            let view = self.place().stay(self.era, async {
                let known = views.wait_for(|view| wanted(view) || lacks(view)).await;
                known.map(|view| view.clone()).map_err(|_| WorkError::Lost)
            })?;
            if wanted(&view) {
                return Ok(view);
            }
            self.evaluate(&view)?;
        }
    }

    /// Pulls this step's parameters, or their average.
    fn take(&mut self, weights: Weights) -> Result<(), WorkError> {
        let (era, step) = (self.era, self.step);
        let exchange = self.exchange.clone();
        let tensors = self.attend(async { Ok(exchange.pull(era, step, weights).await?) })?;
        self.load(tensors)
    }

    fn report(&self, report: Report) {
        let queue = self.reports.queue();
        self.runtime.block_on(queue.put(report));
    }

    /// Hands in the last reports, and goes.
    fn leave(self) -> Result<(), WorkError> {
        let Worker { runtime, membership, reports, .. } = self;
        runtime.block_on(async {
            reports.close().await?;
            membership.tell_trace().await;
            // The coordinator may be gone by now, which is all the same.
            let _ = membership.coordinator.leave(membership.member, "finished").await;
            Ok(())
        })
    }
}

fn place<'a>(runtime: &'a Runtime, membership: &'a Membership, config: &Config) -> Place<'a> {
    // A lease until the death of a server is noticed, and a moment for the news.
    let patience = Duration::from_millis(u64::from(config.timeouts.lease_ms) + 5_000);
    Place {
        runtime,
        membership,
        patience,
        seed: config.seed,
        is_dealt: config.mode.is_dealt(),
        transport: config.network.transport,
    }
}
