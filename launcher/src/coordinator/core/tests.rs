//! The coordinator without a socket.

use convoy_proto::{
    BUILD, PROTOCOL,
    config::layers::Layers,
    ids::SliceId,
    manifest::{Manifest, TensorRole},
    messages::{Effort, EvaluationPart, ShardReport, SliceHeader, StepReport, StepTimes, Terms, WorkerOffer},
    schedule::Horizon,
    tree::SliceTree,
};

use super::{super::evaluation::Kind, *};

pub(super) fn config() -> Config {
    Layers::new().toml("test", "workers = 2\nslices = 3\nname = 'r'").unwrap().raw().unwrap().resolve(1).unwrap()
}

pub(super) fn reference() -> Reference {
    let manifest = Manifest::new([("w".into(), vec![2], TensorRole::Trainable)]).unwrap();
    let horizon = Horizon { steps: 10, steps_per_epoch: 5 };
    Reference { manifest, data_fingerprint: vec![1, 2], horizon, kind: Kind::Classes }
}

pub(super) fn offer(role: Role, rank: u32) -> JoinOffer {
    let part = match role {
        Role::Server => JoinPart::Server { address: "10.0.0.1:7".into() },
        _ => JoinPart::Worker(Box::new(WorkerOffer {
            backend: "cpu".into(),
            device: "cpu".into(),
            numeric_class: "n".into(),
            data_fingerprint: reference().data_fingerprint,
            manifest: reference().manifest,
        })),
    };
    JoinOffer {
        protocol: PROTOCOL,
        build: BUILD.into(),
        run_id: "r".into(),
        role,
        rank,
        pid: 9,
        host: "h".into(),
        config_fingerprint: config().fingerprint(),
        part,
    }
}

fn full() -> (Cluster, [Member; 2], Member) {
    let mut cluster = Cluster::new(config(), reference());
    let mut join = |role, rank| {
        let incarnation = cluster.join(offer(role, rank), 0).unwrap().0.incarnation;
        Member { role, rank, incarnation }
    };
    let (server, first, second) = (join(Role::Server, 0), join(Role::Worker, 0), join(Role::Worker, 1));
    (cluster, [first, second], server)
}

pub(super) fn step(number: u64) -> Report {
    let terms = Terms { learning_rate: 0.1, loss_scale: 1.0 };
    let header = |slice| SliceHeader { slice: SliceId(slice), weight: 1.0, loss_sum: 1.0, finite: true };
    let verdict = Verdict::from_headers(Step(number), SliceTree::new(3), &[header(0), header(1), header(2)], terms);
    let effort = Effort { samples: 2, bytes_pushed: 8, bytes_pulled: 8, times: StepTimes::default() };
    Report::Step(StepReport { verdict, effort })
}

#[test]
fn a_run_from_the_first_join_to_the_end() {
    let (mut cluster, [first, second], _) = full();
    assert_eq!(cluster.phase(), Phase::Initialising);
    assert_eq!(cluster.view().owners, [WorkerId(0), WorkerId(1), WorkerId(1)]);
    assert_eq!(cluster.awaited(), "worker 0 to initialise");
    assert_eq!(cluster.report(first, Era(0), Report::Initialised), Ok(vec![Event::Phase(Phase::Training)]));
    assert!(matches!(cluster.report(second, Era(0), step(0)).as_deref(), Ok([Event::Step(_)])));
    assert_eq!(cluster.awaited(), "worker 0 at step 0");
    assert_eq!(cluster.report(first, Era(0), step(0)), Ok(vec![]), "a step is one event");
    let part = |slice| EvaluationPart { slice: SliceId(slice), weight: 2.0, loss_sum: 1.0, correct: 1 };
    let evaluation = |parts| Report::Evaluation { step: Step(1), weights: Weights::Trained, parts };
    assert_eq!(cluster.report(second, Era(0), evaluation(vec![part(1), part(2)])), Ok(vec![]));
    let events = cluster.report(first, Era(0), evaluation(vec![part(0)])).unwrap();
    assert!(matches!(
        events[..],
        [Event::Evaluated(Weights::Trained, Step(1), Score { step: 1, accuracy: Some(0.5), .. })]
    ));
    assert_eq!(cluster.report(first, Era(0), Report::Finished { step: Step(1) }), Ok(vec![]));
    assert_eq!(cluster.report(second, Era(0), Report::Finished { step: Step(1) }), Ok(vec![Event::Finished(Step(1))]));
    assert_eq!(cluster.workers()[1].as_ref().map(|w| (w.totals.samples, w.totals.bytes_pushed)), Some((2, 8)));
}

#[test]
fn the_handshake_names_both_sides() {
    let refuse = |change: fn(&mut JoinOffer)| {
        let mut cluster = Cluster::new(config(), reference());
        cluster.join(offer(Role::Worker, 0), 0).unwrap();
        let before = format!("{cluster:?}");
        let mut offer = offer(Role::Worker, 1);
        change(&mut offer);
        let refusal = cluster.join(offer, 0).unwrap_err().to_string();
        assert_eq!(format!("{cluster:?}"), before, "a refusal changes nothing");
        refusal
    };
    assert_eq!(refuse(|o| o.protocol = 9), "worker 1 (process 9 on h): its protocol version is 9, the cluster's is 1");
    assert_eq!(refuse(|o| o.run_id = "x".into()), "worker 1 (process 9 on h): its run is x, the cluster's is r");
    assert!(refuse(|o| o.config_fingerprint[0] ^= 1).contains("its configuration fingerprint is"));
    assert!(
        refuse(|o| {
            if let JoinPart::Worker(w) = &mut o.part {
                w.data_fingerprint = vec![9];
            }
        })
        .contains("its data fingerprint is 09…, the cluster's is 0102…")
    );
    assert!(
        refuse(|o| {
            if let JoinPart::Worker(w) = &mut o.part {
                w.manifest = Manifest::new([("w".into(), vec![3], TensorRole::Trainable)]).unwrap();
            }
        })
        .contains("its model is tensor 0 is w [3] Trainable here and w [2] Trainable there")
    );
    assert_eq!(refuse(|o| o.rank = 5), "there is no place for worker 5: the run has 2, counted from 0");
    assert_eq!(refuse(|o| o.rank = 0), "worker 0 is there already");
}

#[test]
fn who_falls_silent_is_named() {
    let (mut cluster, [first, second], server) = full();
    let lease = u64::from(config().timeouts.lease_ms);
    cluster.heartbeat(first, lease, 0).unwrap();
    cluster.heartbeat(server, lease, 0).unwrap();
    assert_eq!(cluster.silent(lease), []);
    assert_eq!(cluster.silent(lease + 1), [(second, lease + 1)]);
    let old = Member { incarnation: Incarnation(77), ..first };
    assert_eq!(cluster.heartbeat(old, 0, 0), Err(Refusal::Stranger(old)));
}

#[test]
fn reports_out_of_place_are_refused() {
    let (mut cluster, [first, second], _) = full();
    assert!(matches!(cluster.report(second, Era(0), Report::Initialised), Err(Refusal::OutOfPlace { .. })));
    assert!(matches!(cluster.report(first, Era(0), step(0)), Err(Refusal::OutOfPlace { .. })));
    cluster.report(first, Era(0), Report::Initialised).unwrap();
    assert!(matches!(cluster.report(first, Era(0), step(1)), Err(Refusal::OutOfPlace { .. })));
    for (step, slice) in [(11, 0), (1, 3)] {
        let part = EvaluationPart { slice: SliceId(slice), weight: 1.0, loss_sum: 1.0, correct: 1 };
        let evaluation = Report::Evaluation { step: Step(step), weights: Weights::Trained, parts: vec![part] };
        assert!(matches!(cluster.report(first, Era(0), evaluation), Err(Refusal::OutOfPlace { .. })));
    }
    assert_eq!(cluster.steps(), 0);
}

fn with(slices: u32, extra: &str) -> (Cluster, Vec<Member>) {
    let text = format!("workers = 3\nslices = {slices}\nname = 'r'\neval_every = 0\n{extra}");
    let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
    let mut reference = reference();
    reference.horizon.steps = 1;
    let mut cluster = Cluster::new(config.clone(), reference);
    let mut join = |role, rank| {
        let offer = JoinOffer { config_fingerprint: config.fingerprint(), ..offer(role, rank) };
        Member { role, rank, incarnation: cluster.join(offer, 0).unwrap().0.incarnation }
    };
    join(Role::Server, 0);
    let workers: Vec<_> = (0..3).map(|rank| join(Role::Worker, rank)).collect();
    cluster.report(workers[0], Era(0), Report::Initialised).unwrap();
    (cluster, workers)
}

#[test]
fn the_living_take_over_and_fewer_than_there_must_be_are_too_few() {
    let (mut cluster, workers) = with(3, "min_workers = 2");
    let before = cluster.view();
    assert_eq!(cluster.replaceable(1, false, false), Some(workers[1]));
    assert_eq!(cluster.lose(workers[1], false), Ok(vec![Event::Lost(workers[1])]));
    let view = cluster.view();
    assert_eq!(view.owners, [WorkerId(0), WorkerId(2), WorkerId(2)]);
    assert!(view.generation > before.generation);
    assert_eq!(cluster.heartbeat(workers[1], 5, 0), Err(Refusal::Stranger(workers[1])), "it is fenced off");
    assert!(cluster.silent(1_000_000).iter().all(|(member, _)| *member != workers[1]), "nobody waits for the dead");
    assert_eq!((cluster.replaceable(1, false, false), cluster.replaceable(0, false, false)), (None, None));
    assert_eq!(cluster.lose(workers[1], false), Err(Refusal::Stranger(workers[1])));
    let last = cluster.lose(workers[0], false);
    assert_eq!(last, Ok(vec![Event::Lost(workers[0]), Event::TooFew(1)]));
}

#[test]
fn a_worker_that_is_about_to_come_back_counts() {
    let (mut cluster, workers) = with(3, "min_workers = 3");
    assert_eq!((cluster.replaceable(1, false, false), cluster.replaceable(1, true, false)), (None, Some(workers[1])));
    assert_eq!(cluster.lose(workers[1], true), Ok(vec![Event::Lost(workers[1])]));
    assert_eq!((cluster.alive(), cluster.count()), (2, 3));
    assert!(cluster.awaited().contains("worker 1 to start again"), "{}", cluster.awaited());
    assert_eq!(cluster.view().owners, [WorkerId(0), WorkerId(2), WorkerId(2)]);
    assert_eq!(cluster.give_up(1), [Event::TooFew(2)]);
}

#[test]
fn who_is_beyond_the_slices_is_a_spare_until_somebody_dies() {
    let (mut cluster, workers) = with(2, "min_workers = 1");
    assert_eq!(cluster.view().owners, [WorkerId(0), WorkerId(1)]);
    cluster.lose(workers[0], false).unwrap();
    assert_eq!(cluster.view().owners, [WorkerId(1), WorkerId(2)]);
    cluster.lose(workers[1], false).unwrap();
    assert_eq!(cluster.view().owners, [WorkerId(2), WorkerId(2)]);
}

#[test]
fn a_run_ends_when_the_living_have_scored_what_the_dead_left() {
    let (mut cluster, workers) = with(3, "min_workers = 1");
    let part = |slice| EvaluationPart { slice: SliceId(slice), weight: 2.0, loss_sum: 1.0, correct: 1 };
    let evaluation = |slice| Report::Evaluation { step: Step(1), weights: Weights::Trained, parts: vec![part(slice)] };
    for worker in &workers {
        cluster.report(*worker, Era(0), step(0)).unwrap();
    }
    for (slice, worker) in [(0, workers[0]), (2, workers[2])] {
        cluster.report(worker, Era(0), evaluation(slice)).unwrap();
        assert_eq!(cluster.report(worker, Era(0), Report::Finished { step: Step(1) }), Ok(vec![]));
    }
    assert_eq!(
        cluster.lose(workers[1], false),
        Ok(vec![Event::Lost(workers[1])]),
        "its part of the last evaluation is missing"
    );
    let events = cluster.report(workers[2], Era(0), evaluation(1)).unwrap();
    assert!(matches!(events[..], [Event::Evaluated(..), Event::Finished(Step(1))]), "{events:?}");
}

#[test]
fn a_stop_is_settled_without_the_dead() {
    let (mut cluster, workers) = with(3, "");
    assert_eq!(cluster.replaceable(1, false, false), None);
    cluster.advance(Phase::Stopping);
    assert_eq!(cluster.replaceable(1, false, false), Some(workers[1]), "to stop, one is enough");
    cluster.report(workers[0], Era(0), Report::Pausing { pushed: Step(1) }).unwrap();
    cluster.report(workers[2], Era(0), Report::Pausing { pushed: Step(0) }).unwrap();
    assert_eq!(cluster.view().stop_at, None);
    cluster.lose(workers[1], false).unwrap();
    assert_eq!(cluster.view().stop_at, Some(Step(0)));
}

#[test]
fn a_stop_finishes_the_steps_that_all_have_pushed() {
    let (mut cluster, [first, second], _) = full();
    cluster.report(first, Era(0), Report::Initialised).unwrap();
    cluster.advance(Phase::Stopping);
    assert_eq!(cluster.view().stop_at, None);
    cluster.report(second, Era(0), Report::Pausing { pushed: Step(4) }).unwrap();
    assert_eq!(cluster.view().stop_at, None, "the other may have pushed less, or more");
    cluster.report(first, Era(0), Report::Pausing { pushed: Step(5) }).unwrap();
    assert_eq!(cluster.view().stop_at, Some(Step(4)));
}

#[test]
fn a_lost_server_ends_the_era() {
    let (mut cluster, [first, second], server) = full();
    cluster.report(first, Era(0), Report::Initialised).unwrap();
    cluster.report(first, Era(0), step(0)).unwrap();
    assert_eq!(cluster.lose_server(0), Some(server));
    assert!(cluster.is_broken() && cluster.gather().is_none());
    let origin = Origin { restore: Some("c".into()), commits: Step(7), ..Origin::default() };
    cluster.end_era();
    assert_eq!(cluster.roll_back(origin), None, "the server is awaited");
    let view = cluster.view();
    assert_eq!((view.era, view.phase, view.restore.as_deref()), (Era(1), Phase::Gathering, Some("c")));
    assert_eq!(cluster.report(second, Era(0), step(0)), Ok(vec![]), "what the old era did changes nothing");
    assert_eq!(cluster.engine().commits(), Step(7));
    let (admission, events) = cluster.join(offer(Role::Server, 0), 0).unwrap();
    assert!(events.contains(&Event::Phase(Phase::Initialising)));
    assert_eq!(cluster.awaited(), "server 0");
    let server = Member { role: Role::Server, rank: 0, incarnation: admission.incarnation };
    let mut tell = |era, report| cluster.report_shard(server, Era(era), report);
    assert_eq!(tell(0, ShardReport::Restored), Ok(vec![]), "not of this era");
    assert_eq!(tell(1, ShardReport::Restored), Ok(vec![Event::Phase(Phase::Training)]));
    assert!(matches!(cluster.report(second, Era(1), step(0)), Err(Refusal::OutOfPlace { .. })));
    assert!(matches!(cluster.report(second, Era(1), step(7)).as_deref(), Ok([Event::Step(_)])));
    assert_eq!(cluster.steps(), 8);
}

#[test]
fn who_dies_while_setting_the_first_parameters_leaves_them_broken() {
    let (mut cluster, [first, second], _) = full();
    cluster.lose(second, true).unwrap();
    assert!(!cluster.is_broken(), "it was not the one");
    cluster.lose(first, true).unwrap();
    assert!(cluster.is_broken());
    cluster.end_era();
    assert_eq!(cluster.roll_back(Origin::default()), None, "nobody is there");
    let (admission, events) = cluster.join(offer(Role::Worker, 1), 0).unwrap();
    assert!(events.contains(&Event::Phase(Phase::Initialising)));
    let second = Member { role: Role::Worker, rank: 1, incarnation: admission.incarnation };
    assert_eq!(cluster.view().initialiser, WorkerId(1));
    assert_eq!(cluster.report(second, Era(1), Report::Initialised), Ok(vec![Event::Phase(Phase::Training)]));
}

#[test]
fn workers_come_and_go() {
    let (mut cluster, [first, second], _) = full();
    assert!(matches!(cluster.may_scale(3), Err(Refusal::Scale(_))), "it does not train yet");
    cluster.report(first, Era(0), Report::Initialised).unwrap();
    assert_eq!(cluster.may_scale(3), Ok(2));
    assert!(cluster.may_scale(0).is_err() && cluster.may_scale(5000).is_err());
    cluster.scale(3);
    assert_eq!((cluster.await_workers(3), cluster.beyond(3)), (vec![2], vec![]));
    assert_eq!(cluster.view().owners, [WorkerId(0), WorkerId(1), WorkerId(1)], "nobody is there yet");
    let (admission, _) = cluster.join(offer(Role::Worker, 2), 0).unwrap();
    let third = Member { role: Role::Worker, rank: 2, incarnation: admission.incarnation };
    assert_eq!(cluster.view().owners, [WorkerId(0), WorkerId(1), WorkerId(2)]);
    assert!(cluster.report(third, Era(0), step(4)).is_ok(), "it takes up wherever the servers are");
    cluster.scale(1);
    assert_eq!((cluster.await_workers(1), cluster.beyond(1)), (vec![], vec![third, second]));
    for member in [third, second] {
        assert_eq!(cluster.lose(member, false), Ok(vec![Event::Lost(member)]), "as many as asked for are enough");
    }
    assert_eq!(cluster.view().owners, [WorkerId(0); 3]);
    cluster.scale(2);
    assert_eq!(cluster.await_workers(2), [1]);
    assert_eq!(cluster.count(), 2);
}

#[test]
fn who_is_to_set_the_first_parameters_stays_so_whoever_comes() {
    let (mut cluster, [first, second], _) = full();
    // The first dies before all are there, so that another is named.
    cluster.lose_server(0);
    cluster.lose(first, true).unwrap();
    cluster.end_era();
    cluster.has_begun = true;
    cluster.roll_back(Origin::default());
    cluster.join(offer(Role::Server, 0), 0).unwrap();
    assert_eq!((cluster.phase(), cluster.view().initialiser), (Phase::Initialising, WorkerId(1)));
    cluster.join(offer(Role::Worker, 0), 0).unwrap();
    assert_eq!(cluster.view().initialiser, WorkerId(1));
    assert_eq!(cluster.report(second, Era(1), Report::Initialised), Ok(vec![Event::Phase(Phase::Training)]));
}

#[test]
fn nobody_joins_beyond_what_was_asked_for_nor_a_run_that_stops() {
    let (mut cluster, [first, second], _) = full();
    cluster.report(first, Era(0), Report::Initialised).unwrap();
    cluster.scale(1);
    cluster.lose(second, false).unwrap();
    assert!(matches!(cluster.join(offer(Role::Worker, 1), 0), Err(Refusal::NoPlace { rank: 1, places: 1, .. })));
    cluster.scale(2);
    assert!(cluster.join(offer(Role::Worker, 1), 0).is_ok());
    cluster.lose(first, true).unwrap();
    assert_eq!(cluster.awaited_workers(), [0]);
    cluster.advance(Phase::Stopping);
    assert!(cluster.join(offer(Role::Worker, 0), 0).is_err());
}

#[test]
fn a_spare_may_miss_steps_and_delays_no_stop() {
    let config = Layers::new().toml("test", "workers = 2\nslices = 1\nname = 'r'").unwrap();
    let config = config.raw().unwrap().resolve(1).unwrap();
    let offer = |role, rank| JoinOffer { config_fingerprint: config.fingerprint(), ..offer(role, rank) };
    let mut cluster = Cluster::new(config.clone(), reference());
    let mut join = |role, rank| {
        let incarnation = cluster.join(offer(role, rank), 0).unwrap().0.incarnation;
        Member { role, rank, incarnation }
    };
    let (_, owner, spare) = (join(Role::Server, 0), join(Role::Worker, 0), join(Role::Worker, 1));
    cluster.report(owner, Era(0), Report::Initialised).unwrap();
    let effort = Effort { samples: 0, bytes_pushed: 0, bytes_pulled: 8, times: StepTimes::default() };
    assert!(cluster.report(spare, Era(0), Report::Missed { next: Step(2), effort }).is_ok());
    cluster.advance(Phase::Stopping);
    cluster.report(spare, Era(0), Report::Pausing { pushed: Step(2) }).unwrap();
    cluster.report(owner, Era(0), Report::Pausing { pushed: Step(5) }).unwrap();
    assert_eq!(cluster.view().stop_at, Some(Step(5)));
}

#[test]
fn a_worker_hangs_that_computes_for_much_longer_than_is_usual() {
    let (mut cluster, [first, second], _) = full();
    let lease = u64::from(config().timeouts.lease_ms);
    cluster.report(first, Era(0), Report::Initialised).unwrap();
    cluster.heartbeat(second, 1, 9 * lease).unwrap();
    assert_eq!(cluster.hung(), None, "nothing is known yet");
    for number in 0..8 {
        cluster.report(first, Era(0), step(number)).unwrap();
    }
    assert_eq!(cluster.hung(), None, "its first step may take long");
    cluster.report(second, Era(0), step(0)).unwrap();
    cluster.heartbeat(second, 1, 2 * lease).unwrap();
    assert_eq!(cluster.hung(), None, "no shorter than the floor");
    cluster.heartbeat(second, 1, 4 * lease).unwrap();
    assert_eq!(cluster.hung(), Some((second, 4 * lease, 3 * lease)));
    cluster.heartbeat(second, 2, 0).unwrap();
    assert_eq!(cluster.hung(), None, "it was only slow");
}
