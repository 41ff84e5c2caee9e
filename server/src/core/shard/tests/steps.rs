//! Synchronous steps: exact sums, one verdict for all shards, two versions.

use super::*;

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
    assert_eq!(newest(&shards[0], running.id)[..], mean[..]);
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
    assert_eq!(average(1)[..], expected[..]);
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
