//! Connections to the servers that there are, as the view of the cluster changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use convoy_proto::{
    ids::{Era, Incarnation, Member, ServerId, ShardId, Step},
    messages::ClusterView,
    shared::{Pass, View},
    transport::{Credentials, ShardClient, Sight, TransportError},
};
use tokio::sync::{OnceCell, watch};
use tracing::{debug, info};

use super::ExchangeError;

/// The commit after all others: who takes part in it has been told when to begin.
pub(super) const SOME_DAY: Step = Step(u64::MAX);

/// The servers of a cluster. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Servers {
    views: watch::Receiver<ClusterView>,
    links: Arc<Mutex<BTreeMap<(ServerId, Incarnation), Link>>>,
    /// How long after a server's death the view may still have it.
    patience: Duration,
    credentials: Credentials,
    /// What this process shows to servers on its machine.
    shown: Option<Arc<Offer>>,
}

/// A process's memory, offered to servers.
#[derive(Debug)]
pub(super) struct Offer {
    pub member: Member,
    pub era: Era,
    pub segment: Pass,
    /// Whether a server that does not see it is none to exchange with.
    pub is_required: bool,
}

/// The way to a server: a connection, and memory that both see, if they are on one machine. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Link {
    server: ServerId,
    pub client: ShardClient,
    shown: Option<Arc<Offer>>,
    memory: Arc<OnceCell<Option<Sight>>>,
}

impl Link {
    /// The server's memory, if both see each other's. Where it is asked for first, waits until the server has its shard: who
    /// only asks how a server stands does without.
    ///
    /// # Errors
    /// Memory has to be shared, and cannot be; or there is no server.
    pub async fn memory(&self) -> Result<Option<Arc<View>>, TransportError> {
        let Some(offer) = &self.shown else { return Ok(None) };
        let share = async || {
            let shared = self.client.share((offer.member, offer.era), offer.segment).await?;
            if shared.is_none() && offer.is_required {
                return Err(self.client.apart());
            }
            let way = if shared.is_some() { "shared memory" } else { "the connection" };
            info!("exchanges with server {} through {way}", self.server);
            Ok(shared)
        };
        let memory = self.memory.get_or_try_init(share).await?;
        Ok(memory.as_ref().map(|memory| memory.view.clone()))
    }

    /// Whether the connection broke that memory was shared over: then it is to be shared anew.
    fn is_stale(&self) -> bool {
        self.memory.get().and_then(Option::as_ref).is_some_and(Sight::has_ended)
    }
}

impl Servers {
    /// The servers that views have, and what to show them; for `patience`, a view may have one that is dead.
    pub fn new(views: watch::Receiver<ClusterView>, patience: Duration, credentials: Credentials) -> Servers {
        Servers { views, links: Arc::default(), patience, credentials, shown: None }
    }

    /// The same, for a process that shows its memory.
    pub(super) fn showing(self, offer: Offer) -> Servers {
        Servers { shown: Some(Arc::new(offer)), ..self }
    }

    /// The servers that hold a shard and take part in a commit, the one that leads first.
    pub(super) fn copies(&self, shard: ShardId, commit: Step) -> Vec<ServerId> {
        self.views.borrow().copies(shard, commit)
    }

    pub(super) fn view(&self) -> ClusterView {
        self.views.borrow().clone()
    }

    /// Calls a server, for as long as it takes part in a commit; nothing if it does not, or dies meanwhile while another
    /// has its shard.
    ///
    /// # Errors
    /// A server that refuses, or cannot be reached although it should be there.
    pub(super) async fn call<T>(
        &self,
        server: ServerId,
        commit: Step,
        work: impl AsyncFnOnce(Link) -> Result<T, TransportError>,
    ) -> Result<Option<T>, ExchangeError> {
        let (incarnation, address, is_single) = {
            let view = self.views.borrow();
            let Some(there) = view.server(server).filter(|there| there.since.includes(commit)) else { return Ok(None) };
            (there.incarnation, there.address.clone(), view.layout().is_single())
        };
        let mut views = self.views.clone();
        let is_gone = |view: &ClusterView| {
            let there = view.server(server).filter(|there| there.incarnation == incarnation);
            there.is_none_or(|there| !there.since.includes(commit))
        };
        let gone = async {
            if views.wait_for(is_gone).await.is_err() {
                // The coordinator is gone, which whoever waits for this is told.
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(gone);
        let attempt = async { work(self.link(server, incarnation, &address).await?).await };
        let problem = tokio::select! {
            biased;
            done = attempt => match done {
                Ok(done) => return Ok(Some(done)),
                Err(problem) => problem,
            },
            () = &mut gone, if !is_single => return Ok(None),
        };
        if is_single || matches!(problem, TransportError::Refused { .. }) {
            return Err(problem.into());
        }
        debug!("waiting for news of server {server}: {problem}");
        tokio::time::timeout(self.patience, gone).await.map(|()| None).map_err(|_| problem.into())
    }

    async fn link(&self, server: ServerId, incarnation: Incarnation, address: &str) -> Result<Link, TransportError> {
        let links = || self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let known = links().get(&(server, incarnation)).filter(|link| !link.is_stale()).cloned();
        if let Some(link) = known {
            return Ok(link);
        }
        let client = ShardClient::connect(server, address, &self.credentials).await?;
        let link = Link { server, client, shown: self.shown.clone(), memory: Arc::default() };
        let mut links = links();
        links.retain(|(other, theirs), link| *other != server || (*theirs == incarnation && !link.is_stale()));
        Ok(links.entry((server, incarnation)).or_insert(link).clone())
    }
}
