//! What the coordinator chooses, without a socket: staging, choices in order, drops, delay compensation.

use std::collections::BTreeSet;

use convoy_proto::{
    ids::Incarnation,
    messages::{Extent, Staged},
};

use super::{super::chosen::Snapshot, *};

fn fixture(extra: &str) -> Fixture {
    Fixture::new(2, 1, extra)
}

/// Pushes a slice to the only shard; gives what the coordinator is told.
fn push(
    fixture: &Fixture,
    shard: &Shard,
    (worker_rank, sequence, at): (u32, u64, u64),
) -> (PushHeader, Option<Staged>) {
    let header = PushHeader { member: worker(worker_rank), sequence, ..fixture.header(at, 0, 2.0) };
    let (push, outcome) = shard.open(&header).unwrap();
    let mut told = outcome.staged;
    for block in fixture.map().blocks().filter(|block| block.role.is_trained()) {
        told = told.or(shard.accept(&push, &gradient(&block, 0, sequence)).unwrap().staged);
    }
    (header, told)
}

/// The coordinator's word that a push is the commit `step`.
fn choice(header: &PushHeader, step: u64, learning_rate: f64) -> Verdict {
    let terms = Terms { learning_rate, loss_scale: 1.0 };
    let verdict = Verdict::from_headers(Step(step), SliceTree::new(1), &header.slices, terms);
    Verdict { push: Some(header.id()), staleness: step - header.step.0, ..verdict }
}

#[test]
fn a_push_waits_until_it_is_chosen_and_choices_keep_their_order() {
    let fixture = fixture("mode = 'async'");
    let shard = &fixture.shards()[0];
    let before = parameters(std::slice::from_ref(shard));
    let (first, told) = push(&fixture, shard, (0, 1, 0));
    assert_eq!(told.map(|staged| staged.header), Some(first.clone()), "the whole of it is here");
    let (second, _) = push(&fixture, shard, (1, 2, 0));
    assert_eq!(parameters(std::slice::from_ref(shard)), before);
    // The second choice arrives first, and waits for the first.
    assert!(!shard.choose(choice(&second, 1, 0.1)).changed);
    assert_eq!((shard.open_step(), shard.fate(second.id())), (Step(0), Fate::Open));
    assert!(shard.choose(choice(&first, 0, 0.1)).changed);
    assert_eq!(shard.open_step(), Step(2));
    assert!(matches!(shard.fate(second.id()), Fate::Decided(verdict) if verdict.staleness == 1));
    let after = parameters(std::slice::from_ref(shard));
    assert!(!shard.choose(choice(&first, 0, 0.1)).changed, "a choice that is known changes nothing");
    assert_eq!(parameters(std::slice::from_ref(shard)), after);
}

#[test]
fn what_is_dropped_or_comes_again_changes_nothing() {
    let fixture = fixture("mode = 'ssp'");
    let shard = &fixture.shards()[0];
    let before = parameters(std::slice::from_ref(shard));
    let (header, _) = push(&fixture, shard, (0, 1, 0));
    shard.drop_push(header.id());
    assert_eq!(shard.fate(header.id()), Fate::Dropped);
    let (_, told) = push(&fixture, shard, (0, 1, 0));
    assert_eq!(told, None, "it is over");
    // Half a push of a worker that is gone is forgotten, too.
    let half = PushHeader { member: worker(1), sequence: 2, ..fixture.header(0, 0, 2.0) };
    let (opened, _) = shard.open(&half).unwrap();
    shard.accept(&opened, &gradient(&fixture.map().blocks().next().unwrap(), 0, 2)).unwrap();
    let incarnations = vec![Incarnation(1), Incarnation(0)];
    shard.set_view(ClusterView { incarnations, generation: Generation(2), ..fixture.view.clone() });
    assert_eq!(shard.fate(half.id()), Fate::Dropped);
    assert_eq!(parameters(std::slice::from_ref(shard)), before);
    assert!(matches!(shard.open(&half), Err(Refusal::Fenced { .. })));
}

#[test]
fn a_push_of_one_name_is_one_push() {
    let fixture = fixture("mode = 'async'");
    let shard = &fixture.shards()[0];
    let header = PushHeader { sequence: 1, ..fixture.header(0, 0, 2.0) };
    shard.open(&header).unwrap();
    let other = fixture.header(0, 0, 5.0).slices;
    let again = shard.open(&PushHeader { slices: other, ..header.clone() });
    assert_eq!(again.unwrap_err(), Refusal::Contradiction(header.id()));
    let two = [0, 1].map(|slice| fixture.header(0, slice, 1.0).slices[0]).to_vec();
    assert!(matches!(shard.open(&PushHeader { slices: two, sequence: 2, ..header.clone() }), Err(Refusal::Node(..))));
    let ahead = PushHeader { step: Step(3), sequence: 3, ..header.clone() };
    assert_eq!(shard.open(&ahead).unwrap_err(), Refusal::Step { asked: Step(3), open: Step(0) });
    let scaled = PushHeader { loss_scale: 8.0, sequence: 4, ..header };
    assert!(matches!(shard.open(&scaled), Err(Refusal::LossScale { .. })));
}

#[test]
fn a_quorum_takes_the_chosen_slices_and_no_other() {
    let fixture = Fixture::new(3, 1, "workers = 3\n[consistency]\nquorum = 2\n[optimizer]\nname = 'sgd'\nlr = 0.5");
    let owners = ClusterView { owners: vec![WorkerId(0), WorkerId(1), WorkerId(0)], ..fixture.view.clone() };
    let (shards, reference) = (fixture.shards(), Fixture::new(3, 1, "[optimizer]\nname = 'sgd'\nlr = 0.5"));
    let shard = &shards[0];
    shard.set_view(owners);
    let mut headers = Vec::new();
    for slice in 0..3 {
        let header = PushHeader { sequence: u64::from(slice), ..fixture.header(0, slice, 2.0) };
        let (push, _) = shard.open(&header).unwrap();
        for block in fixture.map().blocks().filter(|block| block.role.is_trained()) {
            shard.accept(&push, &gradient(&block, slice, 0)).unwrap();
        }
        headers.push(header.slices[0]);
    }
    headers[1].weight = 0.0;
    let terms = Terms { learning_rate: 0.5, loss_scale: 1.0 };
    let verdict = Verdict::from_headers(Step(0), SliceTree::new(3), &headers, terms);
    assert!(shard.choose(verdict).changed);
    // The same as a synchronous step in which the slice is empty.
    let expected = reference.shards();
    for slice in [0, 2] {
        let (push, _) = expected[0].open(&reference.header(0, slice, 2.0)).unwrap();
        for block in reference.map().blocks().filter(|block| block.role.is_trained()) {
            expected[0].accept(&push, &gradient(&block, slice, 0)).unwrap();
        }
    }
    expected[0].open(&reference.header(0, 1, 0.0)).unwrap();
    assert_eq!(parameters(&shards), parameters(&expected));
    let late = PushHeader { sequence: 9, ..fixture.header(0, 1, 2.0) };
    let (push, _) = shard.open(&late).unwrap();
    let block = fixture.map().blocks().next().unwrap();
    assert!(!shard.accept(&push, &gradient(&block, 1, 0)).unwrap().changed, "it is over");
}

#[test]
fn a_quorum_leaves_a_part_that_holds_more_than_was_chosen() {
    let quorum = "workers = 2\n[consistency]\nquorum = 2\n[optimizer]\nname = 'sgd'\nlr = 0.5";
    let (fixture, reference) = (Fixture::new(4, 1, quorum), Fixture::new(4, 1, "[optimizer]\nname = 'sgd'\nlr = 0.5"));
    let shards = fixture.shards();
    let view = |owners: [u32; 4]| ClusterView { owners: owners.map(WorkerId).to_vec(), ..fixture.view.clone() };
    // One worker begins to push slices 2 and 3 in one sum, and loses slice 2 to another before it has pushed all of it.
    shards[0].set_view(view([0, 0, 1, 1]));
    let two = [fixture.header(0, 2, 2.0).slices[0], fixture.header(0, 3, 2.0).slices[0]];
    let header = PushHeader { member: worker(1), sequence: 7, slices: two.to_vec(), ..fixture.header(0, 2, 2.0) };
    let (push, _) = shards[0].open(&header).unwrap();
    let first = fixture.map().blocks().next().unwrap();
    let (mut sum, other) = (gradient(&first, 2, 0), gradient(&first, 3, 0));
    let mut values = vec![0.0; first.len as usize];
    convoy_proto::sum::add_payload(&mut values, &sum.payload);
    convoy_proto::sum::add_payload(&mut values, &other.payload);
    (sum.node, sum.payload) = (Node { first: 2, len: 2 }, convoy_proto::sum::payload_of(&values).to_vec().into());
    shards[0].accept(&push, &sum).unwrap();
    shards[0].set_view(view([0, 0, 0, 1]));
    let push = |shard: &Shard, slice: u32| {
        let header = PushHeader { member: worker(0), sequence: u64::from(slice), ..fixture.header(0, slice, 2.0) };
        let (push, _) = shard.open(&header).unwrap();
        for block in fixture.map().blocks().filter(|block| block.role.is_trained()) {
            shard.accept(&push, &gradient(&block, slice, 0)).unwrap();
        }
    };
    let expected = reference.shards();
    for slice in [0, 2] {
        push(&shards[0], slice);
        push(&expected[0], slice);
        expected[0].open(&reference.header(0, slice + 1, 0.0)).unwrap();
    }
    let weight = |slice: u32| if slice.is_multiple_of(2) { 2.0 } else { 0.0 };
    let headers = [0, 1, 2, 3].map(|slice| fixture.header(0, slice, weight(slice)).slices[0]);
    let terms = Terms { learning_rate: 0.5, loss_scale: 1.0 };
    assert!(shards[0].choose(Verdict::from_headers(Step(0), SliceTree::new(4), &headers, terms)).changed);
    assert_eq!((shards[0].open_step(), parameters(&shards)), (Step(1), parameters(&expected)));
}

/// `g + λ·g²·(p − p_then)`, where `p_then` is what the worker pulled.
#[test]
fn a_stale_gradient_is_corrected_for_what_has_changed_since() {
    let text = "mode = 'async'\n[consistency]\ncompensation = 0.5\n[optimizer]\nname = 'sgd'\nlr = 0.1";
    let fixture = fixture(text);
    let shard = &fixture.shards()[0];
    let block = fixture.map().get(BlockId(2)).unwrap();
    let values = |snapshot: Snapshot| {
        let found = snapshot.1.into_iter().find(|(id, _)| *id == block.id);
        found.map(|(_, version)| version.to_vec()).unwrap()
    };
    let pull = |rank| values(shard.newest(worker(rank), (Weights::Trained, Extent::Trained)).unwrap());
    let (then, _) = (pull(0), pull(1));
    let (other, _) = push(&fixture, shard, (1, 1, 0));
    shard.choose(choice(&other, 0, 0.1));
    let now = pull(1);
    assert_ne!(then, now);
    let (stale, _) = push(&fixture, shard, (0, 2, 0));
    shard.choose(choice(&stale, 1, 0.1));
    let payload = gradient(&block, 0, 2).payload;
    let sums = payload.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let expected: Vec<f32> = sums
        .zip(then.iter().zip(&now))
        .map(|(sum, (then, now))| {
            let mut g = sum / 2.0;
            g += 0.5 * g * g * (now - then);
            now - 0.1 * g
        })
        .collect();
    assert_eq!(pull(1), expected);
    let distinct: BTreeSet<_> = [then, now, expected].iter().map(|v| v[0].to_bits()).collect();
    assert_eq!(distinct.len(), 3);
}
