//! `launcher join`: this machine's part of a run that another machine's launcher coordinates.
//!
//! [`agent`] starts the processes that the coordinator orders and tells what becomes of them; [`link`] keeps the connection.
//! Nothing is decided here: who is started again, and when a run is over, is the coordinator's to say.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use convoy_proto::{
    BUILD, PROTOCOL,
    access::TokenRole,
    config::Config,
    node::{NodeAdmission, NodeOffer, RunEnd},
    process,
    transport::{Credentials, NodeClient, TransportError},
};
use convoy_worker::device::BackendReport;
use tokio_util::sync::CancellationToken;

use crate::{
    args::{JoinArgs, Places},
    outcome::Failure,
    plan::{self, WorkerPlan},
    probe, settings,
    train::{
        losses::workers,
        signals::{Request, Signals},
    },
};

mod agent;
mod link;

use agent::Agent;

/// How long to wait before the next attempt to reach the coordinator.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// How a node's part of a run ended.
enum End {
    /// The run is over.
    Run(RunEnd),
    /// The coordinator does not answer any more, or does not know the node.
    Lost(String),
    /// A person stopped the node.
    Signal(i32),
}

/// Runs this machine's part of a run, to the run's end.
///
/// # Errors
/// No coordinator, a refusal, or how the run ended.
pub fn join(args: &JoinArgs, places: &Places) -> Result<(), Failure> {
    process::init_logs();
    let security = process::load_security(args.certs.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|problem| Failure::Environment(format!("cannot start the runtime: {problem}")))?;
    let root = PathBuf::from(places.run_dir.as_deref().unwrap_or("runs"));
    // Before it is a node: drivers may take their time.
    let reports = if args.backend.as_deref() == Some("cpu") { Vec::new() } else { probe::probe() };
    let joiner = Joiner { args, root, credentials: security.credentials(TokenRole::Worker), reports };
    let result = runtime.block_on(joiner.run());
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// What a machine brings along, whatever run it joins.
struct Joiner<'a> {
    args: &'a JoinArgs,
    root: PathBuf,
    credentials: Credentials,
    /// What devices there are.
    reports: Vec<BackendReport>,
}

fn say(line: &str) {
    eprintln!("{line}");
}

impl Joiner<'_> {
    async fn run(&self) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        // It may be lost and come back, but to the same run.
        let mut id = self.args.id.clone();
        loop {
            let (client, admission) = tokio::select! {
                found = self.find(id.as_ref()) => found?,
                signal = stopped(&mut signals) => return Err(Failure::Signal(signal)),
            };
            let (run, node) = (admission.run_id.clone(), admission.node);
            id = Some(run.clone());
            say(&format!("joined the run {run} at {}, with {}", self.args.coordinator, workers(self.args.workers)));
            let mut agent = match self.agent(client.clone(), admission) {
                Ok(agent) => agent,
                Err(failure) => {
                    let _ = tokio::time::timeout(GOODBYE, client.leave(node, &failure.to_string())).await;
                    return Err(failure);
                }
            };
            let end = tokio::select! {
                end = agent.serve() => end?,
                signal = stopped(&mut signals) => {
                    agent.leave("a person stopped it").await;
                    End::Signal(signal)
                }
            };
            agent.stop(matches!(&end, End::Run(RunEnd { exit_code: 0, .. }))).await;
            if let End::Run(_) = &end {
                agent.leave("the run is over").await;
            }
            match end {
                End::Run(RunEnd { exit_code: 0, .. }) => {
                    say(&format!("the run {run} is done"));
                    return Ok(());
                }
                End::Run(RunEnd { exit_code, message }) => {
                    return Err(Failure::Elsewhere {
                        exit_code,
                        message: format!("the run {run} has ended: {message}"),
                    });
                }
                End::Signal(signal) => return Err(Failure::Signal(signal)),
                End::Lost(why) => say(&format!("{why}; tries to join again")),
            }
        }
    }

    /// Joins a run at the coordinator's address; waits for one to be there.
    async fn find(&self, id: Option<&String>) -> Result<(NodeClient, NodeAdmission), Failure> {
        let patience = Duration::from_secs(self.args.wait);
        let (address, deadline) = (&self.args.coordinator, Instant::now() + patience);
        let mut said = String::new();
        loop {
            let problem = match self.ask(id).await {
                Ok(joined) => return Ok(joined),
                // It would be the same again.
                Err(TransportError::Refused { peer, message }) => {
                    return Err(Failure::Usage(format!("{peer} refuses: {message}")));
                }
                Err(problem @ (TransportError::Distrusted { .. } | TransportError::Malformed { .. })) => {
                    return Err(Failure::Usage(problem.to_string()));
                }
                Err(problem) => problem.to_string(),
            };
            if Instant::now() > deadline {
                let seconds = patience.as_secs();
                let advice = "is `launcher … --listen` started there, and the address right?";
                return Err(Failure::Environment(format!(
                    "no run at {address} within {seconds} s: {problem}; {advice}"
                )));
            }
            if problem != said {
                say(&format!("waiting for a run at {address}: {problem}"));
                said = problem;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn ask(&self, id: Option<&String>) -> Result<(NodeClient, NodeAdmission), TransportError> {
        let client = NodeClient::connect(&self.args.coordinator, &self.credentials).await?;
        let offer = NodeOffer {
            protocol: PROTOCOL,
            build: BUILD.into(),
            run_id: id.cloned(),
            host: process::host_name(),
            pid: std::process::id(),
            workers: self.args.workers,
        };
        let admission = client.join(offer).await?;
        Ok((client, admission))
    }

    /// What starts processes of a run here.
    fn agent(&self, client: NodeClient, admission: NodeAdmission) -> Result<Agent, Failure> {
        let NodeAdmission { node, run_id, config: text, heartbeat_ms, lease_ms } = admission;
        let config = Config::from_toml("the run's configuration", &text)?;
        let dir = self.root.join(".nodes").join(format!("{run_id}-{}-{node}", process::host_name()));
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        prepare(&dir, &text).map_err(|problem| {
            Failure::Environment(format!("cannot write {}: {problem}; choose another --run-dir", dir.display()))
        })?;
        let mut arguments = vec!["--coordinator".to_string(), self.args.coordinator.clone(), "--supervised".into()];
        let data = self.args.data.iter().flat_map(|data| ["--data".into(), convoy_worker::data::absolute(data)]);
        arguments.extend(data);
        // None but its own count here, whatever the coordinator's are called.
        let certs = self.args.certs.iter().flat_map(|certs| ["--certs".into(), certs.display().to_string()]);
        arguments.extend(certs);
        let plans = self.plans(&config)?;
        let link = link::Link::start(client, node, (heartbeat_ms, lease_ms), CancellationToken::new());
        Ok(Agent::new(link, dir, plans, arguments))
    }

    /// Where its workers compute.
    fn plans(&self, config: &Config) -> Result<Vec<WorkerPlan>, Failure> {
        let cores = std::thread::available_parallelism().map_or(1, Into::into);
        let wanted = settings::backend_or(self.args.backend.as_ref(), config.backend)?;
        let devices = plan::choose(wanted, &self.reports, cores).map_err(Failure::Environment)?;
        Ok(devices.deal(self.args.workers, cores))
    }
}

/// Waits until a person asks for the end.
async fn stopped(signals: &mut Signals) -> i32 {
    loop {
        if let Request::Stop(signal) = signals.next().await {
            return signal;
        }
    }
}

/// The directory that a run's processes find here what the coordinator's have in the run's.
fn prepare(dir: &Path, config: &str) -> std::io::Result<()> {
    fs::create_dir_all(dir.join("logs"))?;
    fs::write(dir.join("config.toml"), config)
}
