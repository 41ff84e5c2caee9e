//! Pulls: of one step, from the servers that lead, or of what is newest.

use convoy_proto::{
    ids::{Era, ShardId, Step},
    messages::{Extent, Pull, Since, Weights},
    transport::TransportError,
};
use futures_util::future::try_join_all;

use super::{Exchange, ExchangeError, Link, Pulled, Received, servers::SOME_DAY};
use crate::parameters::Tensors;

impl Exchange {
    /// All parameters that `step` starts from, or their moving average.
    ///
    /// # Errors
    /// A server that refuses, is gone, or sends what does not fit.
    pub async fn pull(&self, era: Era, step: Step, weights: Weights) -> Result<Tensors, ExchangeError> {
        self.pull_at(era, step, (weights, Extent::All)).await
    }

    async fn pull_at(
        &self,
        era: Era,
        step: Step,
        (weights, extent): (Weights, Extent),
    ) -> Result<Tensors, ExchangeError> {
        let pulls = self.shards().map(|shard| async move {
            let (_, blocks) = self.pull_shard(shard, (era, Some(step)), (weights, extent)).await?;
            Ok::<_, ExchangeError>((shard, blocks))
        });
        let pulled = try_join_all(pulls).await?.into_iter().collect();
        self.gather(pulled)
    }

    /// A shard's parameters, from the server that leads, or from another if it dies.
    pub(super) async fn pull_shard(
        &self,
        shard: ShardId,
        (era, step): (Era, Option<Step>),
        (weights, extent): (Weights, Extent),
    ) -> Result<(Step, Received), ExchangeError> {
        let pull = Pull { member: self.member, era, step, weights, extent, is_shared: false };
        let commit = step.unwrap_or(SOME_DAY);
        loop {
            let leader = self.servers.copies(shard, commit).first().copied().ok_or(ExchangeError::Gone(shard))?;
            let pulled = self.servers.call(leader, commit, async |link: Link| {
                let memory = link.memory().await?;
                let pull = Pull { is_shared: memory.is_some(), ..pull };
                let mut received = self.awaited((shard, extent), memory);
                let (step, lease) = link.client.pull(pull, |block| received.take(block)).await?;
                Ok((step, received.kept(lease)))
            });
            if let Some(pulled) = pulled.await? {
                return Ok(pulled);
            }
        }
    }

    /// The newest parameters, each shard's own; gives the oldest of the steps that start from them.
    ///
    /// # Errors
    /// A server that refuses, is gone, or sends what does not fit.
    pub async fn pull_newest(&self, era: Era, extent: Extent) -> Result<Pulled, ExchangeError> {
        let pulls = self.shards().map(|shard| async move {
            let (step, blocks) = self.pull_shard(shard, (era, None), (Weights::Trained, extent)).await?;
            Ok::<_, ExchangeError>((step, (shard, blocks)))
        });
        let pulled = try_join_all(pulls).await?;
        let steps: Vec<Step> = pulled.iter().map(|(step, _)| *step).collect();
        let blocks = pulled.into_iter().map(|(_, blocks)| blocks).collect();
        let (oldest, newest) = (steps.iter().min().copied(), steps.iter().max().copied());
        let tensors = self.gather(blocks)?;
        Ok(Pulled {
            step: oldest.unwrap_or(Step(0)),
            newest: newest.unwrap_or(Step(0)),
            tensors,
            bytes: self.trained_bytes,
        })
    }

    /// The newest parameters that all servers have at once: those of the one that is behind, which may wait for the caller.
    ///
    /// # Errors
    /// A server that refuses, is gone, or sends what does not fit.
    pub async fn pull_common(&self, era: Era, extent: Extent) -> Result<Pulled, ExchangeError> {
        loop {
            let behind = self.step_of_followers(era).await?;
            let pulled = self.pull_newest(era, extent).await?;
            let step = behind.map_or(pulled.step, |behind| behind.min(pulled.step));
            if step == pulled.newest {
                // What was pushed to a step before it can be summed up by nobody any more.
                self.release();
                return Ok(pulled);
            }
            match self.pull_at(era, step, (Weights::Trained, extent)).await {
                // It has been committed everywhere meanwhile, and more: look again.
                Err(ExchangeError::Transport(TransportError::Refused { .. })) => {}
                tensors => {
                    self.release();
                    return Ok(Pulled { step, newest: step, tensors: tensors?, ..pulled });
                }
            }
        }
    }

    /// The first step that some server has open which does not lead.
    async fn step_of_followers(&self, era: Era) -> Result<Option<Step>, ExchangeError> {
        let followers = self.shards().flat_map(|shard| self.servers.copies(shard, SOME_DAY).into_iter().skip(1));
        let (weights, extent) = (Weights::Trained, Extent::Nothing);
        let pull = Pull { member: self.member, era, step: None, weights, extent, is_shared: false };
        let asked = followers.map(|server| async move {
            let asked = self
                .servers
                .call(server, SOME_DAY, async |link: Link| link.client.pull(pull, drop).await.map(|(step, _)| step));
            match asked.await {
                // Its shard is on its way.
                Err(ExchangeError::Transport(TransportError::Refused { .. })) => {
                    let view = self.servers.view();
                    Ok(view.server(server).and_then(|there| match there.since {
                        Since::Commit(commit) => Some(commit),
                        Since::Beginning | Since::Waits => None,
                    }))
                }
                step => step,
            }
        });
        Ok(try_join_all(asked).await?.into_iter().flatten().min())
    }
}
