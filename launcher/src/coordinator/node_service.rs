//! The shell around the nodes' core: decodes messages, keeps time, and hands on what becomes of processes.

use std::{
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use convoy_proto::{
    config::Config,
    ids::{NodeId, Role, ServerId},
    node::{NodeAdmission, NodeOffer, OrderReport, Orders, RunEnd},
    wire::{self, node_service_server::NodeService},
};
use convoy_server::accounts;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::{
    callers::{may_be, shown},
    nodes::{Home, Nodes},
    refusal::Refusal,
};
use crate::{
    children::{ChildExit, exit_status},
    train::restarts::Place,
};

/// Something that happened on a node.
#[derive(Debug)]
pub enum NodeEvent {
    /// It offers to run workers.
    Joined(NodeId),
    /// A process was started in a place.
    Started(Place, u32),
    /// A process that was to run has ended.
    Ended(ChildExit),
    /// It goes, and why.
    Left(NodeId, String),
}

/// What nodes are told of the run.
#[derive(Clone, Debug)]
pub struct RunCard {
    run_id: String,
    config: String,
    heartbeat_ms: u32,
    lease_ms: u32,
    /// The run's directory.
    run: PathBuf,
}

impl RunCard {
    /// Of a run, in its directory.
    pub fn new(config: &Config, run: PathBuf) -> RunCard {
        RunCard {
            run_id: config.run_id().into(),
            config: config.to_toml(),
            heartbeat_ms: config.timeouts.heartbeat_ms,
            lease_ms: config.timeouts.lease_ms,
            run,
        }
    }
}

/// The gRPC face of the nodes. Clones share it.
#[derive(Clone, Debug)]
pub struct NodesService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    nodes: Mutex<Nodes>,
    start: Instant,
    card: RunCard,
    /// Counts changes, so that whoever watches looks again.
    changes: watch::Sender<u64>,
    end: Mutex<Option<RunEnd>>,
    events: mpsc::Sender<NodeEvent>,
}

impl NodesService {
    /// Of a run, whose nodes are as the core says; what happens is sent to `events`.
    pub fn new(nodes: Nodes, card: RunCard, events: mpsc::Sender<NodeEvent>) -> NodesService {
        let inner = Inner {
            nodes: Mutex::new(nodes),
            start: Instant::now(),
            card,
            changes: watch::Sender::new(0),
            end: Mutex::new(None),
            events,
        };
        NodesService { inner: Arc::new(inner) }
    }

    /// The nodes, for a look or a change that nobody has to be told of.
    pub fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.inner.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the run ended, once it has.
    fn ended(&self) -> MutexGuard<'_, Option<RunEnd>> {
        self.inner.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.inner.start.elapsed().as_millis() as u64
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|changes| *changes += 1);
    }

    /// A process is to run in a place: says where that is, and tells the node.
    pub fn order(&self, place: Place) -> Home {
        let home = self.nodes().order(place);
        self.changed();
        home
    }

    /// No process is to run in a place any more; whether it was a node's.
    pub fn cancel(&self, place: Place) -> bool {
        let was = self.nodes().cancel(place);
        self.changed();
        was
    }

    /// Nodes that have not been heard of for so long, in milliseconds.
    pub fn silent(&self, limit_ms: u64) -> Vec<(NodeId, u64)> {
        self.nodes().silent(self.now_ms(), limit_ms)
    }

    /// Tells all nodes how the run ended.
    pub fn end(&self, end: RunEnd) {
        *self.ended() = Some(end);
        self.changed();
    }

    /// Waits until all nodes are gone.
    pub async fn all_gone(&self) {
        let mut changes = self.inner.changes.subscribe();
        while self.nodes().count() > 0 && changes.changed().await.is_ok() {}
    }

    fn orders(&self, node: NodeId) -> Result<Orders, Status> {
        let orders = self.nodes().orders(node)?;
        let end = self.ended().clone();
        Ok(Orders { orders, end })
    }

    /// Room for an event, before anything changes that it is to tell of.
    async fn room(&self) -> Result<mpsc::Permit<'_, NodeEvent>, Status> {
        self.inner.events.reserve().await.map_err(|_| Status::unavailable("the run has ended"))
    }

    /// Keeps what a node told of a process's log beside the logs of this machine's.
    fn keep_log(&self, (role, rank): Place, host: &str, lines: &[String]) -> PathBuf {
        let path = self.inner.card.run.join("logs").join(format!("{role}-{rank}.log"));
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let written = opened.and_then(|mut file| {
            writeln!(file, "-- on {host}, the last lines of its log:")?;
            lines.iter().try_for_each(|line| writeln!(file, "{line}"))
        });
        if let Err(problem) = written {
            tracing::warn!("cannot write {}: {problem}", path.display());
        }
        path
    }
}

type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for NodesService {
    type WatchOrdersStream = Outbound<wire::WatchOrdersResponse>;

    async fn join_node(
        &self,
        request: Request<wire::JoinNodeRequest>,
    ) -> Result<Response<wire::JoinNodeResponse>, Status> {
        let shown = shown(&request);
        let offer = NodeOffer::from(request.into_inner());
        if offer.servers > 0 {
            may_be(shown, Role::Server)?;
        }
        let RunCard { run_id, config, heartbeat_ms, lease_ms, .. } = self.inner.card.clone();
        let room = self.room().await?;
        let node = self.nodes().join(offer, &run_id, self.now_ms())?;
        room.send(NodeEvent::Joined(node));
        Ok(Response::new(NodeAdmission { node, run_id, config, heartbeat_ms, lease_ms }.into()))
    }

    async fn watch_orders(
        &self,
        request: Request<wire::WatchOrdersRequest>,
    ) -> Result<Response<Self::WatchOrdersStream>, Status> {
        let node = NodeId(request.into_inner().node);
        self.orders(node)?;
        let (service, mut last) = (self.clone(), None);
        let orders = WatchStream::new(self.inner.changes.subscribe()).filter_map(move |_| {
            let orders = service.orders(node);
            let is_news = orders.as_ref().ok() != last.as_ref();
            last = orders.as_ref().ok().cloned();
            is_news.then(|| orders.map(Into::into))
        });
        Ok(Response::new(Box::pin(orders)))
    }

    async fn renew_node(
        &self,
        request: Request<wire::RenewNodeRequest>,
    ) -> Result<Response<wire::RenewNodeResponse>, Status> {
        let now = self.now_ms();
        self.nodes().renew(NodeId(request.into_inner().node), now)?;
        Ok(Response::new(wire::RenewNodeResponse {}))
    }

    async fn report_order(
        &self,
        request: Request<wire::ReportOrderRequest>,
    ) -> Result<Response<wire::ReportOrderResponse>, Status> {
        let request = request.into_inner();
        let node = NodeId(request.node);
        let OrderReport { order, pid, ended } = request.try_into()?;
        let place = (order.role, order.rank);
        let room = self.room().await?;
        let Some((wait_status, lines)) = ended else {
            if self.nodes().holds(node, order)? {
                room.send(NodeEvent::Started(place, pid));
            }
            return Ok(Response::new(wire::ReportOrderResponse {}));
        };
        let host = self.nodes().get(node).map(|record| record.host.clone()).ok_or(Refusal::UnknownNode(node))?;
        let log = self.keep_log(place, &host, &lines);
        // What was cancelled or replaced meanwhile is nobody's loss.
        if self.nodes().ended(node, order)? {
            let status = exit_status(wait_status);
            room.send(NodeEvent::Ended(ChildExit { role: order.role, rank: order.rank, pid, status, log }));
        }
        Ok(Response::new(wire::ReportOrderResponse {}))
    }

    async fn hand_over(
        &self,
        request: Request<wire::HandOverRequest>,
    ) -> Result<Response<wire::HandOverResponse>, Status> {
        may_be(shown(&request), Role::Server)?;
        let wire::HandOverRequest { node, server, lines } = request.into_inner();
        self.orders(NodeId(node))?;
        let (run, server) = (self.inner.card.run.clone(), ServerId(server));
        if !self.nodes().is_seat((Role::Server, server.0)) || self.ended().is_none() {
            return Err(Status::failed_precondition(format!("the ledger of server {server} is not kept now")));
        }
        let added = tokio::task::spawn_blocking(move || accounts::add_lines(&run, server, &lines)).await;
        match added {
            Ok(Ok(())) => Ok(Response::new(wire::HandOverResponse {})),
            Ok(Err(problem)) => Err(Status::invalid_argument(format!("the ledger of server {server}: {problem}"))),
            Err(problem) => Err(Status::internal(problem.to_string())),
        }
    }

    async fn leave_node(
        &self,
        request: Request<wire::LeaveNodeRequest>,
    ) -> Result<Response<wire::LeaveNodeResponse>, Status> {
        let wire::LeaveNodeRequest { node, reason } = request.into_inner();
        let node = NodeId(node);
        self.orders(node)?;
        if self.ended().is_some() {
            // The run is over: nobody is there to look at events.
            self.nodes().remove(node);
            self.changed();
        } else {
            self.room().await?.send(NodeEvent::Left(node, reason));
        }
        Ok(Response::new(wire::LeaveNodeResponse {}))
    }
}
