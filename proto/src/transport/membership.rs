//! Being a member: the handshake, heartbeats, and the cluster's view as it changes.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{Coordinator, TransportError};
use crate::{
    access::Guard,
    ids::Member,
    messages::{ClusterView, JoinOffer, Phase, Vitals},
    trace,
    vitals::Sampler,
};

/// How long the last heartbeat of a process that is traced may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A place in the cluster, kept by heartbeats for as long as `lost` is not cancelled.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Who this process is.
    pub member: Member,
    /// The way to the coordinator.
    pub coordinator: Coordinator,
    /// What checks the tokens of whoever calls this member, if it is a server and there are tokens.
    pub guard: Option<Guard>,
    /// Cancelled when the coordinator has not been heard of for a lease, or refuses this member.
    pub lost: CancellationToken,
    view: watch::Receiver<ClusterView>,
    computing: Arc<Mutex<Option<Instant>>>,
}

/// For as long as it lives, heartbeats say that this member computes, and since when.
#[derive(Debug)]
pub struct Computing(Arc<Mutex<Option<Instant>>>);

impl Drop for Computing {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Membership {
    /// Joins, and keeps the place until `lost` is cancelled by either side; heartbeats tell the newest sample of `vitals`.
    ///
    /// # Errors
    /// A refusal, or no coordinator.
    pub async fn join(
        coordinator: Coordinator,
        (offer, vitals): (JoinOffer, Sampler),
        tasks: &TaskTracker,
        lost: CancellationToken,
    ) -> Result<Membership, TransportError> {
        let (role, rank) = (offer.role, offer.rank);
        let admission = coordinator.join(offer).await?;
        let member = Member { role, rank, incarnation: admission.incarnation };
        let mut views = coordinator.watch(member).await?;
        let missing = TransportError::Incomplete { peer: coordinator.peer().clone(), missing: "the first view" };
        let first = views.next().await.ok_or(missing)??;
        let (sender, view) = watch::channel(first);
        let gone = lost.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = gone.cancelled() => {}
                end = follow(views, &sender) => {
                    debug!("the coordinator's views ended: {end}");
                    // It may be a moment until the heartbeat finds out; after the end there is nothing to lose.
                    if sender.borrow().phase != Phase::Ended {
                        gone.cancel();
                    }
                }
            }
        });
        let (every, lease) = (admission.heartbeat_ms.into(), admission.lease_ms.into());
        // On a connection of its own, so that nothing holds it up.
        let pulse = Coordinator::connect(&coordinator.peer().address, coordinator.credentials().clone()).await?;
        let computing: Arc<Mutex<Option<Instant>>> = Arc::default();
        let since = computing.clone();
        let computed = move || {
            let since = *since.lock().unwrap_or_else(PoisonError::into_inner);
            (since.map_or(Duration::ZERO, |since| since.elapsed()), vitals.newest())
        };
        let beat = beat((pulse, member), computed, Duration::from_millis(every), Duration::from_millis(lease));
        let gone = lost.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = gone.cancelled() => {}
                () = beat => gone.cancel(),
            }
        });
        Ok(Membership { member, coordinator, guard: admission.guard, lost, view, computing })
    }

    /// This member begins to compute, and does so until what is returned is dropped. If that takes much longer than it
    /// usually does, the member is taken to hang, although its heart beats.
    pub fn computing(&self) -> Computing {
        *self.computing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Computing(self.computing.clone())
    }

    /// Tells what a trace has of this process and has not told, before it ends. Nobody waits long for that.
    pub async fn tell_trace(&self) {
        while trace::is_on() && !trace::is_empty() {
            if self.coordinator.heartbeat(self.member, (Duration::ZERO, None), LAST_WORDS).await.is_err() {
                return;
            }
        }
    }

    /// The view as it is now.
    pub fn view(&self) -> ClusterView {
        self.view.borrow().clone()
    }

    /// A receiver of every change of the view.
    pub fn views(&self) -> watch::Receiver<ClusterView> {
        self.view.clone()
    }

    /// Waits until the cluster has come as far as `phase`; `None` if the coordinator is lost first.
    pub async fn reached(&self, phase: Phase) -> Option<ClusterView> {
        let mut view = self.view.clone();
        let reached = view.wait_for(|view| view.phase >= phase);
        tokio::select! {
            () = self.lost.cancelled() => None,
            view = reached => view.ok().map(|view| view.clone()),
        }
    }
}

async fn follow(
    mut views: impl tokio_stream::Stream<Item = Result<ClusterView, TransportError>> + Unpin,
    sender: &watch::Sender<ClusterView>,
) -> String {
    loop {
        match views.next().await {
            Some(Ok(view)) => drop(sender.send_replace(view)),
            Some(Err(error)) => return error.to_string(),
            None => return "the stream is closed".into(),
        }
    }
}

/// Sends heartbeats until none was answered for a lease.
async fn beat(
    (coordinator, member): (Coordinator, Member),
    told: impl Fn() -> (Duration, Option<Vitals>),
    every: Duration,
    lease: Duration,
) {
    let mut timer = tokio::time::interval(every);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answered = Instant::now();
    loop {
        timer.tick().await;
        match coordinator.heartbeat(member, told(), lease / 2).await {
            Ok(()) => answered = Instant::now(),
            Err(TransportError::Refused { message, .. }) => {
                warn!("the coordinator does not know {member} any more: {message}");
                return;
            }
            Err(error) if answered.elapsed() > lease => {
                warn!("no heartbeat was answered for {} ms: {error}", lease.as_millis());
                return;
            }
            Err(error) => debug!("heartbeat: {error}"),
        }
    }
}
