//! The shell around the cluster's core: decodes messages, keeps time, and hands events on.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use convoy_proto::{
    access::Guard,
    config::Config,
    fates::Fate,
    ids::{Era, Member, Role, Step},
    messages::{
        Accumulated, Action, Admission, ClusterView, JoinOffer, Norms, Phase, Report, ShardReport, Staged, Verdict,
    },
    wire::{self, coordination_service_server::CoordinationService},
};
use tokio::sync::{
    mpsc::{self, PermitIterator},
    watch,
};
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};

use super::{
    callers::{may_be, member, own, shown},
    core::{Cluster, Event, Origin},
    dealer::Deal,
    handshake::Reference,
    refusal::Refusal,
    telemetry::Telemetry,
};

/// The gRPC face of the cluster. Clones share it.
#[derive(Clone, Debug)]
pub struct CoordinatorService {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: Mutex<Cluster>,
    start: Instant,
    view: watch::Sender<ClusterView>,
    verdict: watch::Sender<Option<Verdict>>,
    /// Counts changes, so that whoever waits for a commit or for work looks again.
    changes: watch::Sender<u64>,
    events: mpsc::Sender<Event>,
    total_steps: u64,
    patience: Duration,
    /// What servers are to check callers' tokens with, where there are tokens.
    guard: Option<Guard>,
    /// What members tell beside.
    telemetry: Telemetry,
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::Different { .. } | Refusal::OutOfPlace { .. } | Refusal::Decision(_) | Refusal::Commit(_) => {
                Status::failed_precondition(text)
            }
            Refusal::NoPlace { .. } => Status::out_of_range(text),
            Refusal::Scale(_) => Status::failed_precondition(text),
            Refusal::Era { .. } => Status::aborted(text),
            Refusal::Taken(_) => Status::already_exists(text),
            Refusal::Stranger(_) | Refusal::UnknownNode(_) => Status::permission_denied(text),
        }
    }
}

impl CoordinatorService {
    /// A coordinator for a run; what happens is sent to `events`, and servers are given `guard`.
    pub fn new(
        cluster: Cluster,
        config: &Config,
        events: mpsc::Sender<Event>,
        guard: Option<Guard>,
    ) -> CoordinatorService {
        let patience = Duration::from_millis(config.timeouts.start_ms.max(config.timeouts.step_ms).into());
        let total_steps = cluster.reference().horizon.steps;
        let inner = Inner {
            view: watch::Sender::new(cluster.view()),
            verdict: watch::Sender::new(None),
            changes: watch::Sender::new(0),
            cluster: Mutex::new(cluster),
            start: Instant::now(),
            events,
            total_steps,
            patience,
            guard,
            telemetry: Telemetry::default(),
        };
        CoordinatorService { inner: Arc::new(inner) }
    }

    /// Hands on where members spend their time.
    pub fn trace(&self, spans: crate::watch::trace::Sink) {
        self.inner.telemetry.trace(spans);
    }

    /// The cluster, for a look or a change; views are sent out by [`CoordinatorService::advance`] and the RPCs.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.inner.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds on the cluster's clock.
    pub fn now_ms(&self) -> u64 {
        self.inner.start.elapsed().as_millis() as u64
    }

    /// Moves the cluster on to a later phase and tells every member.
    pub fn advance(&self, phase: Phase) {
        if self.cluster().advance(phase).is_some() {
            self.publish();
        }
    }

    /// Ends the era; gives how many events of it are still to be read.
    pub fn end_era(&self, events: &mpsc::Receiver<Event>) -> usize {
        let old = {
            let mut cluster = self.cluster();
            // A verdict of the old era is none of the new one.
            self.inner.verdict.send_replace(None);
            cluster.end_era();
            events.len()
        };
        self.publish();
        old
    }

    /// Begins the era that follows from `origin`.
    pub fn roll_back(&self, origin: Origin) -> Option<Event> {
        let begun = self.cluster().roll_back(origin);
        self.publish();
        begun
    }

    /// Asks servers to keep a commit for a checkpoint, if they do not do so anyway.
    pub fn save_at(&self, commit: Step) {
        self.cluster().save_at(commit);
        self.publish();
    }

    /// Lets workers that wait for the review of an evaluation go on.
    pub fn review(&self, step: Step) {
        self.cluster().review(step);
        self.publish();
    }

    /// The view, now and as it changes.
    pub fn views(&self) -> watch::Receiver<ClusterView> {
        self.inner.view.subscribe()
    }

    /// Tells every member how the cluster stands now.
    pub fn publish(&self) {
        // Under the cluster's lock, so that views go out in the order in which they came about.
        let mut cluster = self.cluster();
        if let Some(verdict) = cluster.settle_decision() {
            self.inner.verdict.send_replace(Some(verdict));
        }
        let view = cluster.view();
        self.inner.view.send_if_modified(|old| {
            let changed = *old != view;
            *old = view;
            changed
        });
        self.inner.changes.send_modify(|changes| *changes += 1);
    }

    /// Waits until `look` finds something; what it waits for in vain is in the error.
    async fn wait<T>(&self, mut look: impl FnMut() -> Result<Result<T, String>, Refusal>) -> Result<T, Status> {
        let mut changes = self.inner.changes.subscribe();
        let mut awaited = String::new();
        let found = async {
            loop {
                changes.borrow_and_update();
                match look()? {
                    Ok(found) => return Ok(found),
                    Err(who) => awaited = who,
                }
                if changes.changed().await.is_err() {
                    return Err(Status::unavailable("the run has ended"));
                }
            }
        };
        let waited = tokio::time::timeout(self.inner.patience, found).await;
        waited.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("waited too long for {awaited}"))))
    }

    /// Room for the events of one call, so that they can be handed on under the cluster's lock, in the order in which
    /// they came about; waits where the reader is behind.
    async fn room(&self) -> Result<PermitIterator<'_, Event>, Status> {
        self.inner.events.reserve_many(EVENTS_A_CALL).await.map_err(|_| Status::unavailable("the run has ended"))
    }
}

/// The most events that one call brings about.
const EVENTS_A_CALL: usize = 8;

fn hand_on(room: PermitIterator<'_, Event>, events: Vec<Event>) {
    room.zip(events).for_each(|(place, event)| place.send(event));
}

type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl CoordinationService for CoordinatorService {
    type WatchStream = Outbound<wire::WatchResponse>;

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinResponse>, Status> {
        let shown = shown(&request);
        let offer = JoinOffer::try_from(request.into_inner())?;
        may_be(shown, offer.role)?;
        let guard = self.inner.guard.clone().filter(|_| offer.role == Role::Server);
        let now = self.now_ms();
        let room = self.room().await?;
        let admission = {
            let mut cluster = self.cluster();
            let (admission, events) = cluster.join(offer, now)?;
            hand_on(room, events);
            Admission { guard, ..admission }
        };
        self.publish();
        Ok(Response::new(admission.into()))
    }

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let member = own(shown(&request), request.into_inner().member)?;
        self.cluster().check(member)?;
        let views = WatchStream::new(self.inner.view.subscribe());
        Ok(Response::new(Box::pin(views.map(|view| Ok(view.into())))))
    }

    async fn heartbeat(
        &self,
        request: Request<wire::HeartbeatRequest>,
    ) -> Result<Response<wire::HeartbeatResponse>, Status> {
        let now = self.now_ms();
        let shown = shown(&request);
        let mut heartbeat = request.into_inner();
        let member = own(shown, heartbeat.member.take())?;
        let mut cluster = self.cluster();
        cluster.heartbeat(member, now, heartbeat.computing_ms)?;
        self.inner.telemetry.note(&mut cluster, member, heartbeat);
        Ok(Response::new(wire::HeartbeatResponse {}))
    }

    async fn get_manifest(
        &self,
        request: Request<wire::GetManifestRequest>,
    ) -> Result<Response<wire::GetManifestResponse>, Status> {
        let member = own(shown(&request), request.into_inner().member)?;
        self.cluster().check(member)?;
        let mut view = self.inner.view.subscribe();
        let there = view.wait_for(|view| view.phase >= Phase::Initialising);
        // What it gives keeps the view from changing, which whoever has the cluster waits for: it is gone with this line.
        let is_there = matches!(tokio::time::timeout(self.inner.patience, there).await, Ok(Ok(_)));
        if !is_there {
            return Err(Status::deadline_exceeded("no worker has brought a manifest"));
        }
        let cluster = self.cluster();
        let Reference { manifest, horizon, .. } = cluster.reference();
        Ok(Response::new(wire::GetManifestResponse {
            manifest: Some(manifest.into()),
            steps: horizon.steps,
            steps_per_epoch: horizon.steps_per_epoch,
        }))
    }

    async fn decide(&self, request: Request<wire::DecideRequest>) -> Result<Response<wire::DecideResponse>, Status> {
        let request = request.into_inner();
        let member = member(request.member)?;
        let part = Accumulated::try_from(request)?;
        let (step, is_trust) = (part.proposal.step, matches!(part.norms, Norms::Direction(_)));
        let mut decided = self.inner.verdict.subscribe();
        if let Some(verdict) = self.cluster().decide(member, part)? {
            self.inner.verdict.send_replace(Some(verdict));
        }
        // A verdict with factors comes after one without, and one that skips the step answers everybody.
        let says_enough = |verdict: &Verdict| !is_trust || verdict.action != Action::Apply || !verdict.trust.is_empty();
        let ours = |verdict: &Option<Verdict>| verdict.as_ref().is_some_and(|v| v.step == step && says_enough(v));
        match tokio::time::timeout(self.inner.patience, decided.wait_for(ours)).await {
            Ok(Ok(verdict)) => Ok(Response::new(wire::DecideResponse { verdict: verdict.clone().map(Into::into) })),
            _ => Err(Status::deadline_exceeded(format!("step {step} waits for {}", self.cluster().awaited()))),
        }
    }

    async fn stage(&self, request: Request<wire::StageRequest>) -> Result<Response<wire::StageResponse>, Status> {
        let request = request.into_inner();
        let member = member(request.member)?;
        let staged = Staged::try_from(request)?;
        let header = staged.header.clone();
        if !self.cluster().stage(member, staged)?.is_empty() {
            self.publish();
        }
        let fate = || {
            let cluster = self.cluster();
            Ok(match cluster.engine().fate(&header) {
                Fate::Decided(verdict) => Ok(Some(verdict)),
                Fate::Dropped => Ok(None),
                Fate::Open => Err(cluster.awaited()),
            })
        };
        let verdict = self.wait(fate).await?;
        Ok(Response::new(wire::StageResponse { verdict: verdict.map(Into::into) }))
    }

    async fn deal(&self, request: Request<wire::DealRequest>) -> Result<Response<wire::DealResponse>, Status> {
        let request = request.into_inner();
        let member = member(request.member)?;
        let deal = || {
            let mut cluster = self.cluster();
            Ok(match cluster.deal(member, request.after)? {
                Deal::Now(work) => Ok((work, cluster.view().generation)),
                Deal::Wait(who) => Err(who),
            })
        };
        let work = self.wait(deal).await?;
        self.inner.changes.send_modify(|changes| *changes += 1);
        Ok(Response::new(work.into()))
    }

    async fn report(&self, request: Request<wire::ReportRequest>) -> Result<Response<wire::ReportResponse>, Status> {
        let request = request.into_inner();
        let (member, era) = (member(request.member)?, Era(request.era));
        for report in request.reports {
            let report = Report::try_from(report)?;
            let room = self.room().await?;
            {
                let mut cluster = self.cluster();
                hand_on(room, cluster.report(member, era, report)?);
            }
            self.publish();
        }
        Ok(Response::new(wire::ReportResponse {}))
    }

    async fn report_shard(
        &self,
        request: Request<wire::ReportShardRequest>,
    ) -> Result<Response<wire::ReportShardResponse>, Status> {
        let wire::ReportShardRequest { member: caller, era, kind } = request.into_inner();
        let (caller, report) = (member(caller)?, ShardReport::try_from(kind)?);
        let room = self.room().await?;
        {
            let mut cluster = self.cluster();
            hand_on(room, cluster.report_shard(caller, Era(era), report)?);
        }
        self.publish();
        Ok(Response::new(wire::ReportShardResponse {}))
    }

    async fn scale(&self, request: Request<wire::ScaleRequest>) -> Result<Response<wire::ScaleResponse>, Status> {
        let workers = request.into_inner().workers;
        let room = self.room().await?;
        let before = self.cluster().may_scale(workers)?;
        hand_on(room, vec![Event::Scale(workers)]);
        Ok(Response::new(wire::ScaleResponse { before }))
    }

    async fn leave(&self, request: Request<wire::LeaveRequest>) -> Result<Response<wire::LeaveResponse>, Status> {
        let shown = shown(&request);
        let request = request.into_inner();
        let member = own(shown, request.member)?;
        self.cluster().check(member)?;
        tracing::debug!("{member} leaves: {}", request.reason);
        Ok(Response::new(wire::LeaveResponse {}))
    }

    async fn get_status(
        &self,
        _request: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        let now = self.now_ms();
        let cluster = self.cluster();
        let age = |heard_ms: u64| now.saturating_sub(heard_ms) as f64 / 1e3;
        let servers = cluster.servers().iter().flatten().map(|server| wire::MemberStatus {
            member: Some(server.member.into()),
            host: server.host.clone(),
            pid: server.pid,
            address: server.address.clone(),
            device: String::new(),
            heartbeat_age_seconds: age(server.heard_ms),
        });
        let workers = cluster.workers().iter().flatten().map(|worker| wire::MemberStatus {
            member: Some(worker.member.into()),
            host: worker.host.clone(),
            pid: worker.pid,
            address: String::new(),
            device: worker.offer.device.clone(),
            heartbeat_age_seconds: age(worker.heard_ms),
        });
        let view = cluster.view();
        Ok(Response::new(wire::GetStatusResponse {
            phase: wire::Phase::from(view.phase).into(),
            generation: view.generation.0,
            era: view.era.0,
            step: cluster.steps(),
            steps: self.inner.total_steps,
            members: servers.chain(workers).collect(),
        }))
    }
}

/// The launcher itself, where it calls servers.
pub fn launcher() -> Member {
    Member { role: Role::Launcher, rank: 0, incarnation: convoy_proto::ids::Incarnation(0) }
}
