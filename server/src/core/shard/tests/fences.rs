//! What is let in, and that a refusal changes nothing.

use super::*;

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
    let to_frozen = GradientBlock {
        block: frozen,
        node: part.node,
        encoding: Encoding::F32,
        payload: vec![0; 12].into(),
        place: None,
    };
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
    let block = ParameterBlock { block: BlockId(2), payload: vec![0; 20].into(), place: None };
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
