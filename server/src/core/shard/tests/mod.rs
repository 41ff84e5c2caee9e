//! The shard without a socket: exactness, verdicts for all shards, fences.

use convoy_proto::{
    blocks::Block,
    codec::Encoding,
    config::layers::Layers,
    ids::{Era, Generation, Incarnation, Role},
    messages::{Accumulated, Norms, Phase, ServerView, SliceHeader, Weights},
    sum::payload_of,
    tree::Node,
    trust,
};
use proptest::prelude::*;

use super::{
    super::{
        kept::{Formed, Snapshot},
        versions::{Lookup, Version},
    },
    *,
};

const SIZES: [u64; 3] = [70_000, 5, 100];
const HORIZON: Horizon = Horizon { steps: 10, steps_per_epoch: 5 };

mod chosen;
mod fences;
mod saving;
mod steps;

struct Fixture {
    config: Config,
    manifest: Manifest,
    view: ClusterView,
}

impl Fixture {
    fn new(slices: u32, servers: u32, extra: &str) -> Fixture {
        let text = format!("slices = {slices}\nservers = {servers}\n{extra}");
        let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        let mut tensors: Vec<_> =
            SIZES.iter().enumerate().map(|(i, n)| (format!("t{i}"), vec![*n], TensorRole::Trainable)).collect();
        tensors.push(("running".into(), vec![4], TensorRole::Buffer));
        tensors.push(("frozen".into(), vec![3], TensorRole::Frozen));
        let view = ClusterView {
            phase: Phase::Training,
            generation: Generation(1),
            era: Era(0),
            shards: servers,
            servers: vec![ServerView { address: "a".into(), ..ServerView::default() }; servers as usize],
            owners: (0..slices).map(|s| WorkerId(s % 2)).collect(),
            initialiser: WorkerId(0),
            incarnations: vec![Incarnation(1), Incarnation(2)],
            stop_at: None,
            reviewed: Step(0),
            restore: None,
            save_at: None,
            saved: Step(0),
        };
        Fixture { config, manifest: Manifest::new(tensors).unwrap(), view }
    }

    fn map(&self) -> BlockMap {
        BlockMap::new(&self.manifest, self.config.servers)
    }

    fn empty_shards(&self) -> Vec<Shard> {
        (0..self.config.servers)
            .map(|s| Shard::new(ServerId(s), &self.config, (&self.manifest, HORIZON), self.view.clone()))
            .collect()
    }

    fn shards(&self) -> Vec<Shard> {
        let shards = self.empty_shards();
        for (shard, id) in shards.iter().zip((0..).map(ShardId)) {
            for block in self.map().of_shard(id) {
                let values: Vec<f32> = block.range().map(|i| (i as f32 * 0.37).cos()).collect();
                let block =
                    ParameterBlock { block: block.id, payload: payload_of(&values).to_vec().into(), place: None };
                shard.initialise(worker(0), &[block]).unwrap();
            }
            assert!(shard.is_initialised());
        }
        shards
    }

    fn header(&self, step: u64, slice: u32, weight: f64) -> PushHeader {
        let header = SliceHeader { slice: SliceId(slice), weight, loss_sum: weight * 0.5, finite: true };
        PushHeader {
            member: worker(slice % 2),
            generation: Generation(1),
            era: Era(0),
            step: Step(step),
            slices: vec![header],
            loss_scale: self.config.loss_scale,
            sequence: step,
            dealt: None,
        }
    }
}

fn worker(rank: u32) -> Member {
    Member { role: Role::Worker, rank, incarnation: Incarnation(u64::from(rank) + 1) }
}

fn gradient(block: &Block, slice: u32, step: u64) -> GradientBlock {
    let values: Vec<f32> =
        block.range().map(|i| ((i as f32) * 0.11 + slice as f32 * 1.7 + step as f32).sin()).collect();
    GradientBlock {
        block: block.id,
        node: Node::leaf(SliceId(slice)),
        encoding: Encoding::F32,
        payload: payload_of(&values).to_vec().into(),
        place: None,
    }
}

/// Makes one step with all slices in the given order and returns each shard's verdict.
fn step(fixture: &Fixture, shards: &[Shard], step: u64, order: &[u32], empty: Option<u32>) -> Vec<Verdict> {
    step_with(fixture, shards, (step, order, empty)).0
}

/// What checkpoints need of what was kept.
fn saved(formed: Vec<Formed>) -> impl Iterator<Item = Snapshot> {
    formed.into_iter().filter(|formed| formed.is_saved).map(|formed| Snapshot::clone(&formed.snapshot))
}

/// As [`step`]; gives what checkpoints need of it, too.
fn step_with(
    fixture: &Fixture,
    shards: &[Shard],
    (step, order, empty): (u64, &[u32], Option<u32>),
) -> (Vec<Verdict>, Vec<Snapshot>) {
    let (mut waiting, mut kept) = (Vec::new(), Vec::new());
    for slice in order {
        for (shard, id) in shards.iter().zip((0..).map(ShardId)) {
            let weight = if empty == Some(*slice) { 0.0 } else { 3.0 };
            let (push, outcome) = shard.open(&fixture.header(step, *slice, weight)).unwrap();
            waiting.extend(outcome.accumulated);
            kept.extend(saved(outcome.formed));
            if weight == 0.0 {
                continue;
            }
            for block in fixture.map().of_shard(id).filter(|b| b.role.is_trained()) {
                let outcome = shard.accept(&push, &gradient(&block, *slice, step)).unwrap();
                waiting.extend(outcome.accumulated);
                kept.extend(saved(outcome.formed));
            }
        }
    }
    while !waiting.is_empty() {
        let verdict = decide(fixture, shards, std::mem::take(&mut waiting));
        for outcome in shards.iter().map(|shard| shard.decide(verdict.clone())) {
            waiting.extend(outcome.accumulated);
            kept.extend(saved(outcome.formed));
        }
    }
    (shards.iter().map(|shard| shard.committed(Step(step)).expect("the step is committed")).collect(), kept)
}

/// What the coordinator makes of every shard's part.
fn decide(fixture: &Fixture, shards: &[Shard], mut parts: Vec<Accumulated>) -> Verdict {
    assert_eq!(parts.len(), shards.len(), "each shard reports once");
    parts.sort_by_key(|part| part.server);
    let proposal = parts[0].proposal.clone();
    let (mut gradient, mut direction) = (Vec::new(), BTreeMap::new());
    for part in parts {
        assert_eq!(part.proposal, proposal);
        match part.norms {
            Norms::Gradient(norms) => gradient.extend(norms.into_iter().map(|(_, square)| square)),
            Norms::Direction(norms) => direction.extend(norms),
        }
    }
    match fixture.config.optimizer.clip_norm() {
        Some(max_norm) if direction.is_empty() => proposal.clipped(gradient, max_norm),
        _ => proposal.trusting(trust::ratios(&fixture.map(), &direction)),
    }
}

fn newest(shard: &Shard, block: BlockId) -> Version {
    match shard.version(block, shard.open_step(), Weights::Trained) {
        Ok(Lookup::Ready(version)) => version,
        other => panic!("block {block} has no parameters: {other:?}"),
    }
}

fn parameters(shards: &[Shard]) -> Vec<u32> {
    let blocks = shards.iter().flat_map(|shard| shard.all_blocks().map(move |block| newest(shard, block)));
    blocks.flat_map(|version| version.iter().map(|v| v.to_bits()).collect::<Vec<_>>()).collect()
}
