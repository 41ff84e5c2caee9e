//! A worker's traffic with all servers: initial parameters, pulls, and a step's push and pull.
//!
//! Where several servers hold a shard, a push goes to each of them, and blocks come from the one that leads: if one dies,
//! the others have all that it had.
//!
//! Gradients are sent from where they lie: a block's payload is a view into its tensor. What comes back is checked
//! against the block map and gathered into one vector a tensor.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::Bytes;
use convoy_proto::{
    blocks::{Block, BlockMap},
    codec::Encoding,
    config::Transport,
    ids::{BlockId, Era, Generation, Member, ShardId, Step},
    manifest::Manifest,
    messages::{DealtSlice, Extent, GradientBlock, ParameterBlock, PushHeader, Setback, Verdict, Wanted, Weights},
    shared::SharedError,
    sum,
    transport::TransportError,
    tree::Node,
};
use futures_util::future::try_join_all;
use tracing::warn;

mod gather;
mod pull;
mod servers;
mod staging;

use crate::{
    parameters::Tensors,
    step::{Contribution, Sum},
};
use gather::{Lent, Received};
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

/// A server's answer to a push, and the blocks that came before it, if they were asked for.
struct Answer {
    shard: ShardId,
    verdict: Result<Verdict, Setback>,
    blocks: Option<Received>,
}

/// A push that is answered.
struct Sent {
    answers: Vec<Answer>,
    /// Payload bytes.
    pushed: u64,
    /// Whether all who were told of it answered. Who did not is no longer counted on, but may not know that yet.
    is_whole: bool,
}

/// Why a push ends before all servers have answered it.
enum Halt {
    /// It was kept off.
    Setback(Setback),
    /// It failed.
    Failed(ExchangeError),
}

impl From<ExchangeError> for Halt {
    fn from(problem: ExchangeError) -> Halt {
        Halt::Failed(problem)
    }
}

/// The verdict that all servers gave, and the blocks of shards, where they came.
type Agreed = (Verdict, BTreeMap<ShardId, Received>);

/// What all servers say, which must be one thing; or what keeps the push off, if one of them says so.
fn agreed(at: Position, answers: Vec<Answer>) -> Result<Result<Agreed, Setback>, ExchangeError> {
    let mut verdict: Option<Verdict> = None;
    let mut pulled = BTreeMap::new();
    for Answer { shard, verdict: own, blocks } in answers {
        let own = match own {
            Ok(own) => own,
            Err(setback) => return Ok(Err(setback)),
        };
        let first = verdict.get_or_insert_with(|| own.clone());
        if !first.does_the_same_as(&own) {
            return Err(ExchangeError::Verdict { shard, step: at.step });
        }
        pulled.extend(blocks.map(|blocks| (shard, blocks)));
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

    /// All servers have gone beyond what they were shown.
    fn release(&self) {
        self.staging.iter().for_each(|staging| staging.release());
    }

    fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.map.shards()).map(ShardId)
    }

    /// A block's elements, as a range of its tensor's.
    fn within(&self, block: &Block) -> Range<usize> {
        let start = (block.start - self.manifest.tensors()[block.tensor].offset) as usize;
        start..start + block.len as usize
    }

    fn payload(&self, tensors: &Arc<Tensors>, block: &Block) -> Bytes {
        Bytes::from_owner(Part { tensors: tensors.clone(), tensor: block.tensor, range: self.within(block) })
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
        let Sent { answers, pushed, is_whole } = match self.send(at, contribution).await {
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
        let Sent { answers, pushed, is_whole } = match self.send(at, contribution).await {
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

    /// Sends a contribution to all servers that take part; gives their answers and the bytes that were pushed. Ends with
    /// the first that says that who takes part has changed: others may wait for what this one does not take.
    async fn send(&self, at: Position, contribution: &Contribution) -> Result<Sent, Halt> {
        let Contribution { headers, nodes, loss_scale, .. } = contribution.clone();
        let nodes = Arc::new(nodes);
        let Position { generation, era, step, sequence, dealt } = at;
        let (member, slices) = (self.member, headers);
        let header = PushHeader { member, generation, era, step, sequence, slices, loss_scale, dealt };
        // Where slices are dealt out, whoever is to take part takes part in all that are in hand.
        let commit = if dealt.is_some() { SOME_DAY } else { step };
        let copies = |shard| self.servers.copies(shard, commit).into_iter().zip(0..).map(move |place| (shard, place));
        let places: Vec<_> = self.shards().flat_map(copies).collect();
        let bytes_of = |shard| self.map.of_shard(shard).filter(|b| b.role.is_trained()).map(|b| b.bytes() as u64);
        let bytes: u64 = places.iter().flat_map(|(shard, _)| bytes_of(*shard)).sum();
        let told = places.len();
        let exchanges = places.into_iter().map(|(shard, (server, nth))| {
            let (header, nodes, wants_blocks) = (header.clone(), nodes.clone(), nth == 0);
            async move {
                let answer = self.servers.call(server, commit, async |link: Link| {
                    let (mut blocks, memory) = (Vec::new(), link.memory().await?);
                    let parts = self.gradient_blocks(shard, (nodes, memory.is_some()));
                    let wanted = Wanted { blocks: wants_blocks, shared: memory.is_some() };
                    let (verdict, lease) =
                        link.client.push_pull((header, wanted), parts, |block| blocks.push(block)).await?;
                    let lent = memory.map(|view| Lent { view, lease: Arc::new(lease) });
                    Ok(Answer { shard, verdict, blocks: wants_blocks.then_some(Received { blocks, lent }) })
                });
                match answer.await? {
                    Some(Answer { verdict: Err(setback @ Setback::Outdated(_)), .. }) => Err(Halt::Setback(setback)),
                    answer => Ok(answer),
                }
            }
        });
        let answers: Vec<_> = try_join_all(exchanges).await?.into_iter().flatten().collect();
        let has_answered = |shard: &ShardId| answers.iter().any(|answer| answer.shard == *shard);
        if let Some(shard) = self.shards().find(|shard| !has_answered(shard)) {
            // Who has it now came later, and knows nothing of this commit, which was made before.
            let is_there = !self.servers.copies(shard, SOME_DAY).is_empty();
            return Err(if is_there {
                Halt::Setback(Setback::Missed(step))
            } else {
                ExchangeError::Gone(shard).into()
            });
        }
        let encoded = |sum: &Sum, bytes: u64| match sum {
            Sum::Dense(_) => bytes,
            Sum::Encoded(encoded) => encoded.bytes() * (bytes / self.trained_bytes.max(1)),
        };
        let (pushed, is_whole) = (nodes.iter().map(|(_, sum)| encoded(sum, bytes)).sum(), answers.len() == told);
        Ok(Sent { answers, pushed, is_whole })
    }

    /// Every block of a shard for every node, block by block, so that all workers' parts of a block meet early; where the
    /// server sees them, if it does.
    fn gradient_blocks(
        &self,
        shard: ShardId,
        (nodes, is_shared): (Arc<Vec<(Node, Sum)>>, bool),
    ) -> impl Iterator<Item = GradientBlock> + Send + 'static {
        let this = self.clone();
        let blocks: Vec<Block> = self.map.of_shard(shard).filter(|b| b.role.is_trained()).collect();
        let plane = |sum: &Sum| match sum {
            Sum::Dense(tensors) => self.staging.as_ref().filter(|_| is_shared)?.plane(tensors),
            Sum::Encoded(_) => None,
        };
        let planes: Arc<Vec<_>> = Arc::new(nodes.iter().map(|(_, sum)| plane(sum)).collect());
        blocks.into_iter().flat_map(move |block| {
            let (this, nodes, planes) = (this.clone(), nodes.clone(), planes.clone());
            (0..nodes.len()).filter_map(move |at| {
                let (node, sum) = &nodes[at];
                let (encoding, payload, place) = match sum {
                    Sum::Encoded(encoded) => {
                        let (encoding, payload) = encoded.block(block.id)?;
                        (*encoding, payload.clone(), None)
                    }
                    Sum::Dense(tensors) => {
                        let values = &tensors[block.tensor][this.within(&block)];
                        let place = planes[at].as_ref().and_then(|plane| plane.place(&block, values));
                        (Encoding::F32, this.payload(tensors, &block), place)
                    }
                };
                Some(GradientBlock { block: block.id, node: *node, encoding, payload, place })
            })
        })
    }
}
