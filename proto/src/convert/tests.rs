//! Round trips, and what malformed messages are told.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    codec::Encoding,
    ids::{BlockId, Era, Generation, ServerId},
    messages::{
        Accumulated, ClusterView, DealtSlice, Extent, GradientBlock, JoinOffer, JoinPart, Pull, PulledPart, PushHeader,
        PushPart, Report, Setback, SliceHeader, Staged, Weights, Work, WorkerOffer,
    },
    tree::Node,
};

fn member() -> Member {
    Member { role: Role::Worker, rank: 3, incarnation: Incarnation(9) }
}

#[test]
fn a_push_survives_the_wire() {
    let slice = SliceHeader { slice: SliceId(1), weight: 16.0, loss_sum: 2.5, finite: true };
    let header = PushHeader {
        member: member(),
        generation: Generation(1),
        era: Era(2),
        step: Step(3),
        slices: vec![slice],
        loss_scale: 2.0,
        sequence: 12,
        dealt: Some(DealtSlice { step: 9, slice: SliceId(1) }),
    };
    let staged = Staged { server: ServerId(1), era: Era(2), header: header.clone() };
    let server = Member { role: Role::Server, rank: 1, incarnation: Incarnation(4) };
    let bytes = staged.clone().into_request(server).encode_to_vec();
    assert_eq!(Staged::try_from(wire::StageRequest::decode(bytes.as_slice()).unwrap()), Ok(staged));
    let block = GradientBlock {
        block: BlockId(7),
        node: Node { first: 2, len: 2 },
        encoding: Encoding::F32,
        payload: vec![1, 2, 3, 4].into(),
        place: None,
    };
    for part in [PushPart::Header(header), PushPart::Blocks(vec![block])] {
        let bytes = wire::PushPullRequest::from(part.clone()).encode_to_vec();
        let decoded = wire::PushPullRequest::decode(bytes.as_slice()).unwrap();
        assert_eq!(PushPart::try_from(decoded), Ok(part));
    }
}

#[test]
fn a_verdict_survives_the_wire() {
    let verdict = Verdict {
        step: Step(5),
        action: Action::SkipNonFinite,
        weight: 64.0,
        loss_sum: f64::INFINITY,
        clip: 0.5,
        learning_rate: 0.1,
        gradient_norm: Some(3.0),
        slices: vec![SliceId(0), SliceId(2)],
        loss_scale: 8.0,
        trust: vec![1.0, 0.25],
        push: Some(PushId { worker: WorkerId(2), incarnation: Incarnation(5), sequence: 6 }),
        staleness: 7,
    };
    assert_eq!(Verdict::try_from(Some(wire::Verdict::from(verdict.clone()))), Ok(verdict));
}

#[test]
fn work_and_what_was_missed_survive_the_wire() {
    let slice = Work::Slice { sequence: 3, step: 4, slice: SliceId(5) };
    for work in [slice, Work::Evaluate(Step(6)), Work::Finished(Step(7))] {
        let dealt = (work, Generation(7));
        assert_eq!(<(Work, Generation)>::try_from(wire::DealResponse::from(dealt)), Ok(dealt));
    }
    let setbacks = [Setback::Missed(Step(8)), Setback::Outdated(Generation(3)), Setback::Rescale(8.0)];
    for part in setbacks.map(PulledPart::Setback) {
        assert_eq!(PulledPart::try_from(wire::PushPullResponse::from(part.clone())), Ok(part));
    }
    for step in [None, Some(Step(9))] {
        let pull = Pull {
            member: member(),
            era: Era(1),
            step,
            weights: Weights::Trained,
            extent: Extent::Trained,
            is_shared: true,
        };
        assert_eq!(Pull::try_from(wire::PullRequest::from(pull)), Ok(pull));
    }
}

#[test]
fn a_join_survives_the_wire() {
    let manifest =
        Manifest::new([("w".into(), vec![2, 3], TensorRole::Trainable), ("b".into(), vec![3], TensorRole::Frozen)]);
    let offer = JoinOffer {
        protocol: 1,
        build: "b".into(),
        run_id: "r".into(),
        role: Role::Worker,
        rank: 2,
        pid: 77,
        host: "h".into(),
        config_fingerprint: vec![1],
        part: JoinPart::Worker(Box::new(WorkerOffer {
            backend: "cpu".into(),
            device: "d".into(),
            numeric_class: "n".into(),
            data_fingerprint: vec![2],
            manifest: manifest.unwrap(),
        })),
    };
    assert_eq!(JoinOffer::try_from(wire::JoinRequest::from(offer.clone())), Ok(offer));
}

#[test]
fn malformed_messages_are_told_which_field() {
    let slice = |weight, finite| wire::SliceHeader { slice: 0, weight, loss_sum: f64::NAN, finite };
    let header = |slice| wire::PushHeader { member: Some(member().into()), slices: vec![slice], ..Default::default() };
    let field = |result: Result<PushHeader>| result.map_err(|error| error.field);
    assert_eq!(field(header(slice(-1.0, true)).try_into()), Err("slice.weight"));
    assert_eq!(field(header(slice(f64::NAN, true)).try_into()), Err("slice.weight"));
    assert_eq!(field(header(slice(1.0, true)).try_into()), Err("slice.loss_sum"));
    assert!(PushHeader::try_from(header(slice(1.0, false))).is_ok());
    assert_eq!(field(wire::PushHeader::default().try_into()), Err("member"));

    let block = wire::GradientBlock { node_len: 1, encoding: 1, ..Default::default() };
    assert!(GradientBlock::try_from(block.clone()).is_ok());
    for bad in [
        wire::GradientBlock { node_len: 0, ..block.clone() },
        wire::GradientBlock { node_first: u32::MAX, ..block.clone() },
        wire::GradientBlock { encoding: 99, ..block.clone() },
    ] {
        assert!(GradientBlock::try_from(bad).is_err());
    }
    assert!(
        JoinOffer::try_from(wire::JoinRequest { role: 1, ..Default::default() }).is_err(),
        "a server has an address"
    );
    assert!(
        JoinOffer::try_from(wire::JoinRequest { role: 2, ..Default::default() }).is_err(),
        "a worker has a manifest"
    );
    let huge = wire::Tensor { name: "w".into(), shape: vec![u64::MAX, u64::MAX], role: 1 };
    assert_eq!(Manifest::try_from(wire::Manifest { tensors: vec![huge] }).unwrap_err().field, "manifest");
}

proptest! {
    /// Whatever decodes converts or is refused; nothing panics.
    #[test]
    fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = wire::PushPullRequest::decode(bytes.as_slice()) {
            let _ = PushPart::try_from(message);
        }
        if let Ok(message) = wire::PushPullResponse::decode(bytes.as_slice()) {
            let _ = PulledPart::try_from(message);
        }
        if let Ok(message) = wire::JoinRequest::decode(bytes.as_slice()) {
            let _ = JoinOffer::try_from(message);
        }
        if let Ok(message) = wire::WatchResponse::decode(bytes.as_slice()) {
            let _ = ClusterView::try_from(message);
        }
        if let Ok(message) = wire::DecideRequest::decode(bytes.as_slice()) {
            let _ = Accumulated::try_from(message);
        }
        if let Ok(message) = wire::Report::decode(bytes.as_slice()) {
            let _ = Report::try_from(message);
        }
    }
}
