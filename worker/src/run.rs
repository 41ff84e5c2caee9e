//! The life of a worker process: join, initialise if told to, step until told to stop.
//!
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
    config::{Config, Length},
    ids::{SliceId, Step, WorkerId},
    loss_scale::LossScale,
    messages::{ClusterView, JoinOffer, JoinPart, Phase, Report, StepReport, StepTimes, Weights, WorkerOffer},
    process,
    schedule::Horizon,
    transport::{Coordinator, Membership, TransportError},
};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info};

use crate::{
    data::{self, Dataset},
    device::{self, DeviceName},
    exchange::{Exchange, Exchanged},
    failure::WorkError,
    learner::Replica,
    step::{Contribution, Feed, order_of},
    task::{self, TaskEntry},
};

/// Reports that wait to be sent: more than a coordinator can fall behind in a lease.
const REPORTS_AHEAD: usize = 4096;

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
    let entry = task::find(tasks, &config.task)?;
    let data = data::open(&config, entry.wanted)?;
    let replica = entry.open(&config, data.info(), args.device)?;
    let offer = offer(args, &config, &*data, &*replica);
    let membership = runtime.block_on(async {
        let coordinator = Coordinator::connect(&args.coordinator).await?;
        Membership::join(coordinator, offer, &tracker, lost).await
    })?;
    info!("worker {} computes on {}, process {}", args.rank, args.device, std::process::id());
    let mut worker = Worker::start(runtime, config, data, replica, membership)?;
    worker.train()?;
    worker.finish()
}

fn offer(args: &WorkerArgs, config: &Config, data: &dyn Dataset, replica: &dyn Replica) -> JoinOffer {
    let worker = WorkerOffer {
        backend: args.device.backend().to_string(),
        device: if args.device_name.is_empty() { args.device.to_string() } else { args.device_name.clone() },
        numeric_class: device::numeric_class(args.device),
        data_fingerprint: data.info().fingerprint.clone(),
        manifest: replica.manifest().clone(),
    };
    process::join_offer(config, args.rank, JoinPart::Worker(Box::new(worker)))
}

/// How long a run is.
pub fn horizon(config: &Config, train: u32) -> Horizon {
    let steps_per_epoch = order_of(config, train).steps_per_epoch();
    let steps = match config.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => epochs * steps_per_epoch,
    };
    Horizon { steps, steps_per_epoch }
}

struct Worker<'a> {
    runtime: &'a Runtime,
    config: Config,
    replica: Box<dyn Replica>,
    feed: Feed,
    membership: Membership,
    exchange: Exchange,
    reports: mpsc::Sender<Report>,
    sender: tokio::task::JoinHandle<Result<(), TransportError>>,
    step: Step,
    steps: u64,
    loss_scale: LossScale,
    evaluated: Option<Step>,
    /// Whether the coordinator knows what this worker has pushed before it stops.
    announced: bool,
}

impl<'a> Worker<'a> {
    /// Connects to the shards and takes over the parameters of step 0, setting them first if told to.
    fn start(
        runtime: &'a Runtime,
        config: Config,
        data: Arc<dyn Dataset>,
        mut replica: Box<dyn Replica>,
        membership: Membership,
    ) -> Result<Self, WorkError> {
        let steps = horizon(&config, data.info().train).steps;
        let (reports, queue) = mpsc::channel(REPORTS_AHEAD);
        let sender = runtime.spawn(send_reports(membership.clone(), queue));
        let lost = || WorkError::Lost;
        let exchange = runtime.block_on(async {
            let view = membership.reached(Phase::Initialising).await.ok_or_else(lost)?;
            let exchange = Exchange::connect(membership.member, replica.manifest(), &view).await?;
            if view.initialiser == WorkerId(membership.member.rank) && view.phase == Phase::Initialising {
                exchange.initialise(replica.initial(config.seed)).await?;
                // The queue is empty and its reader lives as long as the runtime.
                let _ = reports.send(Report::Initialised).await;
            }
            let view = membership.reached(Phase::Training).await.ok_or_else(lost)?;
            replica.load(exchange.pull(view.era, Step(0), Weights::Trained).await?);
            Ok::<_, WorkError>(exchange)
        })?;
        let (feed, loss_scale) = (Feed::new(data, &config), LossScale::new(config.loss_scale));
        Ok(Worker {
            runtime,
            config,
            replica,
            feed,
            membership,
            exchange,
            reports,
            sender,
            step: Step(0),
            steps,
            loss_scale,
            evaluated: None,
            announced: false,
        })
    }

    fn owned(&self, view: &ClusterView) -> BTreeSet<SliceId> {
        view.owned_by(WorkerId(self.membership.member.rank))
    }

    fn train(&mut self) -> Result<(), WorkError> {
        while self.step.0 < self.steps {
            let view = self.membership.view();
            if view.phase >= Phase::Stopping {
                return self.pause();
            }
            if self.make_step(&view)? && self.is_evaluation_due() {
                self.evaluate()?;
                self.await_review()?;
            }
        }
        if self.evaluated != Some(self.step) {
            self.evaluate()?;
        }
        Ok(())
    }

    fn is_evaluation_due(&self) -> bool {
        self.config.eval_every > 0 && self.step.0.is_multiple_of(self.config.eval_every)
    }

    /// Pushes nothing more and waits until it is known where everybody stops, which is here.
    fn pause(&mut self) -> Result<(), WorkError> {
        self.announce_pause(self.step);
        self.await_view(|view| view.stop_at.is_some())?;
        info!("stopped after {} steps", self.step);
        Ok(())
    }

    /// Where evaluations are reviewed, waits for the word that training goes on, or that it stops.
    fn await_review(&self) -> Result<(), WorkError> {
        if !self.config.reviews_evaluations() || self.step.0 == self.steps {
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

    fn announce_pause(&mut self, pushed: Step) {
        if !std::mem::replace(&mut self.announced, true) {
            self.report(Report::Pausing { pushed });
        }
    }

    /// Makes a step; false if the cluster stops, and somebody has not pushed this step.
    fn make_step(&mut self, view: &ClusterView) -> Result<bool, WorkError> {
        let owned = self.owned(view);
        let asked = (&owned, self.loss_scale.get());
        let contribution = self.feed.contribute(&mut *self.replica, self.step, asked)?;
        let (samples, times) = (contribution.samples, contribution.times);
        let start = Instant::now();
        let Some(exchanged) = self.exchange(view, contribution)? else { return Ok(false) };
        let exchange = start.elapsed().as_secs_f64();
        let start = Instant::now();
        self.replica.load(exchanged.tensors);
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
        Ok(true)
    }

    /// Pushes and pulls. When the cluster stops meanwhile, this step is finished if all have pushed it and given up if
    /// not, which the coordinator knows once all have said what they pushed.
    fn exchange(&mut self, view: &ClusterView, contribution: Contribution) -> Result<Option<Exchanged>, WorkError> {
        let (step, limit_ms) = (self.step, self.config.timeouts.step_ms);
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
                exchanged = exchange.push_pull((view.generation, view.era, step), contribution) => exchanged.map(Some).map_err(Into::into),
                () = given_up => Ok(None),
                () = lost.cancelled() => Err(WorkError::Lost),
                () = tokio::time::sleep(Duration::from_millis(limit_ms.into())) => Err(WorkError::Late { step, limit_ms }),
            };
            (result, announced)
        });
        self.announced |= announced;
        result
    }

    /// Scores the parameters and, where one is kept, their average. Nobody can commit this step meanwhile, so both stay.
    fn evaluate(&mut self) -> Result<(), WorkError> {
        self.score(Weights::Trained)?;
        if self.config.optimizer.ema.is_some() {
            self.take(Weights::Averaged)?;
            self.score(Weights::Averaged)?;
            self.take(Weights::Trained)?;
        }
        self.evaluated = Some(self.step);
        Ok(())
    }

    fn score(&mut self, weights: Weights) -> Result<(), WorkError> {
        let owned = self.owned(&self.membership.view());
        let parts = self.feed.evaluate(&*self.replica, &owned)?;
        self.report(Report::Evaluation { step: self.step, weights, parts });
        Ok(())
    }

    /// Pulls this step's parameters, or their average.
    fn take(&mut self, weights: Weights) -> Result<(), WorkError> {
        let (era, step) = (self.membership.view().era, self.step);
        let tensors = self.runtime.block_on(async {
            tokio::select! {
                pulled = self.exchange.pull(era, step, weights) => pulled.map_err(WorkError::from),
                () = self.membership.lost.cancelled() => Err(WorkError::Lost),
            }
        })?;
        self.replica.load(tensors);
        Ok(())
    }

    fn report(&self, report: Report) {
        // Fails only if the coordinator is gone, which `lost` tells, too.
        let _ = self.reports.blocking_send(report);
    }

    /// Hands in the last reports and stays until the cluster ends.
    fn finish(self) -> Result<(), WorkError> {
        self.report(Report::Finished { step: self.step });
        let Worker { runtime, membership, reports, sender, .. } = self;
        drop(reports);
        runtime.block_on(async {
            if let Ok(sent) = sender.await {
                sent?;
            }
            membership.reached(Phase::Ended).await.ok_or(WorkError::Lost)?;
            // The coordinator may be gone by now, which is all the same.
            let _ = membership.coordinator.leave(membership.member, "finished").await;
            Ok(())
        })
    }
}

/// Sends reports in order, as many at once as have gathered.
async fn send_reports(membership: Membership, mut queue: mpsc::Receiver<Report>) -> Result<(), TransportError> {
    let mut reports = Vec::new();
    while queue.recv_many(&mut reports, REPORTS_AHEAD).await > 0 {
        let batch = std::mem::take(&mut reports);
        if let Err(problem) = membership.coordinator.report(membership.member, batch).await {
            membership.lost.cancel();
            return Err(problem);
        }
    }
    Ok(())
}
