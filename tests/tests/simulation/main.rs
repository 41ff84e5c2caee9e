//! The cores of servers, coordinator and workers in one process, without a socket: messages are delayed, reordered,
//! repeated and lost, workers die and come back, and after every event the invariants are checked.
//!
//! Each case is one seed, which a failure prints; `SIMULATION_SEED` runs that one alone.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says why")]

mod copies;
mod crashes;
mod model;
mod replay;
mod workers;
mod world;

use std::{cell::Cell, collections::BTreeSet};

use convoy_proto::ids::Step;
use replay::replay;
use world::World;

/// Workers, slices of a step, and steps of every case.
const WORKERS: u32 = 3;
const SLICES: u32 = 4;
const STEPS: u64 = 12;
/// The commit after all others: who takes part in it has been told when to begin.
const SOME_DAY: Step = Step(u64::MAX);
/// Steps between two evaluations.
const EVAL_EVERY: u64 = 4;

fn seeds() -> Vec<u64> {
    match std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..500).collect(),
    }
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

/// Runs a mode with every seed, and looks whether the parameters are what its commits make, one by one.
fn simulate(mode: &str, check: impl Fn(&World)) {
    disturb(mode, |world| {
        assert_eq!(bits(world.parameters()), bits(replay(world)), "the parameters are what the commits make");
        check(world);
    });
}

/// Runs a mode with every seed.
fn disturb(mode: &str, check: impl Fn(&World)) {
    for seed in seeds() {
        println!("{mode:?}: seed {seed}");
        let mut world = World::new(mode, seed);
        world.run(true);
        assert!(world.told.is_sorted_by(|a, b| a < b), "steps are told of in order, each once: {:?}", world.told);
        assert_eq!(world.steps(), STEPS);
        let is_complete = world.told.len() as u64 == STEPS;
        assert!(is_complete || world.returned, "unless all who saw a step died, it is told of: {:?}", world.told);
        let scores: Vec<_> = (1..=STEPS / EVAL_EVERY).map(|nth| (nth * EVAL_EVERY, 2.5)).collect();
        assert_eq!(world.scores, scores, "every evaluation is complete");
        world.check_used();
        check(&world);
    }
}

#[test]
fn synchronous_steps_end_in_the_same_bits_whatever_happens() {
    let mut calm = World::new("", 7);
    calm.run(false);
    let expected = calm.parameters();
    simulate("", |world| {
        assert_eq!(world.parameters(), expected);
        assert_eq!(world.log.len() as u64, STEPS);
    });
}

#[test]
fn so_do_steps_that_all_shards_decide_together() {
    let mode = "[optimizer]\nname = 'lamb'\nclip_norm = 0.1";
    let mut calm = World::new(mode, 7);
    calm.run(false);
    let expected = bits(calm.parameters());
    disturb(mode, |world| assert_eq!(bits(world.parameters()), expected));
}

#[test]
fn a_quorum_commits_one_set_of_slices_everywhere() {
    simulate("[consistency]\nquorum = 3", |world| {
        assert_eq!(world.log.len() as u64, STEPS);
    });
}

#[test]
fn every_slice_that_is_dealt_is_committed_once() {
    for mode in ["mode = 'async'", "mode = 'ssp'\n[consistency]\nmax_staleness = 1"] {
        simulate(mode, |world| {
            let pushes = world.log.values().map(|verdict| verdict.push.unwrap());
            let places = pushes.map(|push| world.dealt[&(push.worker.0, push.incarnation, push.sequence)]);
            let places: Vec<_> = places.collect();
            let distinct: BTreeSet<_> = places.iter().copied().collect();
            assert_eq!((places.len(), distinct.len() as u64), (distinct.len(), STEPS * u64::from(SLICES)));
        });
    }
}

#[test]
fn a_shard_that_two_servers_hold_outlives_either() {
    let modes = ["", "consistency.quorum = 3", "mode = 'async'", "mode = 'ssp'\nconsistency.max_staleness = 1"];
    for mode in modes {
        let told = Cell::new((0, 0));
        simulate(&format!("replicas = 1\n{mode}"), |world| {
            let (taken, copied) = told.get();
            told.set((taken + world.takeovers, copied + world.copies));
        });
        let (takeovers, copies) = told.get();
        println!("{mode:?}: {takeovers} servers died whose shard another had, {copies} took theirs from another");
        assert!(takeovers > 0 && (copies > 0 || seeds().len() == 1));
    }
}

#[test]
fn and_all_its_copies_decide_the_same() {
    let mode = "replicas = 1\n[optimizer]\nname = 'lamb'\nclip_norm = 0.1";
    let mut calm = World::new(mode, 7);
    calm.run(false);
    let expected = bits(calm.parameters());
    disturb(mode, |world| assert_eq!(bits(world.parameters()), expected));
}
