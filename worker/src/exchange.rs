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
    messages::{ClusterView, GradientBlock, ParameterBlock, Pull, PushHeader, Verdict, Weights},
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
    shards: Vec<ShardClient>,
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
        Ok(Exchange { member, manifest: Arc::new(manifest.clone()), map: Arc::new(map), shards })
    }

    fn payload(&self, tensors: &Arc<Tensors>, block: &Block) -> Bytes {
        let start = (block.start - self.manifest.tensors()[block.tensor].offset) as usize;
        let range = start..start + block.len as usize;
        Bytes::from_owner(View { tensors: tensors.clone(), tensor: block.tensor, range })
    }

    /// Sets the parameters of step 0 on every shard.
    ///
    /// # Errors
    /// A server that refuses, or is gone.
    pub async fn initialise(&self, tensors: Tensors) -> Result<(), ExchangeError> {
        let tensors = Arc::new(tensors);
        for (shard, client) in (0..).map(ShardId).zip(&self.shards) {
            let blocks: Vec<_> = self
                .map
                .of_shard(shard)
                .iter()
                .map(|block| ParameterBlock { block: block.id, payload: self.payload(&tensors, block) })
                .collect();
            client.initialise(self.member, blocks.into_iter()).await?;
        }
        Ok(())
    }

    /// All parameters that `step` starts from, or their moving average.
    ///
    /// # Errors
    /// A server that refuses, is gone, or sends what does not fit.
    pub async fn pull(&self, era: Era, step: Step, weights: Weights) -> Result<Tensors, ExchangeError> {
        let pull = Pull { member: self.member, era, step, weights };
        let pulls = (0..).map(ShardId).zip(&self.shards).map(|(shard, client)| async move {
            let mut blocks = Vec::new();
            client.pull(pull, |block| blocks.push(block)).await?;
            Ok::<_, ExchangeError>((shard, blocks))
        });
        let pulled = try_join_all(pulls).await?;
        self.gather(&pulled, |_| true)
    }

    /// Pushes a contribution to a step and takes the updated parameters, until every shard has committed it.
    ///
    /// # Errors
    /// A server that refuses, is gone, or sends what does not fit.
    pub async fn push_pull(
        &self,
        (generation, era, step): (Generation, Era, Step),
        contribution: Contribution,
    ) -> Result<Exchanged, ExchangeError> {
        let Contribution { headers, nodes, loss_scale, .. } = contribution;
        let nodes = Arc::new(nodes);
        let header = PushHeader { member: self.member, generation, era, step, slices: headers, loss_scale };
        let exchanges = (0..).map(ShardId).zip(&self.shards).map(|(shard, client)| {
            let (header, nodes) = (header.clone(), nodes.clone());
            async move {
                let mut blocks = Vec::new();
                let parts = self.gradient_blocks(shard, nodes);
                let verdict = client.push_pull(header, parts, |block| blocks.push(block)).await?;
                Ok::<_, ExchangeError>((shard, verdict, blocks))
            }
        });
        let done = try_join_all(exchanges).await?;
        let verdict = done[0].1.clone();
        if let Some((shard, ..)) = done.iter().find(|(_, other, _)| *other != verdict) {
            return Err(ExchangeError::Verdict { shard: *shard, step });
        }
        let pulled: Vec<_> = done.into_iter().map(|(shard, _, blocks)| (shard, blocks)).collect();
        let trained: u64 = self.map.blocks().iter().filter(|b| b.role.is_trained()).map(|b| b.bytes() as u64).sum();
        let tensors = self.gather(&pulled, |block| block.role.is_trained())?;
        Ok(Exchanged { verdict, tensors, pushed: trained * nodes.len() as u64, pulled: trained })
    }

    /// Every block of a shard for every node, block by block, so that all workers' parts of a block meet early.
    fn gradient_blocks(
        &self,
        shard: ShardId,
        nodes: Arc<Vec<(Node, Arc<Tensors>)>>,
    ) -> impl Iterator<Item = GradientBlock> + Send + 'static {
        let this = self.clone();
        let blocks: Vec<Block> = self.map.of_shard(shard).iter().filter(|b| b.role.is_trained()).copied().collect();
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
            let want = self.map.of_shard(*shard).iter().filter(|block| wanted(block));
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
