//! A worker's traffic with all shards: initial parameters, pulls, and a step's push and pull.
//!
//! Gradients are sent from where they lie: a block's payload is a view into its tensor. What comes back is checked
//! against the block map and gathered into one vector a tensor.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use convoy_proto::{
    blocks::{Block, BlockMap},
    ids::{BlockId, Era, Generation, Member, ShardId, Step},
    manifest::Manifest,
    messages::{
        ClusterView, DealtSlice, Extent, GradientBlock, ParameterBlock, Pull, PushHeader, Setback, Verdict, Weights,
    },
    sum,
    transport::{ShardClient, TransportError},
    tree::Node,
};
use futures_util::future::try_join_all;

use crate::{parameters::Tensors, step::Contribution};

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A call failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A server sent a block that is not its own, or not of its size.
    #[error("server {shard} sent block {block} with {bytes} bytes, which does not fit the block map")]
    Block {
        /// The server.
        shard: ShardId,
        /// The block.
        block: BlockId,
        /// Its payload's size.
        bytes: usize,
    },
    /// A server did not send all its blocks.
    #[error("server {shard} sent {got} of its {want} blocks")]
    Missing {
        /// The server.
        shard: ShardId,
        /// How many came.
        got: usize,
        /// How many there are.
        want: usize,
    },
    /// A push that cannot come too late came too late.
    #[error("push {sequence} was refused as too late, where no push can be")]
    Dropped {
        /// Its number.
        sequence: u64,
    },
    /// Two shards disagree about a step: the one thing that must never happen.
    #[error("server {shard} decided step {step} differently from server 0")]
    Verdict {
        /// The server.
        shard: ShardId,
        /// The step.
        step: Step,
    },
}

/// Connections to all shards.
#[derive(Clone, Debug)]
pub struct Exchange {
    member: Member,
    manifest: Arc<Manifest>,
    map: Arc<BlockMap>,
    /// The size of what training changes.
    trained_bytes: u64,
    shards: Vec<ShardClient>,
}

/// What a push is a part of, and its number.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The membership that it acts on.
    pub generation: Generation,
    /// The era that it acts in.
    pub era: Era,
    /// The step that it contributes to, or whose parameters it was computed with.
    pub step: Step,
    /// Its number among the worker's pushes.
    pub sequence: u64,
    /// Where slices are dealt out: which it is.
    pub dealt: Option<DealtSlice>,
}

/// Parameters that were pulled without naming a step.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The step that starts from the oldest of them.
    pub step: Step,
    /// The step that starts from the newest of them.
    pub newest: Step,
    /// The tensors that training changes.
    pub tensors: Tensors,
    /// Payload bytes down.
    pub bytes: u64,
}

/// A shard's answer to a push, and the blocks that came before it.
type Answer = (ShardId, Result<Verdict, Setback>, Vec<ParameterBlock>);
/// The verdict that all shards gave, and their blocks.
type Agreed = (Verdict, Vec<(ShardId, Vec<ParameterBlock>)>);

/// What all shards say, which must be one thing; or what keeps the push off, if some shard says so.
fn agreed(at: Position, answers: Vec<Answer>) -> Result<Result<Agreed, Setback>, ExchangeError> {
    let mut verdict: Option<Verdict> = None;
    let mut pulled = Vec::new();
    for (shard, answer, blocks) in answers {
        let own = match answer {
            Ok(own) => own,
            Err(setback) => return Ok(Err(setback)),
        };
        let first = verdict.get_or_insert_with(|| own.clone());
        if !first.does_the_same_as(&own) {
            return Err(ExchangeError::Verdict { shard, step: at.step });
        }
        pulled.push((shard, blocks));
    }
    // A cluster has at least one server.
    Ok(verdict.map(|verdict| (verdict, pulled)).ok_or(Setback::Missed(at.step)))
}

/// A step that is committed on all shards.
#[derive(Clone, Debug)]
pub struct Exchanged {
    /// How it ended.
    pub verdict: Verdict,
    /// The new values of the tensors that training changes.
    pub tensors: Tensors,
    /// Payload bytes up.
    pub pushed: u64,
    /// Payload bytes down.
    pub pulled: u64,
}

/// A part of a tensor, as bytes that keep the tensor alive.
struct View {
    tensors: Arc<Tensors>,
    tensor: usize,
    range: Range<usize>,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        sum::payload_of(&self.tensors[self.tensor][self.range.clone()])
    }
}

impl Exchange {
    /// Connects to every shard of the view.
    ///
    /// # Errors
    /// A server that cannot be reached.
    pub async fn connect(member: Member, manifest: &Manifest, view: &ClusterView) -> Result<Exchange, ExchangeError> {
        let mut shards = Vec::new();
        for (shard, address) in (0..).map(ShardId).zip(&view.shards) {
            shards.push(ShardClient::connect(shard, address).await?);
        }
        let map = BlockMap::new(manifest, shards.len() as u32);
        let trained = map.blocks().filter(|block| block.role.is_trained());
        let trained_bytes = trained.map(|block| block.bytes() as u64).sum();
        Ok(Exchange { member, manifest: Arc::new(manifest.clone()), map: Arc::new(map), trained_bytes, shards })
    }

    fn payload(&self, tensors: &Arc<Tensors>, block: &Block) -> Bytes {
        let start = (block.start - self.manifest.tensors()[block.tensor].offset) as usize;
        let range = start..start + block.len as usize;
        Bytes::from_owner(View { tensors: tensors.clone(), tensor: block.tensor, range })
    }

    /// Sets the parameters of step 0 on every shard of an era.
    ///
    /// # Errors
    /// A server that refuses, or is gone.
    pub async fn initialise(&self, era: Era, tensors: Tensors) -> Result<(), ExchangeError> {
        let tensors = Arc::new(tensors);
        for (shard, client) in (0..).map(ShardId).zip(&self.shards) {
            let blocks: Vec<_> = self
                .map
                .of_shard(shard)
                .map(|block| ParameterBlock { block: block.id, payload: self.payload(&tensors, &block) })
                .collect();
            client.initialise((self.member, era), blocks.into_iter()).await?;
        }
        Ok(())
    }

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
        let pulls = (0..).map(ShardId).zip(&self.shards).map(|(shard, client)| async move {
            let (_, blocks) = self.pull_shard(client, (era, Some(step)), weights, extent).await?;
            Ok::<_, ExchangeError>((shard, blocks))
        });
        let pulled = try_join_all(pulls).await?;
        self.gather(&pulled, |block| extent == Extent::All || block.role.is_trained())
    }

    async fn pull_shard(
        &self,
        client: &ShardClient,
        (era, step): (Era, Option<Step>),
        weights: Weights,
        extent: Extent,
    ) -> Result<(Step, Vec<ParameterBlock>), ExchangeError> {
        let pull = Pull { member: self.member, era, step, weights, extent };
        let mut blocks = Vec::new();
        let step = client.pull(pull, |block| blocks.push(block)).await?;
        Ok((step, blocks))
    }

    /// The newest parameters, each shard's own; gives the oldest of the steps that start from them.
    ///
    /// # Errors
    /// A server that refuses, is gone, or sends what does not fit.
    pub async fn pull_newest(&self, era: Era, extent: Extent) -> Result<Pulled, ExchangeError> {
        let pulls = (0..).map(ShardId).zip(&self.shards).map(|(shard, client)| async move {
            let (step, blocks) = self.pull_shard(client, (era, None), Weights::Trained, extent).await?;
            Ok::<_, ExchangeError>((step, (shard, blocks)))
        });
        let pulled = try_join_all(pulls).await?;
        let steps: Vec<Step> = pulled.iter().map(|(step, _)| *step).collect();
        let blocks: Vec<_> = pulled.into_iter().map(|(_, blocks)| blocks).collect();
        let (oldest, newest) = (steps.iter().min().copied(), steps.iter().max().copied());
        let tensors = self.gather(&blocks, |block| extent == Extent::All || block.role.is_trained())?;
        Ok(Pulled {
            step: oldest.unwrap_or(Step(0)),
            newest: newest.unwrap_or(Step(0)),
            tensors,
            bytes: self.trained_bytes,
        })
    }

    /// The newest parameters that all shards have at once: those of the shard that is behind, which may wait for the caller.
    ///
    /// # Errors
    /// A server that refuses, is gone, or sends what does not fit.
    pub async fn pull_common(&self, era: Era, extent: Extent) -> Result<Pulled, ExchangeError> {
        loop {
            let pulled = self.pull_newest(era, extent).await?;
            if pulled.step == pulled.newest {
                return Ok(pulled);
            }
            match self.pull_at(era, pulled.step, (Weights::Trained, extent)).await {
                // It has been committed everywhere meanwhile, and more: look again.
                Err(ExchangeError::Transport(TransportError::Refused { .. })) => {}
                tensors => return Ok(Pulled { newest: pulled.step, tensors: tensors?, ..pulled }),
            }
        }
    }

    /// Pushes a contribution to a step and takes the updated parameters, until every shard has committed it; nothing if
    /// it came too late for some shard, which has gone on without it.
    ///
    /// # Errors
    /// A server that refuses, is gone, or sends what does not fit.
    pub async fn push_pull(
        &self,
        at: Position,
        contribution: &Contribution,
    ) -> Result<Result<Exchanged, Setback>, ExchangeError> {
        let (answers, pushed) = self.send(at, contribution).await?;
        let (verdict, pulled) = match agreed(at, answers)? {
            Ok(agreed) => agreed,
            Err(setback) => return Ok(Err(setback)),
        };
        let tensors = self.gather(&pulled, |block| block.role.is_trained())?;
        Ok(Ok(Exchanged { verdict, tensors, pushed, pulled: self.trained_bytes }))
    }

    /// Pushes a slice that was dealt out, until every shard has committed it; gives the bytes that were pushed, too.
    ///
    /// # Errors
    /// A server that refuses, or is gone.
    pub async fn push(
        &self,
        at: Position,
        contribution: &Contribution,
    ) -> Result<Option<(Verdict, u64)>, ExchangeError> {
        let (answers, pushed) = self.send(at, contribution).await?;
        Ok(agreed(at, answers)?.ok().map(|(verdict, _)| (verdict, pushed)))
    }

    /// Sends a contribution to all shards; gives their answers and the bytes that were pushed.
    async fn send(&self, at: Position, contribution: &Contribution) -> Result<(Vec<Answer>, u64), ExchangeError> {
        let Contribution { headers, nodes, loss_scale, .. } = contribution.clone();
        let nodes = Arc::new(nodes);
        let Position { generation, era, step, sequence, dealt } = at;
        let (member, slices) = (self.member, headers);
        let header = PushHeader { member, generation, era, step, sequence, slices, loss_scale, dealt };
        let exchanges = (0..).map(ShardId).zip(&self.shards).map(|(shard, client)| {
            let (header, nodes) = (header.clone(), nodes.clone());
            async move {
                let mut blocks = Vec::new();
                let parts = self.gradient_blocks(shard, nodes);
                let outcome = client.push_pull(header, parts, |block| blocks.push(block)).await?;
                Ok::<_, ExchangeError>((shard, outcome, blocks))
            }
        });
        Ok((try_join_all(exchanges).await?, self.trained_bytes * nodes.len() as u64))
    }

    /// Every block of a shard for every node, block by block, so that all workers' parts of a block meet early.
    fn gradient_blocks(
        &self,
        shard: ShardId,
        nodes: Arc<Vec<(Node, Arc<Tensors>)>>,
    ) -> impl Iterator<Item = GradientBlock> + Send + 'static {
        let this = self.clone();
        let blocks: Vec<Block> = self.map.of_shard(shard).filter(|b| b.role.is_trained()).collect();
        blocks.into_iter().flat_map(move |block| {
            let (this, nodes) = (this.clone(), nodes.clone());
            (0..nodes.len()).map(move |at| {
                let (node, tensors) = &nodes[at];
                GradientBlock { block: block.id, node: *node, payload: this.payload(tensors, &block) }
            })
        })
    }

    /// Puts blocks into tensors; tensors of which no block is wanted stay empty.
    fn gather(
        &self,
        pulled: &[(ShardId, Vec<ParameterBlock>)],
        wanted: impl Fn(&Block) -> bool,
    ) -> Result<Tensors, ExchangeError> {
        let mut tensors: Tensors = vec![Vec::new(); self.manifest.tensors().len()];
        for (shard, blocks) in pulled {
            let want = self.map.of_shard(*shard).filter(|block| wanted(block));
            let (mut got, count) = (0, want.clone().count());
            for (expected, received) in want.zip(blocks) {
                if received.block != expected.id || received.payload.len() != expected.bytes() {
                    let (block, bytes) = (received.block, received.payload.len());
                    return Err(ExchangeError::Block { shard: *shard, block, bytes });
                }
                let entry = &self.manifest.tensors()[expected.tensor];
                let values = &mut tensors[expected.tensor];
                if values.is_empty() {
                    values.resize(entry.elements() as usize, 0.0);
                }
                let start = (expected.start - entry.offset) as usize;
                sum::read_payload(&mut values[start..start + expected.len as usize], &received.payload);
                got += 1;
            }
            if got != count || blocks.len() != count {
                return Err(ExchangeError::Missing { shard: *shard, got: blocks.len(), want: count });
            }
        }
        Ok(tensors)
    }
}
