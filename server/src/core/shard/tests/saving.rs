//! Snapshots: of one commit, whatever goes on meanwhile; and a shard made of one goes on as the first would have.

use super::*;
use crate::core::kept::{Formed, RestoreError, Snapshot};

const ORDER: [u32; 3] = [2, 0, 1];

/// Makes steps and collects what is kept on the way.
fn train(fixture: &Fixture, shards: &[Shard], steps: std::ops::Range<u64>) -> Vec<Snapshot> {
    let mut kept = Vec::new();
    for at in steps {
        kept.extend(step_with(fixture, shards, (at, &ORDER, None)).1);
    }
    kept
}

fn restored(fixture: &Fixture, snapshots: &[Snapshot]) -> Vec<Shard> {
    let all: Vec<_> = snapshots.iter().flat_map(|snapshot| snapshot.blocks.clone()).collect();
    let shards = fixture.empty_shards();
    for (shard, id) in shards.iter().zip((0..).map(ShardId)) {
        let map = fixture.map();
        let ids: BTreeSet<_> = map.of_shard(id).map(|block| block.id).collect();
        let blocks = all.iter().filter(|kept| ids.contains(&kept.block)).cloned().collect();
        shard.restore(Snapshot { blocks, ..snapshots[0].clone() }).unwrap();
        assert!(shard.is_initialised() && shard.open_step() == snapshots[0].commit);
    }
    shards
}

/// Trains six steps, and once more from the snapshot of step 3 on another number of servers.
fn goes_on(extra: &str) {
    let fixture = Fixture::new(3, 2, &format!("[checkpoint]\nevery = 3\n{extra}"));
    let shards = fixture.shards();
    let kept = train(&fixture, &shards, 0..6);
    let commits: Vec<_> = kept.iter().map(|snapshot| snapshot.commit.0).collect();
    assert_eq!(commits, [3, 3, 6, 6], "two servers, twice");
    for servers in [1, 2, 3] {
        let other = Fixture::new(3, servers, &format!("[checkpoint]\nevery = 3\n{extra}"));
        let again = restored(&other, &kept[..2]);
        let kept_again = train(&other, &again, 3..6);
        assert_eq!(parameters(&again), parameters(&shards), "{extra} on {servers} servers");
        let blocks = |kept: &[Snapshot]| kept.iter().flat_map(|snapshot| snapshot.blocks.clone()).collect::<Vec<_>>();
        assert_eq!(blocks(&kept_again), blocks(&kept[2..]), "{extra} on {servers} servers");
    }
}

#[test]
fn a_restored_shard_goes_on_as_the_first_would_have() {
    goes_on("[optimizer]\nname = 'adamw'\nema = 0.9");
    goes_on("[optimizer]\nname = 'lamb'\nclip_norm = 0.5");
    goes_on("[optimizer]\nname = 'momentum'");
}

#[test]
fn a_commit_may_be_asked_for_on_the_way() {
    let fixture = Fixture::new(3, 2, "[checkpoint]\nevery = 0\n[optimizer]\nname = 'adamw'");
    let shards = fixture.shards();
    train(&fixture, &shards, 0..2);
    // What is open is kept at once, what is to come when it is made, each once; what is over is not.
    let now = shards[0].save_at(Step(2)).unwrap().formed;
    assert_eq!((now.len(), now[0].snapshot.commit, now[0].is_copied), (1, Step(2), false));
    assert_eq!(shards[0].save_at(Step(2)).unwrap().formed, []);
    assert_eq!(shards[1].save_at(Step(1)), Err(Step(2)));
    shards.iter().for_each(|shard| assert_eq!(shard.save_at(Step(4)).unwrap().formed, []));
    let kept = train(&fixture, &shards, 2..6);
    assert_eq!(kept.iter().map(|snapshot| snapshot.commit).collect::<Vec<_>>(), [Step(4), Step(4)]);
    let again = restored(&fixture, &kept);
    train(&fixture, &again, 4..6);
    assert_eq!(parameters(&again), parameters(&shards));
}

#[test]
fn a_snapshot_in_the_middle_of_a_step_has_nothing_of_it() {
    let fixture = Fixture::new(2, 1, "[checkpoint]\nevery = 0\n[optimizer]\nname = 'momentum'");
    let shards = fixture.shards();
    let shard = &shards[0];
    for slice in 0..2 {
        let (push, _) = shard.open(&fixture.header(0, slice, 1.0)).unwrap();
        let blocks: Vec<_> = fixture.map().of_shard(ShardId(0)).filter(|b| b.role.is_trained()).collect();
        // One block of the step is made, the others wait for its second slice.
        for block in blocks.iter().take(if slice == 0 { blocks.len() } else { 1 }) {
            shard.accept(&push, &gradient(block, slice, 0)).unwrap();
        }
    }
    assert_eq!(shard.save_at(Step(0)), Err(Step(0)), "a part of it is gone");
    let kept = shard.save_at(Step(1)).unwrap();
    assert_eq!(kept.formed, [], "it is not made yet");
    assert!(matches!(shard.version(BlockId(0), Step(1), Weights::Trained), Ok(Lookup::Ready(_))));
}

/// Another server takes a shard over at commit 3, which a checkpoint needs, too: its bits are the same from there on.
#[test]
fn a_copy_goes_on_as_the_first_does() {
    let fixture = Fixture::new(3, 1, "[checkpoint]\nevery = 3\n[optimizer]\nname = 'adamw'\nema = 0.9");
    let shards = fixture.shards();
    train(&fixture, &shards, 0..2);
    assert_eq!(shards[0].copy_at(Step(2), Generation(1)), Err(Step(2)), "somebody may have pushed to it");
    assert_eq!(shards[0].copy_at(Step(3), Generation(1)).unwrap().formed, []);
    let formed = formed(&fixture, &shards, 2);
    let [one] = &formed[..] else { panic!("it is kept once: {formed:?}") };
    assert!(one.is_saved && one.is_copied && one.snapshot.commit == Step(3));
    let copy = fixture.empty_shards();
    copy[0].restore(Snapshot::clone(&one.snapshot)).unwrap();
    for shards in [&shards, &copy] {
        train(&fixture, shards, 3..6);
    }
    assert_eq!(parameters(&copy), parameters(&shards));
}

/// Everything that one step kept.
fn formed(fixture: &Fixture, shards: &[Shard], step: u64) -> Vec<Formed> {
    let mut formed = Vec::new();
    for slice in ORDER {
        let (push, opened) = shards[0].open(&fixture.header(step, slice, 3.0)).unwrap();
        formed.extend(opened.formed);
        for block in fixture.map().of_shard(ShardId(0)).filter(|b| b.role.is_trained()) {
            formed.extend(shards[0].accept(&push, &gradient(&block, slice, step)).unwrap().formed);
        }
    }
    formed
}

#[test]
fn who_does_not_know_of_a_copy_is_told_to_look() {
    let fixture = Fixture::new(3, 1, "");
    let shards = fixture.shards();
    let newer = ClusterView { generation: Generation(4), ..fixture.view.clone() };
    shards[0].set_view(newer);
    shards[0].copy_at(Step(1), Generation(4)).unwrap();
    train(&fixture, &shards, 0..1);
    let refused = shards[0].open(&fixture.header(1, 0, 3.0));
    assert_eq!(refused, Err(Refusal::Generation { ours: Generation(4), theirs: Generation(1) }));
    let knows = PushHeader { generation: Generation(4), ..fixture.header(1, 0, 3.0) };
    assert!(shards[0].open(&knows).is_ok());
}

#[test]
fn what_does_not_fit_is_named() {
    let fixture = Fixture::new(3, 1, "[checkpoint]\nevery = 1\n[optimizer]\nname = 'adamw'");
    let shards = fixture.shards();
    let kept = train(&fixture, &shards, 0..1).remove(0);
    let other = Fixture::new(3, 1, "[optimizer]\nname = 'sgd'");
    let slots = RestoreError::Slots { block: BlockId(0), got: 2, want: 0 };
    assert_eq!(other.empty_shards()[0].restore(kept.clone()), Err(slots));
    let less = Snapshot { blocks: kept.blocks[1..].to_vec(), ..kept.clone() };
    assert_eq!(fixture.empty_shards()[0].restore(less), Err(RestoreError::Block { want: BlockId(0) }));
    let mut blocks = kept.blocks.clone();
    blocks[1].parameters = blocks[0].parameters.clone();
    let error = fixture.empty_shards()[0].restore(Snapshot { blocks, ..kept }).unwrap_err();
    assert!(matches!(error, RestoreError::Length { block: BlockId(1), .. }), "{error}");
}
