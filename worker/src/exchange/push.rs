//! A push on its way to all servers that take part in it, and what they answer.

use std::{collections::BTreeMap, sync::Arc};

use convoy_proto::{
    blocks::Block,
    codec::Encoding,
    ids::ShardId,
    messages::{Extent, GradientBlock, PushHeader, Setback, Verdict, Wanted},
    trace,
    tree::Node,
};
use futures_util::future::try_join_all;

use super::{
    Exchange, ExchangeError, Position,
    gather::Received,
    marks::Marks,
    servers::{Link, SOME_DAY},
};
use crate::step::{Contribution, Sum};

/// A server's answer to a push, and the blocks that came before it, if they were asked for.
pub(super) struct Answer {
    pub shard: ShardId,
    pub verdict: Result<Verdict, Setback>,
    pub blocks: Option<Received>,
}

/// A push that is answered.
pub(super) struct Sent {
    pub answers: Vec<Answer>,
    /// Payload bytes.
    pub pushed: u64,
    /// Whether all who were told of it answered. Who did not is no longer counted on, but may not know that yet.
    pub is_whole: bool,
    /// When its parts ended.
    pub marks: Arc<Marks>,
}

/// Why a push ends before all servers have answered it.
pub(super) enum Halt {
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
pub(super) type Agreed = (Verdict, BTreeMap<ShardId, Received>);

/// What all servers say, which must be one thing; or what keeps the push off, if one of them says so.
pub(super) fn agreed(at: Position, answers: Vec<Answer>) -> Result<Result<Agreed, Setback>, ExchangeError> {
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

impl Exchange {
    /// Sends a contribution to all servers that take part; gives their answers and the bytes that were pushed. Ends with
    /// the first that says that who takes part has changed: others may wait for what this one does not take.
    pub(super) async fn send(&self, at: Position, contribution: &Contribution) -> Result<Sent, Halt> {
        let Contribution { headers, nodes, loss_scale, .. } = contribution.clone();
        let Position { generation, era, step, sequence, dealt } = at;
        let marks = Marks::begin(dealt.map_or(step.0, |dealt| dealt.step));
        let (nodes, marks) = (Arc::new(nodes), Arc::new(marks));
        let (member, slices) = (self.member, headers);
        let header = PushHeader { member, generation, era, step, sequence, slices, loss_scale, dealt };
        // Where slices are dealt out, whoever is to take part takes part in all that are in hand.
        let commit = if dealt.is_some() { SOME_DAY } else { step };
        let copies = |shard| self.servers.copies(shard, commit).into_iter().zip(0..).map(move |place| (shard, place));
        let places: Vec<_> = self.shards().flat_map(copies).collect();
        let bytes = |shard: ShardId| nodes.iter().map(|(_, sum)| self.bytes_of(shard, sum)).sum::<u64>();
        let (told, pushed) = (places.len(), places.iter().map(|(shard, _)| bytes(*shard)).sum());
        let exchanges = places.into_iter().map(|(shard, (server, nth))| {
            let (header, nodes, wants_blocks) = (header.clone(), nodes.clone(), nth == 0);
            let marks = marks.clone();
            async move {
                let answer = self.servers.call(server, commit, async |link: Link| {
                    let memory = link.memory().await?;
                    let parts = self.gradient_blocks(shard, (nodes, memory.is_some()));
                    let parts = parts.chain(end_of(marks.clone()));
                    let wanted = Wanted { blocks: wants_blocks, shared: memory.is_some() };
                    let mut received = self.awaited((shard, Extent::Trained), memory);
                    let taken = |block| {
                        marks.answered();
                        received.take(block);
                    };
                    let exchange = link.client.push_pull((header, wanted), parts, taken);
                    let (verdict, lease) = exchange.await?;
                    Ok(Answer { shard, verdict, blocks: wants_blocks.then(|| received.kept(lease)) })
                });
                match answer.await? {
                    Some(Answer { verdict: Err(setback @ Setback::Outdated(_)), .. }) => Err(Halt::Setback(setback)),
                    answer => Ok(answer),
                }
            }
        });
        let exchanged = trace::calling(marks.caller(), try_join_all(exchanges)).await?;
        let answers: Vec<_> = exchanged.into_iter().flatten().collect();
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
        let is_whole = answers.len() == told;
        Ok(Sent { answers, pushed, is_whole, marks })
    }

    /// The blocks of a shard that are pushed.
    fn pushed_blocks(&self, shard: ShardId) -> impl Iterator<Item = Block> {
        self.map.of_shard(shard).filter(|block| block.role.is_trained())
    }

    /// Payload bytes of a sum's blocks on a shard.
    fn bytes_of(&self, shard: ShardId, sum: &Sum) -> u64 {
        let bytes = |block: Block| match sum {
            Sum::Dense(_) => block.bytes(),
            Sum::Encoded(encoded) => encoded.block(block.id).map_or(0, |(_, payload)| payload.len()),
        };
        self.pushed_blocks(shard).map(bytes).sum::<usize>() as u64
    }

    /// Every block of a shard for every node, block by block, so that all workers' parts of a block meet early; where the
    /// server sees them, if it does.
    fn gradient_blocks(
        &self,
        shard: ShardId,
        (nodes, is_shared): (Arc<Vec<(Node, Sum)>>, bool),
    ) -> impl Iterator<Item = GradientBlock> + Send + 'static {
        let this = self.clone();
        let blocks: Vec<Block> = self.pushed_blocks(shard).collect();
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
                        let values = &tensors[block.tensor][this.map.within(&block)];
                        let place = planes[at].as_ref().and_then(|plane| plane.place(&block, values));
                        (Encoding::F32, this.payload(tensors, &block), place)
                    }
                };
                Some(GradientBlock { block: block.id, node: *node, encoding, payload, place })
            })
        })
    }
}

/// What ends the blocks for a server: nothing, at whose turn it is noted that all before are gone.
fn end_of(marks: Arc<Marks>) -> impl Iterator<Item = GradientBlock> + Send + 'static {
    std::iter::from_fn(move || {
        marks.pushed();
        None
    })
    .fuse()
}
