//! A worker's traffic with all servers: initial parameters, pulls, and a step's push and pull.
//!
//! Where several servers hold a shard, a push goes to each of them, and blocks come from the one that leads: if one dies,
//! the others have all that it had.
//!
//! Gradients are sent from where they lie: a block's payload is a view into its tensor. What comes back is checked
//! against the block map and gathered into one vector a tensor.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use convoy_proto::{
    blocks::{Block, BlockMap},
    config::Transport,
    ids::{BlockId, Era, Generation, Member, ShardId, Step},
    manifest::Manifest,
    messages::{DealtSlice, Extent, ParameterBlock, Setback, Verdict, Weights},
    shared::SharedError,
    sum,
    transport::TransportError,
};
use tracing::warn;

mod gather;
mod marks;
mod pull;
mod push;
mod servers;
mod staging;

use crate::{parameters::Tensors, step::Contribution};
use gather::Received;
pub use marks::Spent;
use push::{Halt, Sent, agreed};
pub use servers::Servers;
use servers::{Link, Offer, SOME_DAY};
use staging::Staging;

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A call failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A server sent a block that is not its own, or not of its size.
    #[error("the server of shard {shard} sent block {block} with {bytes} bytes, which does not fit the block map")]
    Block {
        /// The shard.
        shard: ShardId,
        /// The block.
        block: BlockId,
        /// Its payload's size.
        bytes: u64,
    },
    /// A server did not send all its blocks.
    #[error("the server of shard {shard} sent {got} of its {want} blocks")]
    Missing {
        /// The shard.
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
    /// Two servers disagree about a step: the one thing that must never happen.
    #[error("a server of shard {shard} decided step {step} differently from those before it")]
    Verdict {
        /// The shard.
        shard: ShardId,
        /// The step.
        step: Step,
    },
    /// Memory cannot be shared.
    #[error(transparent)]
    Shared(#[from] SharedError),
    /// All servers that held a shard are gone: a new era is about to begin.
    #[error("no server has shard {0} any more")]
    Gone(ShardId),
}

/// Connections to all servers.
#[derive(Clone, Debug)]
pub struct Exchange {
    member: Member,
    manifest: Arc<Manifest>,
    map: Arc<BlockMap>,
    /// The size of what training changes.
    trained_bytes: u64,
    servers: Servers,
    /// Memory for gradients, where servers on this machine read them.
    staging: Option<Arc<Staging>>,
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
    /// Where the time went.
    pub spent: Spent,
}

/// A part of a tensor, as bytes that keep the tensor alive.
struct Part {
    tensors: Arc<Tensors>,
    tensor: usize,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        sum::payload_of(&self.tensors[self.tensor][self.range.clone()])
    }
}

impl Exchange {
    /// Of a member, to servers.
    pub fn new(member: Member, manifest: &Manifest, servers: Servers) -> Exchange {
        let map = BlockMap::new(manifest, servers.view().shards);
        let trained = map.blocks().filter(|block| block.role.is_trained());
        let trained_bytes = trained.map(|block| block.bytes() as u64).sum();
        let (manifest, map) = (Arc::new(manifest.clone()), Arc::new(map));
        Exchange { member, manifest, map, trained_bytes, servers, staging: None }
    }

    /// The same in an era, through shared memory as far as the transport allows.
    ///
    /// # Errors
    /// Memory has to be shared, and there is none.
    pub fn sharing(self, transport: Transport, era: Era) -> Result<Exchange, ExchangeError> {
        if transport == Transport::Grpc {
            return Ok(self);
        }
        let is_required = transport == Transport::Shm;
        let staging = match Staging::new(&self.map) {
            Ok(staging) => staging,
            Err(problem) if is_required => return Err(problem.into()),
            Err(problem) => {
                warn!("everything goes through connections: {problem}");
                return Ok(self);
            }
        };
        let offer = Offer { member: self.member, era, segment: staging.pass(), is_required };
        Ok(Exchange { servers: self.servers.showing(offer), staging: Some(Arc::new(staging)), ..self })
    }

    /// All servers have gone beyond what they were shown, or the era is over and they do nothing more with it.
    pub fn release(&self) {
        self.staging.iter().for_each(|staging| staging.release());
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.map.shards()).map(ShardId)
    }

    fn payload(&self, tensors: &Arc<Tensors>, block: &Block) -> Bytes {
        Bytes::from_owner(Part { tensors: tensors.clone(), tensor: block.tensor, range: self.map.within(block) })
    }

    /// Sets the parameters of step 0 on every server of an era.
    ///
    /// # Errors
    /// A server that refuses, or is gone.
    pub async fn initialise(&self, era: Era, tensors: Tensors) -> Result<(), ExchangeError> {
        let tensors = Arc::new(tensors);
        for shard in self.shards() {
            for server in self.servers.copies(shard, SOME_DAY) {
                let blocks: Vec<_> = self
                    .map
                    .of_shard(shard)
                    .map(|block| ParameterBlock {
                        block: block.id,
                        payload: self.payload(&tensors, &block),
                        place: None,
                    })
                    .collect();
                let set = self.servers.call(server, SOME_DAY, async |link: Link| {
                    link.client.initialise((self.member, era), blocks.into_iter()).await
                });
                set.await?.ok_or(ExchangeError::Gone(shard))?;
            }
        }
        Ok(())
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
        let Sent { answers, pushed, is_whole, marks } = match self.send(at, contribution).await {
            Ok(sent) => sent,
            Err(Halt::Setback(setback)) => return Ok(Err(setback)),
            Err(Halt::Failed(problem)) => return Err(problem),
        };
        let (verdict, mut pulled) = match agreed(at, answers)? {
            Ok(agreed) => agreed,
            Err(setback) => return Ok(Err(setback)),
        };
        let step = Some(at.step.next());
        for shard in self.shards().filter(|shard| !pulled.contains_key(shard)).collect::<Vec<_>>() {
            // Who led is gone.
            match self.pull_shard(shard, (at.era, step), (Weights::Trained, Extent::Trained)).await {
                Ok((_, blocks)) => drop(pulled.insert(shard, blocks)),
                Err(ExchangeError::Transport(TransportError::Refused { .. })) => {
                    return Ok(Err(Setback::Missed(at.step)));
                }
                Err(problem) => return Err(problem),
            }
        }
        if is_whole {
            self.release();
        }
        let spent = marks.spent(at.step.0);
        let tensors = self.gather(pulled)?;
        Ok(Ok(Exchanged { verdict, tensors, pushed, pulled: self.trained_bytes, spent }))
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
        let Sent { answers, pushed, is_whole, .. } = match self.send(at, contribution).await {
            Ok(sent) => sent,
            Err(Halt::Setback(_)) => return Ok(None),
            Err(Halt::Failed(problem)) => return Err(problem),
        };
        let agreed = agreed(at, answers)?.ok();
        if agreed.is_some() && is_whole {
            self.release();
        }
        Ok(agreed.map(|(verdict, _)| (verdict, pushed)))
    }
}
