//! Verdicts that need all shards: the norm of a gradient that lies on several of them.

use std::collections::BTreeMap;

use convoy_proto::{
    blocks::BlockMap,
    config::Config,
    ids::{ServerId, Step},
    layout::Layout,
    manifest::Manifest,
    messages::{Accumulated, Norms, Since, Verdict},
    optimizer::Optimizer,
    trust,
};

/// A part that cannot belong to the same step's decision as the others.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DecisionError {
    /// Two servers derived different verdicts from what must be the same headers.
    #[error("server {0} proposes another verdict on step {1} than the servers before it")]
    Disagreement(ServerId, Step),
    /// There is no such server.
    #[error("there is no server {0}")]
    UnknownServer(ServerId),
    /// The run does not clip.
    #[error("this run needs no common decision")]
    Needless,
}

/// What a decision is about. A step under a layerwise rule that clips has both, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Matter {
    /// The factor that clips the gradient.
    Clip,
    /// The factors of tensors.
    Trust,
}

/// The parts of the open decision.
#[derive(Clone, Debug)]
pub struct Decisions {
    /// The servers that are counted on, each from a commit on.
    servers: BTreeMap<ServerId, Since>,
    max_norm: Option<f64>,
    is_layerwise: bool,
    map: BlockMap,
    parts: BTreeMap<ServerId, Accumulated>,
    last: BTreeMap<Matter, Verdict>,
}

impl Decisions {
    /// No part yet, of a run's shards.
    pub fn new(config: &Config, manifest: &Manifest) -> Decisions {
        let optimizer = Optimizer::of_servers(config);
        Decisions {
            servers: (0..Layout::of(config).servers()).map(|rank| (ServerId(rank), Since::Beginning)).collect(),
            max_norm: optimizer.clip_norm,
            is_layerwise: optimizer.rule.is_layerwise(),
            map: BlockMap::new(manifest, config.servers),
            parts: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    /// Counts on these servers, each from its commit on.
    pub fn count_on(&mut self, servers: BTreeMap<ServerId, Since>) {
        self.parts.retain(|server, _| servers.contains_key(server));
        self.servers = servers;
    }

    /// The servers whose parts are missing.
    fn missing(&self) -> impl Iterator<Item = ServerId> {
        let step = self.parts.values().next().map_or(Step(0), |part| part.proposal.step);
        let needed = self.servers.iter().filter(move |(_, since)| since.includes(step));
        needed.map(|(server, _)| *server).filter(|server| !self.parts.contains_key(server))
    }

    /// The verdict, once all parts are there.
    pub fn settle(&mut self) -> Option<Verdict> {
        let one = self.parts.values().next()?;
        let matter = if matches!(one.norms, Norms::Gradient(_)) { Matter::Clip } else { Matter::Trust };
        if self.missing().next().is_some() {
            return None;
        }
        let verdict = self.decide(matter);
        self.last.extend(verdict.clone().map(|verdict| (matter, verdict)));
        verdict
    }

    /// Adds a server's part; gives the verdict once all are there, and again to a server that asks again.
    ///
    /// # Errors
    /// A part that does not belong; the decision stays as it was.
    pub fn add(&mut self, part: Accumulated) -> Result<Option<Verdict>, DecisionError> {
        let (server, step) = (part.server, part.proposal.step);
        let (matter, is_needed) = match part.norms {
            Norms::Gradient(_) => (Matter::Clip, self.max_norm.is_some()),
            Norms::Direction(_) => (Matter::Trust, self.is_layerwise),
        };
        if !is_needed {
            return Err(DecisionError::Needless);
        }
        if !self.servers.contains_key(&server) {
            return Err(DecisionError::UnknownServer(server));
        }
        if let Some(last) = self.last.get(&matter).filter(|last| last.step == step) {
            return Ok(Some(last.clone()));
        }
        let differs = |other: &Accumulated| {
            let same_matter = matches!(other.norms, Norms::Gradient(_)) == (matter == Matter::Clip);
            !same_matter || !other.proposal.does_the_same_as(&part.proposal)
        };
        if self.parts.values().any(differs) {
            return Err(DecisionError::Disagreement(server, step));
        }
        self.parts.insert(server, part);
        Ok(self.settle())
    }

    /// The verdict that all parts together make.
    fn decide(&mut self, matter: Matter) -> Option<Verdict> {
        let parts: Vec<_> = std::mem::take(&mut self.parts).into_values().collect();
        let proposal = parts.first()?.proposal.clone();
        // In the order of the manifest, which is that of the blocks, so that the sum does not depend on the shards.
        let (mut gradient, mut direction) = (BTreeMap::new(), BTreeMap::new());
        for part in parts {
            match part.norms {
                Norms::Gradient(norms) => gradient.extend(norms),
                Norms::Direction(norms) => direction.extend(norms),
            }
        }
        match matter {
            Matter::Clip => Some(proposal.clipped(gradient.into_values(), self.max_norm?)),
            Matter::Trust => Some(proposal.trusting(trust::ratios(&self.map, &direction))),
        }
    }

    /// Servers whose part is missing while others wait.
    pub fn awaited(&self) -> Vec<ServerId> {
        if self.parts.is_empty() { Vec::new() } else { self.missing().collect() }
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::{
        config::layers::Layers,
        ids::{BlockId, Era, SliceId},
        manifest::TensorRole,
        messages::{SliceHeader, Squares, Terms},
        tree::SliceTree,
    };

    use super::*;

    fn decisions(optimizer: &str) -> Decisions {
        let text = format!("servers = 2\n[optimizer]\n{optimizer}");
        let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        let tensor = |name: &str| (name.to_string(), vec![4], TensorRole::Trainable);
        Decisions::new(&config, &Manifest::new([tensor("a"), tensor("b")]).unwrap())
    }

    fn part(shard: u32, loss_sum: f64, norms: Norms) -> Accumulated {
        let header = SliceHeader { slice: SliceId(0), weight: 2.0, loss_sum, finite: true };
        let terms = Terms { learning_rate: 0.1, loss_scale: 1.0 };
        let proposal = Verdict::from_headers(Step(3), SliceTree::new(1), &[header], terms);
        Accumulated { server: ServerId(shard), era: Era(0), proposal, norms }
    }

    fn gradient(shard: u32, loss_sum: f64, norms: &[(u64, f64)]) -> Accumulated {
        let norms = norms.iter().map(|(block, square)| (BlockId(*block), *square)).collect();
        part(shard, loss_sum, Norms::Gradient(norms))
    }

    fn direction(shard: u32, direction: f64, parameters: f64) -> Accumulated {
        let squares = Squares { direction, parameters };
        part(shard, 1.0, Norms::Direction(vec![(BlockId(shard.into()), squares)]))
    }

    #[test]
    fn the_last_part_makes_the_verdict() {
        let mut decisions = decisions("clip_norm = 1.0");
        assert_eq!(decisions.add(gradient(1, 1.0, &[(1, 64.0)])), Ok(None));
        assert_eq!(decisions.awaited(), [ServerId(0)]);
        let verdict = decisions.add(gradient(0, 1.0, &[(0, 36.0)])).unwrap().unwrap();
        assert_eq!((verdict.gradient_norm, verdict.clip), (Some(5.0), 0.2));
        assert_eq!(decisions.add(gradient(1, 1.0, &[])), Ok(Some(verdict)), "who asks again gets the same");
        assert_eq!(decisions.awaited(), []);
    }

    #[test]
    fn a_server_that_is_gone_is_not_waited_for() {
        let mut decisions = decisions("clip_norm = 1.0");
        assert_eq!(decisions.add(gradient(0, 1.0, &[(0, 36.0), (1, 64.0)])), Ok(None));
        assert_eq!(decisions.settle(), None);
        decisions.count_on(BTreeMap::from([(ServerId(0), Since::Beginning), (ServerId(1), Since::Commit(Step(4)))]));
        assert_eq!(decisions.settle().and_then(|verdict| verdict.gradient_norm), Some(5.0), "of a weight of two");
    }

    #[test]
    fn a_layerwise_rule_has_a_factor_for_each_tensor() {
        let mut decisions = decisions("name = 'lamb'");
        assert_eq!(decisions.add(direction(0, 1.0, 4.0)), Ok(None));
        let verdict = decisions.add(direction(1, 4.0, 1.0)).unwrap().unwrap();
        assert_eq!(verdict.trust, [2.0, 0.5]);
        assert_eq!(decisions.add(gradient(0, 1.0, &[])), Err(DecisionError::Needless));
    }

    #[test]
    fn what_does_not_belong_is_refused() {
        let mut decisions = decisions("clip_norm = 1.0\nname = 'lamb'");
        decisions.add(gradient(1, 1.0, &[])).unwrap();
        let mut other = gradient(0, 1.0, &[]);
        other.proposal.weight = 3.0;
        assert_eq!(decisions.add(other), Err(DecisionError::Disagreement(ServerId(0), Step(3))));
        assert_eq!(decisions.add(direction(0, 1.0, 1.0)), Err(DecisionError::Disagreement(ServerId(0), Step(3))));
        assert_eq!(decisions.add(gradient(7, 1.0, &[])), Err(DecisionError::UnknownServer(ServerId(7))));
    }

    #[test]
    fn shards_may_have_noted_different_losses_and_the_first_counts() {
        let mut decisions = decisions("clip_norm = 1.0");
        decisions.add(gradient(1, 1.5, &[])).unwrap();
        let verdict = decisions.add(gradient(0, 1.25, &[])).unwrap().unwrap();
        assert_eq!(verdict.loss_sum, 1.25);
    }

    #[test]
    fn without_clipping_nothing_is_asked() {
        assert_eq!(decisions("").add(gradient(0, 1.0, &[])), Err(DecisionError::Needless));
    }
}
