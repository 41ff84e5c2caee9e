//! `launcher join`: this machine's part of a run that another machine's launcher coordinates.
//!
//! [`agent`] starts the processes that the coordinator orders and tells what becomes of them; [`link`] keeps the connection;
//! [`ledgers`] are handed over at the end.
//! Nothing is decided here: who is started again, and when a run is over, is the coordinator's to say.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use convoy_proto::{
    BUILD, PROTOCOL,
    access::{Key, TokenRole},
    config::Config,
    ids::Role,
    node::{NodeAdmission, NodeOffer, RunEnd},
    process,
    transport::{Credentials, NodeClient, TransportError},
};
use convoy_worker::device::BackendReport;
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;

use crate::{
    args::{JoinArgs, Places},
    machine,
    outcome::Failure,
    plan::{self, WorkerPlan},
    probe,
    remote::credentials,
    settings,
    train::{
        losses::processes,
        signals::{Request, Signals},
    },
};

mod agent;
mod ledgers;
mod link;

use agent::Agent;

/// How long to wait before the next attempt to reach the coordinator.
const AGAIN: Duration = Duration::from_millis(500);

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// How long a run may take to end that was told to at the same time as this node, which runs workers only.
const GRACE: Duration = Duration::from_secs(5);

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
    if args.workers + args.servers == 0 {
        return Err(Failure::Usage("--workers 0: a machine that joins runs something, or say --servers M".into()));
    }
    // Kept until the end, and gone with it.
    let handed = match &args.certs {
        Some(certs) if certs.as_os_str() == "-" => Some(credentials::unpack(&first_line()?)?),
        _ => None,
    };
    let certs = handed.as_ref().map(|dir| dir.path().to_path_buf()).or_else(|| args.certs.clone());
    let security = process::load_security(certs.as_deref())?;
    let gone = CancellationToken::new();
    if args.supervised {
        process::watch_parent(gone.clone());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|problem| Failure::Environment(format!("cannot start the runtime: {problem}")))?;
    let root = PathBuf::from(places.root());
    // Before it is a node: drivers may take their time.
    let reports = if args.backend.as_deref() == Some("cpu") { Vec::new() } else { probe::probe() };
    if let (true, Some(Key::Token(token))) = (args.servers > 0, &security.key)
        && !token.role().may_join_as(Role::Server)
    {
        let problem = format!("--servers takes a server's token, this is one of the role {}", token.role());
        let advice = "`launcher certs DIR --from … --role server` makes one, which is good for workers, too";
        return Err(Failure::Usage(format!("{problem}: {advice}")));
    }
    // One that runs servers shows that it may; then it may run workers, too.
    let role = if args.servers > 0 { TokenRole::Server } else { TokenRole::Worker };
    let joiner = Joiner { args, root, certs, credentials: security.credentials(role), reports, gone };
    let result = runtime.block_on(joiner.run());
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

/// What a machine brings along, whatever run it joins.
struct Joiner<'a> {
    args: &'a JoinArgs,
    root: PathBuf,
    certs: Option<PathBuf>,
    credentials: Credentials,
    /// What devices there are.
    reports: Vec<BackendReport>,
    /// Whoever started it is gone.
    gone: CancellationToken,
}

/// The first line of standard input.
fn first_line() -> Result<String, Failure> {
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .map_err(|problem| Failure::Environment(format!("cannot read standard input: {problem}")))?;
    Ok(line)
}

fn say(line: &str) {
    eprintln!("{line}");
}

impl Joiner<'_> {
    async fn run(&self) -> Result<(), Failure> {
        let mut signals = Signals::new()?;
        // It may be lost and come back, but to the same run.
        let mut id = self.args.id.clone();
        // Where its processes wrote, each time that it joined.
        let mut dirs = Vec::new();
        loop {
            let (client, admission) = tokio::select! {
                found = self.find(id.as_ref()) => found?,
                signal = self.stopped(&mut signals) => return Err(Failure::Signal(signal)),
            };
            let (run, node) = (admission.run_id.clone(), admission.node);
            id = Some(run.clone());
            let offered = processes(self.args.workers, self.args.servers);
            say(&format!("joined the run {run} at {}, with {offered}", self.args.coordinator));
            let mut agent = match self.agent(client.clone(), admission) {
                Ok((agent, dir)) => {
                    dirs.push(dir);
                    agent
                }
                Err(failure) => {
                    let _ = tokio::time::timeout(GOODBYE, client.leave(node, &failure.to_string())).await;
                    return Err(failure);
                }
            };
            let end = tokio::select! {
                end = agent.serve() => end?,
                signal = self.stopped(&mut signals) => self.end_soon(&mut agent, (&mut signals, signal)).await?,
            };
            agent.stop(matches!(&end, End::Run(RunEnd { exit_code: 0, .. }))).await;
            if let End::Run(_) = &end {
                for dir in &dirs {
                    if let Err(problem) = ledgers::hand_over(dir, &client, node).await {
                        say(&problem);
                    }
                }
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

    /// A signal asks for the end: if the whole run was asked, it ends by itself in a moment, else this node leaves it.
    async fn end_soon(&self, agent: &mut Agent, (signals, signal): (&mut Signals, i32)) -> Result<End, Failure> {
        if !self.gone.is_cancelled() {
            // Without its servers, the run has no last checkpoint.
            let grace = if self.args.servers > 0 { agent.stop_within() } else { GRACE };
            let seconds = grace.as_secs();
            say(&format!("leaves the run in {seconds} s, if that does not end before; once more leaves at once"));
            tokio::select! {
                end = agent.serve() => return end,
                () = tokio::time::sleep(grace) => {}
                _ = self.stopped(signals) => {}
            }
        }
        agent.leave("a person stopped it").await;
        Ok(End::Signal(signal))
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
            servers: self.args.servers,
        };
        let admission = client.join(offer).await?;
        Ok((client, admission))
    }

    /// What starts processes of a run here.
    fn agent(&self, client: NodeClient, admission: NodeAdmission) -> Result<(Agent, PathBuf), Failure> {
        let NodeAdmission { node, run_id, config: text, heartbeat_ms, lease_ms } = admission;
        let config = Config::from_toml("the run's configuration", &text)?;
        let dir = self.root.join(".nodes").join(format!("{run_id}-{}-{node}", process::host_name()));
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        prepare(&dir, &text).map_err(|problem| {
            Failure::Environment(format!("cannot write {}: {problem}; choose another --run-dir", dir.display()))
        })?;
        let mut common = vec!["--coordinator".to_string(), self.args.coordinator.clone(), "--supervised".into()];
        let data = self.args.data.iter().flat_map(|data| ["--data".into(), convoy_worker::data::absolute(data)]);
        // None but its own count here, whatever the coordinator's are called.
        let certs = self.certs.iter().flat_map(|certs| ["--certs".into(), certs.display().to_string()]);
        common.extend(certs);
        let plans = self.plans(&config)?;
        let mut told = BTreeMap::from([(Role::Worker, [common.clone(), data.collect()].concat())]);
        if self.args.servers > 0 {
            told.insert(Role::Server, [common, self.serving()?].concat());
        }
        let link = link::Link::start(client, node, (heartbeat_ms, lease_ms), CancellationToken::new());
        let stop_within = Duration::from_millis(config.timeouts.stop_ms.into());
        Ok((Agent::new(link, (dir.clone(), stop_within), plans, told), dir))
    }

    /// Where its servers listen, and what others are told.
    fn serving(&self) -> Result<Vec<String>, Failure> {
        let JoinArgs { coordinator, listen, interface, advertise_addr, .. } = self.args;
        let address = match (listen, interface) {
            (Some(address), _) => Some(*address),
            (None, Some(interface)) => Some(machine::address_of(interface)?),
            (None, None) => {
                let found = coordinator.to_socket_addrs().ok().and_then(|mut found| found.next());
                found.and_then(|found| machine::way_to(found.ip()))
            }
        };
        let address = address.ok_or_else(|| {
            Failure::Environment(format!(
                "cannot find the way to {coordinator}: say --listen IP, where servers here are"
            ))
        })?;
        if address.is_unspecified() && advertise_addr.is_none() {
            return Err(Failure::Usage(format!("--listen {address}: say with --advertise-addr where others reach it")));
        }
        let listen = ["--listen".into(), SocketAddr::new(address, 0).to_string()];
        let advertised = advertise_addr.iter().flat_map(|host| ["--advertise-addr".into(), host.clone()]);
        let threads = ["--threads".into(), machine::cores().to_string()];
        Ok(listen.into_iter().chain(advertised).chain(threads).collect())
    }

    /// Waits until a person asks for the end, or whoever started this is gone.
    async fn stopped(&self, signals: &mut Signals) -> i32 {
        loop {
            tokio::select! {
                () = self.gone.cancelled() => return Signal::SIGHUP as i32,
                request = signals.next() => if let Request::Stop(signal) = request {
                    return signal;
                }
            }
        }
    }

    /// Where its workers compute.
    fn plans(&self, config: &Config) -> Result<Vec<WorkerPlan>, Failure> {
        let cores = machine::cores();
        let wanted = settings::backend_or(self.args.backend.as_ref(), config.backend)?;
        let devices = plan::choose(wanted, &self.reports, cores)
            .map_err(Failure::Environment)?
            .shared(machine::share_of_devices());
        Ok(devices.deal(self.args.workers, cores))
    }
}

/// The directory that a run's processes find here what the coordinator's have in the run's.
fn prepare(dir: &Path, config: &str) -> std::io::Result<()> {
    fs::create_dir_all(dir.join("logs"))?;
    fs::write(dir.join("config.toml"), config)
}
