//! The shard without a socket: exactness, verdicts for all shards, fences.

use convoy_proto::{
    blocks::Block,
    config::layers::Layers,
    ids::{Era, Generation, Incarnation, Role},
    messages::{Phase, SliceHeader, Weights},
    sum::payload_of,
    trust,
};
use proptest::prelude::*;

use super::{
    super::versions::{Lookup, Version},
    *,
};

const SIZES: [u64; 3] = [70_000, 5, 100];
const HORIZON: Horizon = Horizon { steps: 10, steps_per_epoch: 5 };

#[path = "chosen_tests.rs"]
mod chosen;

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
            shards: vec!["a".into(); servers as usize],
            owners: (0..slices).map(|s| WorkerId(s % 2)).collect(),
            initialiser: WorkerId(0),
            incarnations: vec![Incarnation(1), Incarnation(2)],
            stop_at: None,
            reviewed: Step(0),
        };
        Fixture { config, manifest: Manifest::new(tensors).unwrap(), view }
    }

    fn map(&self) -> BlockMap {
        BlockMap::new(&self.manifest, self.config.servers)
    }

    fn empty_shards(&self) -> Vec<Shard> {
        (0..self.config.servers)
            .map(|s| Shard::new(ShardId(s), &self.config, (&self.manifest, HORIZON), self.view.clone()))
            .collect()
    }

    fn shards(&self) -> Vec<Shard> {
        let shards = self.empty_shards();
        for (shard, id) in shards.iter().zip((0..).map(ShardId)) {
            for block in self.map().of_shard(id) {
                let values: Vec<f32> = block.range().map(|i| (i as f32 * 0.37).cos()).collect();
                let block = ParameterBlock { block: block.id, payload: payload_of(&values).to_vec().into() };
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
        }
    }
}

fn worker(rank: u32) -> Member {
    Member { role: Role::Worker, rank, incarnation: Incarnation(u64::from(rank) + 1) }
}

fn gradient(block: &Block, slice: u32, step: u64) -> GradientBlock {
    let values: Vec<f32> =
        block.range().map(|i| ((i as f32) * 0.11 + slice as f32 * 1.7 + step as f32).sin()).collect();
    GradientBlock { block: block.id, node: Node::leaf(SliceId(slice)), payload: payload_of(&values).to_vec().into() }
}

/// Makes one step with all slices in the given order and returns each shard's verdict.
fn step(fixture: &Fixture, shards: &[Shard], step: u64, order: &[u32], empty: Option<u32>) -> Vec<Verdict> {
    let mut waiting = Vec::new();
    for slice in order {
        for (shard, id) in shards.iter().zip((0..).map(ShardId)) {
            let weight = if empty == Some(*slice) { 0.0 } else { 3.0 };
            let (push, outcome) = shard.open(&fixture.header(step, *slice, weight)).unwrap();
            waiting.extend(outcome.accumulated);
            if weight == 0.0 {
                continue;
            }
            for block in fixture.map().of_shard(id).filter(|b| b.role.is_trained()) {
                waiting.extend(shard.accept(&push, &gradient(&block, *slice, step)).unwrap().accumulated);
            }
        }
    }
    while !waiting.is_empty() {
        let verdict = decide(fixture, shards, std::mem::take(&mut waiting));
        waiting.extend(shards.iter().filter_map(|shard| shard.decide(verdict.clone()).accumulated));
    }
    shards.iter().map(|shard| shard.committed(Step(step)).expect("the step is committed")).collect()
}

/// What the coordinator makes of every shard's part.
fn decide(fixture: &Fixture, shards: &[Shard], mut parts: Vec<Accumulated>) -> Verdict {
    assert_eq!(parts.len(), shards.len(), "each shard reports once");
    parts.sort_by_key(|part| part.shard);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// One result, bit for bit, for any order of arrival and any number of shards; clipping and empty slices included.
    #[test]
    fn the_result_depends_on_neither_order_nor_shards(
        orders in proptest::collection::vec(Just((0u32..5).collect::<Vec<_>>()).prop_shuffle(), 3),
        servers in 1u32..5, clip: bool, rule in proptest::sample::select(vec!["momentum", "adamw", "lamb"]),
    ) {
        let clip_norm = if clip { 0.5 } else { 0.0 };
        let extra = format!("[optimizer]\nname = '{rule}'\nclip_norm = {clip_norm}");
        let (fixture, reference) = (Fixture::new(5, servers, &extra), Fixture::new(5, 1, &extra));
        let (shards, one) = (fixture.shards(), reference.shards());
        for (s, order) in orders.iter().enumerate() {
            let empty = (s == 1).then_some(3);
            let verdicts = step(&fixture, &shards, s as u64, order, empty);
            let expected = step(&reference, &one, s as u64, &[0, 1, 2, 3, 4], empty);
            prop_assert!(verdicts.iter().all(|v| *v == expected[0]), "{verdicts:?} {expected:?}");
        }
        prop_assert_eq!(parameters(&shards), parameters(&one));
        prop_assert!(parameters(&one) != parameters(&reference.shards()), "training changed something");
    }
}

#[test]
fn threads_do_not_change_the_result() {
    let fixture = Fixture::new(4, 1, "[optimizer]\nname = 'momentum'");
    let (shards, reference) = (fixture.shards(), fixture.shards());
    for s in 0..20 {
        step(&fixture, &reference, s, &[0, 1, 2, 3], None);
        std::thread::scope(|scope| {
            for slice in 0..4 {
                let (fixture, shard) = (&fixture, &shards[0]);
                scope.spawn(move || {
                    let (push, _) = shard.open(&fixture.header(s, slice, 3.0)).unwrap();
                    for block in fixture.map().of_shard(ShardId(0)).filter(|b| b.role.is_trained()) {
                        shard.accept(&push, &gradient(&block, slice, s)).unwrap();
                    }
                });
            }
        });
        assert_eq!(shards[0].open_step(), Step(s + 1));
    }
    assert_eq!(parameters(&shards), parameters(&reference));
}

#[test]
fn one_slice_that_is_not_finite_skips_the_step_on_every_shard() {
    let fixture = Fixture::new(2, 3, "");
    let shards = fixture.shards();
    let before = parameters(&shards);
    for shard in &shards {
        let mut bad = fixture.header(0, 1, 3.0);
        bad.slices[0].finite = false;
        shard.open(&bad).unwrap();
        shard.open(&fixture.header(0, 0, 3.0)).unwrap();
        assert_eq!(shard.committed(Step(0)).unwrap().action, Action::SkipNonFinite);
        assert_eq!(shard.open_step(), Step(1));
    }
    assert_eq!(parameters(&shards), before);
    step(&fixture, &shards, 1, &[1, 0], None);
    assert_ne!(parameters(&shards), before);
}

#[test]
fn both_versions_can_be_read_and_the_third_is_gone() {
    let fixture = Fixture::new(2, 1, "");
    let shards = fixture.shards();
    let shard = &shards[0];
    let first = newest(shard, BlockId(0));
    assert_eq!(shard.version(BlockId(0), Step(1), Weights::Trained), Ok(Lookup::Pending));
    step(&fixture, &shards, 0, &[0, 1], None);
    assert_eq!(shard.version(BlockId(0), Step(0), Weights::Trained), Ok(Lookup::Ready(first.clone())));
    step(&fixture, &shards, 1, &[0, 1], None);
    assert_eq!(shard.version(BlockId(0), Step(0), Weights::Trained), Ok(Lookup::Gone));
    assert!(matches!(shard.version(BlockId(0), Step(1), Weights::Trained), Ok(Lookup::Ready(_))));
    let frozen = BlockId(fixture.map().blocks().len() as u64 - 1);
    assert!(matches!(shard.version(frozen, Step(9), Weights::Trained), Ok(Lookup::Ready(_))));
}

#[test]
fn what_does_not_belong_is_refused_and_changes_nothing() {
    let fixture = Fixture::new(2, 1, "");
    let shards = fixture.shards();
    let shard = &shards[0];
    let before = parameters(&shards);
    let header = fixture.header(0, 0, 3.0);
    let open = |change: fn(&mut PushHeader)| {
        let mut header = header.clone();
        change(&mut header);
        shard.open(&header).unwrap_err()
    };
    assert_eq!(open(|h| h.era = Era(7)), Refusal::Era { ours: Era(0), theirs: Era(7) });
    assert_eq!(open(|h| h.step = Step(3)), Refusal::Step { asked: Step(3), open: Step(0) });
    assert!(matches!(open(|h| h.member.incarnation = Incarnation(9)), Refusal::Fenced { .. }));
    assert!(matches!(open(|h| h.member.rank = 5), Refusal::Stranger(_)));
    assert!(matches!(open(|h| h.slices[0].slice = SliceId(1)), Refusal::NotOwner { .. }));
    assert!(matches!(open(|h| h.slices[0].slice = SliceId(8)), Refusal::Ledger(_)));

    let (push, _) = shard.open(&header).unwrap();
    let part = gradient(&fixture.map().blocks().next().unwrap(), 0, 0);
    let accept = |change: fn(&mut GradientBlock)| {
        let mut part = part.clone();
        change(&mut part);
        shard.accept(&push, &part).unwrap_err()
    };
    assert!(matches!(accept(|p| p.block = BlockId(99)), Refusal::UnknownBlock { .. }));
    assert!(matches!(accept(|p| p.payload.truncate(8)), Refusal::Length { .. }));
    assert!(matches!(accept(|p| p.node = Node { first: 0, len: 2 }), Refusal::Node(..)));
    assert!(matches!(accept(|p| p.node = Node::leaf(SliceId(1))), Refusal::Node(..)));
    let frozen = fixture.map().blocks().last().unwrap().id;
    let to_frozen = GradientBlock { block: frozen, node: part.node, payload: vec![0; 12].into() };
    assert_eq!(shard.accept(&push, &to_frozen), Err(Refusal::Frozen(frozen)));
    assert_eq!(parameters(&shards), before);

    assert!(shard.accept(&push, &part).unwrap().fresh);
    assert!(!shard.accept(&push, &part).unwrap().fresh, "a duplicate adds nothing");
}

/// Slices change hands in the middle of a step: who lost them is told to look, who got them may push them, and what
/// came before counts.
#[test]
fn slices_change_hands_within_a_step() {
    let fixture = Fixture::new(2, 1, "");
    let (shards, calm) = (fixture.shards(), fixture.shards());
    let shard = &shards[0];
    let blocks: Vec<_> = fixture.map().blocks().filter(|block| block.role.is_trained()).collect();
    // Worker 1 dies when half of its slice is here.
    let (dying, _) = shard.open(&fixture.header(0, 1, 3.0)).unwrap();
    blocks[..2].iter().for_each(|block| drop(shard.accept(&dying, &gradient(block, 1, 0)).unwrap()));
    let view = ClusterView {
        generation: Generation(2),
        owners: vec![WorkerId(0); 2],
        incarnations: vec![Incarnation(1), Incarnation(0)],
        ..fixture.view.clone()
    };
    let heir = PushHeader { generation: Generation(2), member: worker(0), ..fixture.header(0, 1, 3.0) };
    let early = shard.open(&heir).unwrap_err();
    assert_eq!(early, Refusal::Generation { ours: Generation(1), theirs: Generation(2) }, "the view is on its way");
    shard.set_view(view);
    assert!(matches!(shard.open(&fixture.header(0, 1, 3.0)), Err(Refusal::Fenced { .. })));
    let wrong = PushHeader { slices: fixture.header(0, 1, 9.0).slices, ..heir.clone() };
    assert!(matches!(shard.open(&wrong), Err(Refusal::Ledger(_))), "a slice weighs what it weighed");
    for slice in [1, 0] {
        let header = PushHeader { slices: fixture.header(0, slice, 3.0).slices, ..heir.clone() };
        let (push, _) = shard.open(&header).unwrap();
        for block in &blocks {
            let fresh = shard.accept(&push, &gradient(block, slice, 0)).unwrap().fresh;
            assert_eq!(fresh, slice == 0 || !blocks[..2].contains(block));
        }
    }
    step(&fixture, &calm, 0, &[0, 1], None);
    assert_eq!(parameters(&shards), parameters(&calm));

    // Worker 0 loses a slice to worker 1, which has come back, and does not know it yet.
    let back = vec![Incarnation(1), Incarnation(3)];
    let view = ClusterView { generation: Generation(3), incarnations: back, ..fixture.view.clone() };
    shard.set_view(view);
    let outdated = PushHeader { step: Step(1), ..heir };
    let told = shard.open(&outdated).unwrap_err();
    assert_eq!(told, Refusal::Generation { ours: Generation(3), theirs: Generation(2) });
}

#[test]
fn only_the_named_worker_initialises_and_only_once() {
    let fixture = Fixture::new(2, 1, "");
    let shard = &fixture.empty_shards()[0];
    let block = ParameterBlock { block: BlockId(2), payload: vec![0; 20].into() };
    assert_eq!(shard.open(&fixture.header(0, 0, 1.0)).unwrap_err(), Refusal::NotInitialised);
    assert_eq!(shard.initialise(worker(1), std::slice::from_ref(&block)), Err(Refusal::Initialised(worker(1))));
    assert!(!shard.initialise(worker(0), std::slice::from_ref(&block)).unwrap().changed);
    assert_eq!(shard.initialise(worker(0), &[block]), Err(Refusal::Initialised(worker(0))));
}

#[test]
fn a_push_that_is_repeated_after_the_commit_is_let_in() {
    let fixture = Fixture::new(2, 1, "");
    let shards = fixture.shards();
    step(&fixture, &shards, 0, &[0, 1], None);
    let after = parameters(&shards);
    let (push, _) = shards[0].open(&fixture.header(0, 0, 3.0)).unwrap();
    let outcome = shards[0].accept(&push, &gradient(&fixture.map().blocks().next().unwrap(), 0, 0)).unwrap();
    assert_eq!((outcome.fresh, outcome.changed, parameters(&shards)), (false, false, after));
}

/// A thread that closed a step may be held up before it sweeps, while others commit the step and open the next: what was
/// absent in the old step must not count in the new one.
#[test]
fn a_late_sweep_leaves_the_next_step_alone() {
    let fixture = Fixture::new(2, 1, "");
    let (shards, reference) = (fixture.shards(), fixture.shards());
    for shards in [&shards, &reference] {
        step(&fixture, shards, 0, &[0, 1], Some(1));
    }
    let shard = &shards[0];
    let (push, _) = shard.open(&fixture.header(1, 0, 3.0)).unwrap();
    for block in fixture.map().blocks().filter(|block| block.role.is_trained()) {
        shard.accept(&push, &gradient(&block, 0, 1)).unwrap();
    }
    shard.sweep(Step(0), &BTreeSet::from([SliceId(1)]));
    step(&fixture, &shards, 1, &[0, 1], None);
    step(&fixture, &reference, 1, &[0, 1], None);
    assert_eq!(parameters(&shards), parameters(&reference));
}

#[test]
fn a_buffer_takes_the_mean_and_no_step() {
    let fixture = Fixture::new(2, 1, "[optimizer]\nclip_norm = 0.001");
    let shards = fixture.shards();
    let running = fixture.map().blocks().find(|block| block.role == TensorRole::Buffer).unwrap();
    step(&fixture, &shards, 0, &[1, 0], None);
    let values = |slice| -> Vec<f32> {
        let payload = gradient(&running, slice, 0).payload;
        payload.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let mean: Vec<f32> = values(0).iter().zip(values(1)).map(|(a, b)| (a + b) / 6.0).collect();
    assert_eq!(*newest(&shards[0], running.id), mean);
}

#[test]
fn an_average_follows_the_weights() {
    let fixture = Fixture::new(2, 1, "[optimizer]\nema = 0.75");
    let shards = fixture.shards();
    let average = |step| match shards[0].version(BlockId(0), Step(step), Weights::Averaged) {
        Ok(Lookup::Ready(version)) => version,
        other => panic!("no average: {other:?}"),
    };
    let first = newest(&shards[0], BlockId(0));
    assert_eq!(average(0), first);
    step(&fixture, &shards, 0, &[1, 0], None);
    let second = newest(&shards[0], BlockId(0));
    let expected: Vec<f32> = first.iter().zip(second.iter()).map(|(a, p)| 0.75 * a + 0.25 * p).collect();
    assert_eq!(*average(1), expected);
    let frozen = fixture.map().blocks().last().unwrap().id;
    assert!(matches!(shards[0].version(frozen, Step(1), Weights::Averaged), Ok(Lookup::Ready(_))));
}

#[test]
fn groups_change_one_tensor_and_values_are_clipped() {
    let extra =
        "[optimizer]\nname = 'sgd'\nlr = 1.0\nclip_value = 0.01\ngroups = [{ pattern = 't1', lr_factor = 0.5 }]";
    let fixture = Fixture::new(1, 1, extra);
    let shards = fixture.shards();
    let before: Vec<_> = [0, 2].map(|block| newest(&shards[0], BlockId(block))).to_vec();
    step(&fixture, &shards, 0, &[0], None);
    for ((block, before), most) in [0, 2].into_iter().zip(before).zip([0.01, 0.005]) {
        let after = newest(&shards[0], BlockId(block));
        let moved = before.iter().zip(after.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!((moved - most).abs() < 1e-6, "block {block} moved by {moved}");
    }
}

#[test]
fn a_loss_scale_halves_when_a_step_is_skipped() {
    let fixture = Fixture::new(1, 1, "precision = 'f16'\nloss_scale = 8");
    let shards = fixture.shards();
    let mut bad = fixture.header(0, 0, 3.0);
    bad.slices[0].finite = false;
    shards[0].open(&bad).unwrap();
    assert_eq!(shards[0].committed(Step(0)).unwrap().loss_scale, 8.0);
    let stale = shards[0].open(&fixture.header(1, 0, 3.0)).unwrap_err();
    assert_eq!(stale, Refusal::LossScale { ours: 4.0, theirs: 8.0 });
    assert!(shards[0].open(&PushHeader { loss_scale: 4.0, ..fixture.header(1, 0, 3.0) }).is_ok());
}
