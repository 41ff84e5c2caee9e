//! Verdicts that need all shards: the norm of a gradient that lies on several of them.

use std::collections::BTreeMap;

use convoy_proto::{
    ids::{BlockId, ShardId, Step},
    messages::{Accumulated, Verdict},
};

/// A part that cannot belong to the same step's decision as the others.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DecisionError {
    /// Two shards derived different verdicts from what must be the same headers.
    #[error("server {0} proposes another verdict on step {1} than the servers before it")]
    Disagreement(ShardId, Step),
    /// There is no such shard.
    #[error("there is no server {0}")]
    UnknownShard(ShardId),
    /// The run does not clip.
    #[error("this run needs no common decision")]
    Needless,
}

/// The parts of the open decision.
#[derive(Clone, Debug)]
pub struct Decisions {
    shards: u32,
    max_norm: Option<f64>,
    parts: BTreeMap<ShardId, Accumulated>,
    last: Option<Verdict>,
}

impl Decisions {
    /// No part yet, of so many shards; `max_norm` is what gradients are clipped to.
    pub fn new(shards: u32, max_norm: Option<f64>) -> Decisions {
        Decisions { shards, max_norm, parts: BTreeMap::new(), last: None }
    }

    /// Adds a shard's part; gives the verdict once all are there, and again to a shard that asks again.
    ///
    /// # Errors
    /// A part that does not belong; the decision stays as it was.
    pub fn add(&mut self, part: Accumulated) -> Result<Option<Verdict>, DecisionError> {
        let (shard, step) = (part.shard, part.proposal.step);
        let max_norm = self.max_norm.ok_or(DecisionError::Needless)?;
        if shard.0 >= self.shards {
            return Err(DecisionError::UnknownShard(shard));
        }
        if let Some(last) = self.last.as_ref().filter(|last| last.step == step) {
            return Ok(Some(last.clone()));
        }
        if self.parts.values().any(|other| other.proposal != part.proposal) {
            return Err(DecisionError::Disagreement(shard, step));
        }
        let proposal = part.proposal.clone();
        self.parts.insert(shard, part);
        if self.parts.len() < self.shards as usize {
            return Ok(None);
        }
        // In the order of the manifest, which is that of the blocks, so that the sum does not depend on the shards.
        let squares: BTreeMap<BlockId, f64> =
            std::mem::take(&mut self.parts).into_values().flat_map(|part| part.norms).collect();
        let verdict = proposal.clipped(squares.into_values(), max_norm);
        self.last = Some(verdict.clone());
        Ok(Some(verdict))
    }

    /// Shards whose part is missing while others wait.
    pub fn awaited(&self) -> Vec<ShardId> {
        let missing = (0..self.shards).map(ShardId).filter(|shard| !self.parts.contains_key(shard));
        if self.parts.is_empty() { Vec::new() } else { missing.collect() }
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::{
        ids::{Era, SliceId},
        messages::SliceHeader,
        tree::SliceTree,
    };

    use super::*;

    fn part(shard: u32, loss_sum: f64, norms: &[(u64, f64)]) -> Accumulated {
        let header = SliceHeader { slice: SliceId(0), weight: 2.0, loss_sum, finite: true };
        let proposal = Verdict::from_headers(Step(3), SliceTree::new(1), &[header], 0.1);
        let norms = norms.iter().map(|(block, square)| (BlockId(*block), *square)).collect();
        Accumulated { shard: ShardId(shard), era: Era(0), proposal, norms }
    }

    #[test]
    fn the_last_part_makes_the_verdict() {
        let mut decisions = Decisions::new(2, Some(1.0));
        assert_eq!(decisions.add(part(1, 1.0, &[(1, 64.0)])), Ok(None));
        assert_eq!(decisions.awaited(), [ShardId(0)]);
        let verdict = decisions.add(part(0, 1.0, &[(0, 36.0)])).unwrap().unwrap();
        assert_eq!((verdict.gradient_norm, verdict.clip), (Some(5.0), 0.2));
        assert_eq!(decisions.add(part(1, 1.0, &[])), Ok(Some(verdict)), "who asks again gets the same");
        assert_eq!(decisions.awaited(), []);
    }

    #[test]
    fn what_does_not_belong_is_refused() {
        let mut decisions = Decisions::new(2, Some(1.0));
        decisions.add(part(1, 1.0, &[])).unwrap();
        assert_eq!(decisions.add(part(0, 2.0, &[])), Err(DecisionError::Disagreement(ShardId(0), Step(3))));
        assert_eq!(decisions.add(part(7, 1.0, &[])), Err(DecisionError::UnknownShard(ShardId(7))));
        assert_eq!(Decisions::new(1, None).add(part(0, 1.0, &[])), Err(DecisionError::Needless));
    }
}
