//! What a step costs a server when the same number of elements comes in few tensors or in many.

use std::time::Instant;

use bytes::Bytes;
use convoy_proto::{
    blocks::BlockMap,
    codec::Encoding,
    config::{Config, layers::Layers},
    ids::{Era, Generation, Incarnation, Member, Role, ServerId, SliceId, Step, WorkerId},
    limits,
    manifest::{Manifest, TensorRole},
    messages::{
        Accumulated, ClusterView, GradientBlock, Norms, ParameterBlock, Phase, PushHeader, PushPart, ServerView,
        SliceHeader, Verdict,
    },
    schedule::Horizon,
    sum::payload_of,
    tree::Node,
    trust, wire,
};
use convoy_server::core::shard::{Outcome, Shard};
use prost::Message;

const ELEMENTS: u64 = 1 << 22;
const SLICES: u32 = 4;
const STEPS: u64 = 6;

struct Case {
    config: Config,
    map: BlockMap,
    shard: Shard,
    payload: Bytes,
}

impl Case {
    fn new(tensors: u64, optimizer: &str) -> Case {
        let text = format!("slices = {SLICES}\nsteps = {STEPS}\n[optimizer]\n{optimizer}");
        let config = Layers::new().toml("case", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        let tensor = |i| (format!("t{i}"), vec![ELEMENTS / tensors], TensorRole::Trainable);
        let manifest = Manifest::new((0..tensors).map(tensor)).unwrap();
        let view = ClusterView {
            phase: Phase::Training,
            generation: Generation(1),
            era: Era(0),
            shards: 1,
            servers: vec![ServerView { address: "a".into(), ..ServerView::default() }],
            owners: vec![WorkerId(0); SLICES as usize],
            initialiser: WorkerId(0),
            incarnations: vec![Incarnation(1)],
            stop_at: None,
            restore: None,
            save_at: None,
            saved: Step(0),
            reviewed: Step(0),
        };
        let horizon = Horizon { steps: STEPS, steps_per_epoch: STEPS };
        let shard = Shard::new(ServerId(0), &config, (&manifest, horizon), view);
        let values: Vec<f32> = (0..ELEMENTS / tensors).map(|i| (i as f32 * 0.37).sin() + 1.5).collect();
        let payload = Bytes::copy_from_slice(payload_of(&values));
        let map = BlockMap::new(&manifest, 1);
        for block in map.blocks() {
            let payload = payload.slice(..block.bytes());
            shard.initialise(worker(), &[ParameterBlock { block: block.id, payload, place: None }]).unwrap();
        }
        Case { config, map, shard, payload }
    }

    fn header(&self, step: u64, slice: u32) -> PushHeader {
        let slices = vec![SliceHeader { slice: SliceId(slice), weight: 2.0, loss_sum: 1.0, finite: true }];
        let (generation, era, loss_scale) = (Generation(1), Era(0), self.config.loss_scale);
        PushHeader {
            member: worker(),
            generation,
            era,
            step: Step(step),
            slices,
            loss_scale,
            sequence: step,
            dealt: None,
        }
    }

    /// A slice's gradient in frames, as they come off the wire.
    fn frames(&self, slice: u32) -> Vec<Bytes> {
        let (mut frames, mut blocks, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut close = |blocks: &mut Vec<GradientBlock>| {
            let part = wire::PushPullRequest::from(PushPart::Blocks(std::mem::take(blocks)));
            frames.push(Bytes::from(part.encode_to_vec()));
        };
        for block in self.map.blocks() {
            if bytes + block.bytes() > limits::FRAME_BYTES {
                close(&mut blocks);
                bytes = 0;
            }
            bytes += block.bytes();
            let (node, payload) = (Node::leaf(SliceId(slice)), self.payload.slice(..block.bytes()));
            blocks.push(GradientBlock { block: block.id, node, encoding: Encoding::F32, payload, place: None });
        }
        close(&mut blocks);
        frames
    }

    fn follow(&self, outcome: Outcome) {
        let mut asked = outcome.accumulated;
        while let Some(part) = asked.take() {
            asked = self.shard.decide(self.decide(part)).accumulated;
        }
    }

    fn decide(&self, part: Accumulated) -> Verdict {
        match part.norms {
            Norms::Gradient(norms) => part.proposal.clipped(norms.into_iter().map(|(_, square)| square), 1.0),
            Norms::Direction(norms) => part.proposal.trusting(trust::ratios(&self.map, &norms.into_iter().collect())),
        }
    }

    /// Everything a server does for a step, from decoding to the new parameters; gives the seconds.
    fn step(&self, step: u64, frames: &[Vec<Bytes>]) -> f64 {
        let start = Instant::now();
        for (slice, frames) in (0..).zip(frames) {
            let (push, outcome) = self.shard.open(&self.header(step, slice)).unwrap();
            self.follow(outcome);
            for frame in frames {
                let part = wire::PushPullRequest::decode(frame.clone()).unwrap().try_into().unwrap();
                let PushPart::Blocks(blocks) = part else { panic!("a frame of blocks") };
                for block in blocks {
                    self.follow(self.shard.accept(&push, &block).unwrap());
                }
            }
        }
        assert_eq!(self.shard.open_step(), Step(step + 1));
        start.elapsed().as_secs_f64()
    }
}

fn worker() -> Member {
    Member { role: Role::Worker, rank: 0, incarnation: Incarnation(1) }
}

#[test]
fn tensors() {
    println!("| tensors | elements of each | bytes beside payload | sgd | adamw, clipped | lamb |");
    println!("|---|---|---|---|---|---|");
    for tensors in [64u64, 512, 4096, 32_768] {
        let mut cells = Vec::new();
        let mut beside = 0.0;
        for optimizer in ["name = 'sgd'", "name = 'adamw'\nclip_norm = 1.0", "name = 'lamb'"] {
            let case = Case::new(tensors, optimizer);
            let frames: Vec<_> = (0..SLICES).map(|slice| case.frames(slice)).collect();
            let bytes: usize = frames.iter().flatten().map(Bytes::len).sum();
            beside = bytes as f64 / (ELEMENTS * 4 * u64::from(SLICES)) as f64 - 1.0;
            let mut seconds: Vec<_> = (0..STEPS).map(|step| case.step(step, &frames)).skip(1).collect();
            seconds.sort_by(f64::total_cmp);
            cells.push(format!("{:.1} ms", seconds[seconds.len() / 2] * 1e3));
        }
        println!("| {tensors} | {} | {:.2} % | {} |", ELEMENTS / tensors, beside * 100.0, cells.join(" | "));
    }
}
