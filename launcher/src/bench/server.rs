//! What a server does with the blocks that it is given, without a network: sums and updates, beside a plain copy.

use std::time::Instant;

use bytes::Bytes;
use convoy_proto::{
    blocks::{Block, BlockMap},
    codec::Encoding,
    config::{Config, layers::Layers},
    ids::{Era, Generation, Incarnation, Member, Role, ServerId, SliceId, Step, WorkerId},
    manifest::{Manifest, TensorRole},
    messages::{ClusterView, GradientBlock, ParameterBlock, Phase, PushHeader, ServerView, SliceHeader},
    optimizer,
    schedule::Horizon,
    sum::payload_of,
    tree::Node,
};
use convoy_server::core::shard::{Push, Shard};
use rayon::prelude::*;
use serde_json::Value;

use super::{Row, median, milliseconds, most_bytes, raw, show, tell, tensors};
use crate::{args::BenchServerArgs, machine, outcome::Failure};

const STEPS: u64 = 12;
const WARM: usize = 2;

/// Measures all cells.
pub fn server(args: &BenchServerArgs) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let threads = machine::cores();
    let copy = raw::copy(most_bytes(&args.mib) / threads.max(1), threads);
    for mib in &args.mib {
        for optimizer in &args.optimizers {
            for workers in &args.workers {
                tell(&format!("{workers} gradients, {mib} MiB, {optimizer}"));
                rows.push(row(*workers, *mib, optimizer, copy)?);
            }
        }
    }
    let raw = vec![("copy_gb_per_second", (copy / 1e9).into()), ("threads", threads.into())];
    show(rows, raw, args.show)
}

fn row(workers: u32, mib: f64, optimizer: &str, copy: f64) -> Result<Row, Failure> {
    let bench = Bench::new(workers, mib, optimizer)?;
    let seconds: Result<Vec<f64>, Failure> = (0..STEPS).map(|step| bench.step(step)).collect();
    let seconds = median(seconds?.split_off(WARM)).unwrap_or(f64::INFINITY);
    let bytes = bench.bytes();
    Ok(vec![
        ("workers", Value::from(workers)),
        ("mib", mib.into()),
        ("optimizer", optimizer.into()),
        ("median_ms", milliseconds(seconds).into()),
        ("blocks_per_second", (bench.blocks.len() as f64 / seconds).into()),
        ("gb_per_second", (bytes / seconds / 1e9).into()),
        ("of_copy", (bytes / seconds / copy).into()),
    ])
}

struct Bench {
    config: Config,
    blocks: Vec<Block>,
    shard: Shard,
    /// Of each worker, what it pushes of each block.
    gradients: Vec<Bytes>,
    /// Vectors of the optimizer's state.
    slots: usize,
}

fn worker(rank: u32) -> Member {
    Member { role: Role::Worker, rank, incarnation: Incarnation(1) }
}

impl Bench {
    fn new(workers: u32, mib: f64, name: &str) -> Result<Bench, Failure> {
        let flags = [("slices", workers.to_string()), ("steps", STEPS.to_string()), ("optimizer.name", name.into())];
        let flags = flags.map(|(key, value)| (key.to_string(), value));
        let config = Layers::new().texts("launcher bench server", &flags)?.raw()?.resolve(1)?;
        let (width, count) = tensors(mib);
        let tensors = (0..count).map(|i| (format!("t{i}"), vec![width], TensorRole::Trainable));
        let manifest = Manifest::new(tensors).map_err(|problem| Failure::Usage(problem.to_string()))?;
        let view = ClusterView {
            phase: Phase::Training,
            generation: Generation(1),
            era: Era(0),
            shards: 1,
            servers: vec![ServerView { address: "here".into(), ..ServerView::default() }],
            owners: (0..workers).map(WorkerId).collect(),
            initialiser: WorkerId(0),
            incarnations: vec![Incarnation(1); workers as usize],
            stop_at: None,
            restore: None,
            save_at: None,
            saved: Step(0),
            reviewed: Step(0),
        };
        let horizon = Horizon { steps: STEPS, steps_per_epoch: STEPS };
        let shard = Shard::new(ServerId(0), &config, (&manifest, horizon), view);
        let map = BlockMap::new(&manifest, 1);
        let blocks: Vec<Block> = map.blocks().collect();
        let values: Vec<f32> = (0..map.elements()).map(|i| (i as f32 * 0.37).sin()).collect();
        let bytes = Bytes::copy_from_slice(payload_of(&values));
        for block in &blocks {
            let payload = bytes.slice(block.range().start * 4..block.range().end * 4);
            shard.initialise(worker(0), &[ParameterBlock { block: block.id, payload, place: None }]).map_err(failed)?;
        }
        let gradients = (0..workers).map(|_| Bytes::copy_from_slice(payload_of(&values))).collect();
        let slots = optimizer::rule(config.optimizer.rule).slots();
        Ok(Bench { config, blocks, shard, gradients, slots })
    }

    /// Bytes that a step has to read and write: all gradients, the parameters and the optimizer's state, before and after.
    fn bytes(&self) -> f64 {
        let size: f64 = self.blocks.iter().map(|block| block.bytes() as f64).sum();
        size * (self.gradients.len() as f64 + 2.0 + 2.0 * self.slots as f64)
    }

    /// All that a server does for a step; gives the seconds.
    fn step(&self, step: u64) -> Result<f64, Failure> {
        let start = Instant::now();
        let pushes: Vec<Push> =
            (0..).take(self.gradients.len()).map(|rank| self.open(step, rank)).collect::<Result<_, _>>()?;
        // As workers push: block by block, all workers' parts of a block at about the same time.
        self.blocks.par_iter().try_for_each(|block| {
            for (rank, (push, gradient)) in (0..).zip(pushes.iter().zip(&self.gradients)) {
                let payload = gradient.slice(block.range().start * 4..block.range().end * 4);
                let part = GradientBlock {
                    block: block.id,
                    node: Node::leaf(SliceId(rank)),
                    encoding: Encoding::F32,
                    payload,
                    place: None,
                };
                self.shard.accept(push, &part).map_err(failed)?;
            }
            Ok::<_, Failure>(())
        })?;
        match self.shard.open_step() {
            open if open == Step(step + 1) => Ok(start.elapsed().as_secs_f64()),
            open => Err(Failure::Failed(format!("step {step} is not committed, step {open} is open"))),
        }
    }

    fn open(&self, step: u64, rank: u32) -> Result<Push, Failure> {
        let header = PushHeader {
            member: worker(rank),
            generation: Generation(1),
            era: Era(0),
            step: Step(step),
            slices: vec![SliceHeader { slice: SliceId(rank), weight: 2.0, loss_sum: 1.0, finite: true }],
            loss_scale: self.config.loss_scale,
            sequence: step,
            dealt: None,
        };
        Ok(self.shard.open(&header).map_err(failed)?.0)
    }
}

fn failed(problem: impl std::fmt::Display) -> Failure {
    Failure::Failed(problem.to_string())
}
