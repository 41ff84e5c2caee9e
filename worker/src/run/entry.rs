//! Taking up an era: connect to its servers, set the first parameters if that is this worker's part, and pull.
//!
//! An era may end while a worker takes it up, because a server dies: then it takes up the next.

use std::time::Duration;

use convoy_proto::{
    config::Transport,
    ids::{Era, WorkerId},
    messages::{Extent, Phase, Report},
    transport::Membership,
};
use tokio::runtime::Runtime;

use super::reports::Reports;
use crate::{
    exchange::{Exchange, Pulled, Servers},
    failure::WorkError,
    learner::Replica,
};

/// How much later than others this process may hear of a new era.
const NEWS: Duration = Duration::from_secs(2);

/// The beginning of an era.
pub(super) struct Entry {
    /// Which.
    pub era: Era,
    /// Connections to its servers.
    pub exchange: Exchange,
    /// The way of its reports.
    pub reports: Reports,
    /// What training goes on from.
    pub pulled: Pulled,
}

/// Where a worker's process belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub runtime: &'a Runtime,
    pub membership: &'a Membership,
    /// How long a new era may take to be heard of.
    pub patience: Duration,
    pub seed: u64,
    /// Whether slices are dealt out.
    pub is_dealt: bool,
    /// How tensors get to servers and back.
    pub transport: Transport,
}

impl Place<'_> {
    /// Takes up the era that is, or the first that can be taken up.
    pub fn enter(&self, replica: &dyn Replica) -> Result<Entry, WorkError> {
        loop {
            let reached = self.runtime.block_on(self.membership.reached(Phase::Initialising));
            let era = reached.ok_or(WorkError::Lost)?.era;
            match self.enter_era(era, replica) {
                Ok(entry) => return Ok(entry),
                Err(problem) => self.outlive(era, problem)?,
            }
        }
    }

    fn enter_era(&self, era: Era, replica: &dyn Replica) -> Result<Entry, WorkError> {
        let reports = Reports::start(self.runtime, (self.membership.clone(), era));
        let (exchange, pulled) = self.stay(era, async {
            let view = self.membership.view();
            let member = self.membership.member;
            let credentials = self.membership.coordinator.credentials().clone();
            let servers = Servers::new(self.membership.views(), self.patience, credentials);
            let exchange = Exchange::new(member, replica.manifest(), servers).sharing(self.transport, era)?;
            let is_empty = view.restore.is_none() && view.phase == Phase::Initialising;
            if is_empty && view.initialiser == WorkerId(member.rank) {
                exchange.initialise(era, replica.initial(self.seed)).await?;
                reports.queue().put(Report::Initialised).await;
            }
            self.membership.reached(Phase::Training).await.ok_or(WorkError::Lost)?;
            // A slice that is dealt out is computed with the newest, whatever a worker begins with.
            let pulled = match self.is_dealt {
                true => exchange.pull_newest(era, Extent::All).await?,
                false => exchange.pull_common(era, Extent::All).await?,
            };
            Ok((exchange, pulled))
        })?;
        Ok(Entry { era, exchange, reports, pulled })
    }

    /// Waits for something, but not if the coordinator is lost, or the era is over.
    pub fn stay<T>(&self, era: Era, work: impl Future<Output = Result<T, WorkError>>) -> Result<T, WorkError> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                done = work => done,
                () = self.membership.lost.cancelled() => Err(WorkError::Lost),
                () = self.over(era) => Err(WorkError::EraOver(era)),
            }
        })
    }

    /// Waits until an era is over.
    async fn over(&self, era: Era) {
        if self.membership.views().wait_for(|view| view.era > era).await.is_err() {
            // The coordinator is gone, which `lost` tells, too.
            std::future::pending::<()>().await;
        }
    }

    /// What failed may have failed because a server died: then there is a new era soon.
    pub fn outlive(&self, era: Era, problem: WorkError) -> Result<(), WorkError> {
        if !problem.is_of_others() {
            return Err(problem);
        }
        tracing::debug!("waiting for a new era: {problem}");
        // Whoever refuses because the era is over knows that from the coordinator, as this process will in a moment.
        let patience = if problem.is_refusal() { NEWS } else { self.patience };
        self.runtime.block_on(async {
            tokio::select! {
                () = self.membership.lost.cancelled() => Err(WorkError::Lost),
                over = tokio::time::timeout(patience, self.over(era)) => over.map_err(|_| problem),
            }
        })
    }
}
