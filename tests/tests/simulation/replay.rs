//! What the commits of a case make of the parameters, one by one on one machine.

use std::collections::BTreeMap;

use convoy_proto::{
    blocks::BlockMap,
    ids::SliceId,
    manifest::TensorRole,
    optimizer::{Optimizer, Update},
    sum,
    tree::{SliceTree, fold},
};

use crate::{
    SLICES,
    model::{gradient, weight},
    world::World,
};

/// The parameters that one server makes of the log, commit by commit.
pub fn replay(world: &World) -> Vec<f32> {
    let map = BlockMap::new(&world.manifest, 2);
    let optimizer = Optimizer::of_servers(&world.config);
    let mut values = Vec::new();
    for block in map.blocks() {
        let mut now: Vec<f32> = block.range().map(|i| (i as f32 * 0.37).cos()).collect();
        let mut state = vec![vec![0.0; now.len()]; optimizer.rule.slots()];
        let mut updates = 0;
        for verdict in world.log.values() {
            let places: Vec<(u32, (u64, u32))> = match verdict.push {
                Some(push) => vec![(0, world.dealt[&(push.worker.0, push.incarnation, push.sequence)])],
                None => verdict.slices.iter().map(|slice| (slice.0, (verdict.step.0, slice.0))).collect(),
            };
            let present: BTreeMap<u32, _> = places.into_iter().filter(|(_, place)| weight(*place) > 0.0).collect();
            let tree = SliceTree::new(if verdict.push.is_some() { 1 } else { SLICES });
            let mut leaf = |slice: SliceId| present.get(&slice.0).map(|p| gradient(*p, now.len(), block.start));
            let mut add = |mut left: Vec<f32>, right: Vec<f32>| {
                sum::add(&mut left, &right);
                left
            };
            let Some(mut sum) = fold(tree.root(), &mut leaf, &mut add) else { continue };
            sum.iter_mut().for_each(|value| *value /= verdict.weight as f32);
            if block.role == TensorRole::Buffer {
                now = sum;
                continue;
            }
            let before = now.clone();
            let update = Update {
                updates,
                learning_rate: verdict.learning_rate as f32,
                weight_decay: world.config.optimizer.for_tensor("a").weight_decay,
                gradient: &sum,
                parameters: &before,
                updated: &mut now,
                state: &mut state,
            };
            optimizer.rule.apply(update);
            updates += 1;
        }
        values.extend(now);
    }
    values
}
