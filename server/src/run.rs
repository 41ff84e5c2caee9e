//! The life of a server process: listen, join, build the shard when the manifest is known, serve until the end.

use std::{net::SocketAddr, path::PathBuf, pin::Pin, process::ExitCode, sync::Arc, time::Duration};

use clap::Args;
use convoy_proto::{
    access::TokenRole,
    blocks::{BlockMap, Blocks},
    config::{Config, Transport, network::reached_at},
    ids::{Era, Role},
    layout::Layout,
    manifest::Manifest,
    messages::{ClusterView, JoinPart, Phase, ShardReport},
    process::{self, StartError},
    schedule::Horizon,
    shared::{Arena, heap},
    transport::{Bulk, Coordinator, Defence, Membership, TransportError, bulk_server, incoming},
    wire::{DESCRIPTORS, parameters_service_server::ParametersServiceServer},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use crate::{
    busy::Busy,
    checkpoint::{self, CheckpointError, Place, part, place},
    core::{kept::Snapshot, shard::Shard},
    fill::{self, fill},
    host::{Around, Host},
    service::ParameterServer,
};

/// Versions of a block that there is room for where others see them: the two that are needed, and two that are still read.
const PLANES: usize = 4;

/// What a server is told on its command line.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Directory of the run; its config.toml is read
    #[arg(long = "run", value_name = "DIR")]
    pub run: PathBuf,
    /// Which server this is, from 0; it holds the shard of the same number, or, beyond the shards, a further copy of one
    #[arg(long)]
    pub rank: u32,
    /// Address of the coordinator
    #[arg(long, value_name = "HOST:PORT")]
    pub coordinator: String,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Name or address to tell others, with a port or without, if it is not the one listened on; never rewritten
    #[arg(long, value_name = "HOST[:PORT]")]
    pub advertise_addr: Option<String>,
    /// Directory with ca.crt, tls.crt, tls.key and token [default: as the run's config.toml says]
    #[arg(long, value_name = "DIR")]
    pub certs: Option<PathBuf>,
    /// Threads for sums and updates; all cores by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// End when standard input ends
    #[arg(long, hide = true)]
    pub supervised: bool,
}

/// Why a server ends before the cluster does.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The run's files.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Where checkpoints are kept.
    #[error(transparent)]
    Checkpoints(#[from] CheckpointError),
    /// The rank is none of the run's.
    #[error("--rank {rank}: the run has {servers} servers, counted from 0")]
    Rank {
        /// The rank.
        rank: u32,
        /// How many there are.
        servers: u32,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {problem}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        problem: std::io::Error,
    },
    /// Anybody could call.
    #[error("{0} is off loopback: say --certs DIR, as the run's launcher does, or begin the run with --insecure")]
    Open(SocketAddr),
    /// The coordinator refuses or is gone.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The coordinator has not been heard of for a lease.
    #[error("the coordinator is lost")]
    Lost,
    /// What another copy handed over is not the shard.
    #[error("the other copy of the shard cannot be taken over: {0}")]
    Copy(String),
    /// A step could not be decided.
    #[error("{0}")]
    Decision(String),
    /// The runtime or the listener broke.
    #[error("{0}")]
    Broken(String),
}

impl ServeError {
    fn exit_code(&self) -> u8 {
        match self {
            ServeError::Start(_) | ServeError::Rank { .. } | ServeError::Open(_) => 2,
            ServeError::Listen { .. } | ServeError::Checkpoints(_) => 3,
            _ => 1,
        }
    }
}

/// Runs a server to its end and says how it ended.
pub fn main(args: &ServerArgs) -> ExitCode {
    process::init_logs();
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into)).max(1);
    // A second pool in one process is refused; then the first one's size stays.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads.max(2)).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(serve(args));
            runtime.shutdown_timeout(Duration::from_millis(200));
            result
        }
        Err(problem) => Err(ServeError::Broken(format!("cannot start the runtime: {problem}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("server {}: {problem}", args.rank);
            ExitCode::from(problem.exit_code())
        }
    }
}

/// The run's configuration, once this process is set up for it.
fn opened(args: &ServerArgs) -> Result<Config, ServeError> {
    let config = process::load_config(&args.run)?;
    process::trace(&config, Role::Server, args.rank);
    if let Err(problem) = heap::begin() {
        debug!("large blocks are not kept: {problem}");
    }
    match Layout::of(&config).servers() {
        servers if args.rank >= servers => Err(ServeError::Rank { rank: args.rank, servers }),
        _ => Ok(config),
    }
}

async fn serve(args: &ServerArgs) -> Result<(), ServeError> {
    let config = opened(args)?;
    let cannot = |problem| ServeError::Listen { address: args.listen, problem };
    let listener = TcpListener::bind(args.listen).await.map_err(cannot)?;
    let local = listener.local_addr().map_err(cannot)?;
    let address = advertised(args.advertise_addr.as_deref(), local);
    let security = process::load_security(args.certs.as_deref().or(config.network.certs_dir()))?;

    let (lost, tasks) = (CancellationToken::new(), TaskTracker::new());
    if args.supervised {
        process::watch_parent(lost.clone());
    }
    let (busy, sampled) = Busy::watched();
    let coordinator = Coordinator::connect(&args.coordinator, security.credentials(TokenRole::Server)).await?;
    let membership = Membership::join(
        coordinator,
        (process::join_offer(&config, args.rank, JoinPart::Server { address }), sampled),
        &tasks,
        lost.clone(),
    )
    .await?;
    let defence = Defence { tls: security.tls, guard: membership.guard.clone() };
    if !local.ip().is_loopback() && !defence.is_complete() && !config.network.insecure {
        return Err(ServeError::Open(local));
    }
    let mut server = bulk_server(&defence, config.workers).map_err(ServeError::Broken)?;
    info!("server {} listens on {local}, process {}", args.rank, std::process::id());

    let host = Arc::new(Host::new(Around {
        membership: membership.clone(),
        run: args.run.clone(),
        checkpoints: place::of_run(&config, &args.run)?,
        decide_within: Duration::from_millis(config.timeouts.step_ms.into()),
        lease: Duration::from_millis(config.timeouts.lease_ms.into()),
        tasks: tasks.clone(),
        busy,
    }));
    let service = Bulk::new(ParameterServer::new(host.clone()));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_not_serving::<ParametersServiceServer<ParameterServer>>().await;
    let reflection = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let reflection = reflection.build_v1().map_err(|problem| ServeError::Broken(problem.to_string()))?;
    let stop = CancellationToken::new();
    let listening = tokio::spawn(
        server
            .add_service(service)
            .add_service(health_service)
            .add_service(reflection)
            .serve_with_incoming_shutdown(incoming(listener), stop.clone().cancelled_owned()),
    );

    let result = attend(&host, &config, async || {
        health.set_serving::<ParametersServiceServer<ParameterServer>>().await;
    });
    let result = result.await;
    membership.tell_trace().await;
    lost.cancel();
    stop.cancel();
    tasks.close();
    // Clients that hold their connections open do not hold up the end.
    let _ = tokio::time::timeout(Duration::from_secs(1), listening).await;
    match (host.failure(), result) {
        (Some(problem), _) => Err(ServeError::Decision(problem)),
        (None, result) => result,
    }
}

/// What others are told to reach a listener at.
fn advertised(told: Option<&str>, local: SocketAddr) -> String {
    let has_port = |told: &&str| told.parse::<SocketAddr>().is_ok() || told.matches(':').count() == 1;
    told.filter(has_port).map_or_else(|| reached_at(told, local), String::from)
}

/// From the first view to the last: the manifest, each era's shard, every change of the membership.
async fn attend(host: &Arc<Host>, config: &Config, serving: impl AsyncFn()) -> Result<(), ServeError> {
    let membership = host.around.membership.clone();
    membership.reached(Phase::Initialising).await.ok_or(ServeError::Lost)?;
    let limit = Duration::from_millis(config.timeouts.start_ms.into());
    let (manifest, horizon) = membership.coordinator.manifest(membership.member, limit).await?;
    let mut views = membership.views();
    let mut era = None;
    let mut filling: Option<Filling> = None;
    let patience = host.around.lease;
    loop {
        let view = views.borrow_and_update().clone();
        if view.phase == Phase::Ended {
            return Ok(());
        }
        if view.phase >= Phase::Initialising && era != Some(view.era) {
            era = Some(view.era);
            filling = fill::is_late(&view, host.server())
                .then(|| Box::pin(fill(membership.clone(), view.era, patience)) as Filling);
            if filling.is_none() {
                begin(host, config, (&manifest, horizon), view).await?;
            }
            serving().await;
        } else {
            host.set_view(view);
        }
        tokio::select! {
            () = membership.lost.cancelled() => return Err(ServeError::Lost),
            changed = views.changed() => changed.map_err(|_| ServeError::Lost)?,
            snapshot = filled(&mut filling) => {
                filling = None;
                if let Some(era) = era {
                    take_copy(host, config, (&manifest, horizon), (era, snapshot?))?;
                }
            }
        }
    }
}

/// A shard on its way from another copy.
type Filling = Pin<Box<dyn Future<Output = Result<Snapshot, TransportError>> + Send>>;

/// Waits for a shard that is on its way; for ever, if none is.
async fn filled(filling: &mut Option<Filling>) -> Result<Snapshot, TransportError> {
    match filling {
        Some(filling) => filling.await,
        None => std::future::pending().await,
    }
}

/// Serves a shard that was taken from another copy, if its era goes on.
fn take_copy(
    host: &Arc<Host>,
    config: &Config,
    (manifest, horizon): (&Manifest, Horizon),
    (era, snapshot): (Era, Snapshot),
) -> Result<(), ServeError> {
    let view = host.around.membership.view();
    if view.era != era {
        // Another shard is due.
        return Ok(());
    }
    let shard = Arc::new(make(host, config, (manifest, horizon), view));
    shard.restore(snapshot).map_err(|problem| ServeError::Copy(problem.to_string()))?;
    info!("shard {} goes on with commit {}, from another copy", shard.id(), shard.open_step());
    host.serve(shard);
    host.report(era, ShardReport::Restored);
    Ok(())
}

/// A shard without parameters, in memory that workers on this machine see, if the run exchanges through that.
fn make(host: &Host, config: &Config, (manifest, horizon): (&Manifest, Horizon), view: ClusterView) -> Shard {
    let shard = Shard::new(host.server(), config, (manifest, horizon), view);
    if config.network.transport == Transport::Grpc {
        return shard;
    }
    let map = BlockMap::new(manifest, config.servers);
    // Where everybody computes with a version of their own, each is read for as long.
    let readers = if config.mode.is_dealt() { config.workers as usize } else { 0 };
    match Arena::new(map.of_shard(shard.id()), PLANES + readers) {
        Ok(arena) => shard.sharing(&arena),
        Err(problem) => {
            warn!("everything goes through connections: {problem}");
            shard
        }
    }
}

/// Serves an era's shard: from a checkpoint, or empty until a worker sets the parameters.
///
/// A place that does not answer ends this server, and with it the run, which can be resumed: what it holds may be whole.
async fn begin(
    host: &Arc<Host>,
    config: &Config,
    (manifest, horizon): (&Manifest, Horizon),
    view: ClusterView,
) -> Result<(), ServeError> {
    let (era, restore) = (view.era, view.restore.clone());
    let shard = Arc::new(make(host, config, (manifest, horizon), view));
    let id = shard.id();
    info!("shard {id} holds {} blocks, era {era}", shard.blocks());
    let Some(name) = restore else {
        host.serve(shard);
        return Ok(());
    };
    let (map, restoring) = (BlockMap::new(manifest, config.servers), shard.clone());
    let place = host.around.checkpoints.clone();
    let restored = tokio::task::spawn_blocking(move || take_up(&restoring, (&*place, &name), map.of_shard(id)));
    let report = match restored.await.unwrap_or_else(|problem| Ok(Err(problem.to_string())))? {
        Ok(()) => {
            info!("shard {id} goes on with commit {}", shard.open_step());
            host.serve(shard);
            ShardReport::Restored
        }
        Err(problem) => {
            error!("{problem}");
            ShardReport::NotRestored(problem)
        }
    };
    host.report(era, report);
    Ok(())
}

/// Takes a shard from a checkpoint, or says why it is none.
fn take_up(
    shard: &Shard,
    (place, name): (&dyn Place, &str),
    blocks: Blocks<'_>,
) -> Result<Result<(), String>, CheckpointError> {
    let read = checkpoint::open(place, name).and_then(|manifest| part::read((place, name), &manifest, blocks));
    Ok(match read {
        Ok(snapshot) => shard.restore(snapshot).map_err(|problem| format!("{}: {problem}", place.of(name))),
        Err(problem) if problem.is_unreachable() => return Err(problem),
        Err(problem) => Err(problem.to_string()),
    })
}
