//! Connections to the servers that there are, as the view of the cluster changes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use convoy_proto::{
    ids::{Incarnation, ServerId, ShardId, Step},
    messages::ClusterView,
    transport::{Credentials, ShardClient, TransportError},
};
use tokio::sync::watch;
use tracing::debug;

use super::ExchangeError;

/// The commit after all others: who takes part in it has been told when to begin.
pub(super) const SOME_DAY: Step = Step(u64::MAX);

/// The servers of a cluster. Clones share the connections.
#[derive(Clone, Debug)]
pub struct Servers {
    views: watch::Receiver<ClusterView>,
    clients: Arc<Mutex<BTreeMap<(ServerId, Incarnation), ShardClient>>>,
    /// How long after a server's death the view may still have it.
    patience: Duration,
    credentials: Credentials,
}

impl Servers {
    /// The servers that views have, and what to show them; for `patience`, a view may have one that is dead.
    pub fn new(views: watch::Receiver<ClusterView>, patience: Duration, credentials: Credentials) -> Servers {
        Servers { views, clients: Arc::default(), patience, credentials }
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
        work: impl AsyncFnOnce(ShardClient) -> Result<T, TransportError>,
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
        let attempt = async { work(self.client(server, incarnation, &address).await?).await };
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

    async fn client(
        &self,
        server: ServerId,
        incarnation: Incarnation,
        address: &str,
    ) -> Result<ShardClient, TransportError> {
        let clients = || self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let known = clients().get(&(server, incarnation)).cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let client = ShardClient::connect(server, address, &self.credentials).await?;
        let mut clients = clients();
        clients.retain(|(other, _), _| *other != server);
        Ok(clients.entry((server, incarnation)).or_insert(client).clone())
    }
}
