//! The world of a case: cores, messages on their way, and what workers are about.

use std::collections::BTreeMap;

use convoy_launcher::coordinator::{
    commits::Fate as Chosen, core::Cluster, dealer::Deal, evaluation::Kind, handshake::Reference,
};
use convoy_proto::{
    BUILD, PROTOCOL,
    blocks::BlockMap,
    config::Config,
    ids::{Incarnation, Member, Role, ShardId, SliceId, Step, WorkerId},
    manifest::{Manifest, TensorRole},
    messages::{
        GradientBlock, JoinOffer, JoinPart, ParameterBlock, Phase, PushHeader, Report, Staged, StepReport, StepTimes,
        Verdict, Weights, Work, WorkerOffer,
    },
    order::{Purpose, below, stream},
    schedule::Horizon,
    sum::payload_of,
    tree::Node,
};
use convoy_server::core::{
    refusal::Refusal,
    shard::{Outcome, Shard},
    staging::Fate,
    versions::Lookup,
};

use crate::{
    STEPS, WORKERS,
    model::{Message, config, gradient, header_of, weight},
};

/// What a worker is about.
#[derive(Clone, Debug)]
struct Hand {
    step: Step,
    /// The headers of what it has pushed and that is not known to be committed.
    pushed: Option<PushHeader>,
    done: bool,
}

pub struct World {
    pub config: Config,
    pub manifest: Manifest,
    random: Box<dyn FnMut(u64) -> u64>,
    cluster: Cluster,
    shards: Vec<Shard>,
    members: BTreeMap<u32, Member>,
    hands: BTreeMap<u32, Hand>,
    mail: Vec<Message>,
    /// Staged pushes that wait for the coordinator's word.
    waiting: Vec<Staged>,
    /// Every commit, as the first shard that made it saw it.
    pub log: BTreeMap<Step, Verdict>,
    /// Of each push, which slice of the data it holds.
    pub dealt: BTreeMap<(u32, Incarnation, u64), (u64, u32)>,
}

impl World {
    pub fn new(mode: &str, seed: u64) -> World {
        let config = config(mode);
        let tensor = |name: &str, size, role| (name.to_string(), vec![size], role);
        let tensors = [
            tensor("a", 7, TensorRole::Trainable),
            tensor("mean", 2, TensorRole::Buffer),
            tensor("b", 9, TensorRole::Trainable),
        ];
        let manifest = Manifest::new(tensors).unwrap();
        let horizon = Horizon { steps: STEPS, steps_per_epoch: STEPS };
        let reference =
            Reference { manifest: manifest.clone(), data_fingerprint: vec![1], horizon, kind: Kind::Classes };
        let cluster = Cluster::new(config.clone(), reference);
        let mut world = World {
            config,
            manifest,
            random: {
                let mut rng = stream(seed, Purpose::Order, 99, 0);
                Box::new(move |bound| below(&mut rng, bound))
            },
            cluster,
            shards: Vec::new(),
            members: BTreeMap::new(),
            hands: BTreeMap::new(),
            mail: Vec::new(),
            waiting: Vec::new(),
            log: BTreeMap::new(),
            dealt: BTreeMap::new(),
        };
        (0..2).for_each(|rank| world.join(Role::Server, rank));
        (0..WORKERS).for_each(|rank| world.join(Role::Worker, rank));
        world.cluster.advance(Phase::Training);
        let view = world.cluster.view();
        let map = BlockMap::new(&world.manifest, 2);
        for shard in (0..2).map(ShardId) {
            let core = Shard::new(shard, &world.config, (&world.manifest, horizon), view.clone());
            for block in map.of_shard(shard) {
                let values: Vec<f32> = block.range().map(|i| (i as f32 * 0.37).cos()).collect();
                let block = ParameterBlock { block: block.id, payload: payload_of(&values).to_vec().into() };
                core.initialise(world.members[&0], &[block]).unwrap();
            }
            world.shards.push(core);
        }
        world
    }

    fn draw(&mut self, bound: u64) -> u64 {
        (self.random)(bound)
    }

    fn join(&mut self, role: Role, rank: u32) {
        let worker = WorkerOffer {
            backend: "cpu".into(),
            device: "cpu".into(),
            numeric_class: "n".into(),
            data_fingerprint: vec![1],
            manifest: self.manifest.clone(),
        };
        let part = match role {
            Role::Server => JoinPart::Server { address: "a".into() },
            _ => JoinPart::Worker(Box::new(worker)),
        };
        let config_fingerprint = self.config.fingerprint();
        let (protocol, build, run_id, host) = (PROTOCOL, BUILD.into(), "r".into(), "h".into());
        let offer = JoinOffer { protocol, build, run_id, role, rank, pid: 1, host, config_fingerprint, part };
        let incarnation = self.cluster.join(offer, 0).unwrap().0.incarnation;
        let member = Member { role, rank, incarnation };
        if role == Role::Worker {
            self.members.insert(rank, member);
            self.hands.insert(rank, Hand { step: Step(0), pushed: None, done: false });
        }
    }

    fn tell_shards(&mut self) {
        let view = self.cluster.view();
        (0..self.shards.len()).for_each(|shard| self.mail.push(Message::View(shard, view.clone())));
    }

    fn is_dealt(&self) -> bool {
        self.config.mode.is_dealt()
    }

    /// The parts of a push to all shards: some are lost now and then, and the worker sends them again.
    fn send(&mut self, header: &PushHeader, places: &[(u32, (u64, u32))]) {
        let map = BlockMap::new(&self.manifest, 2);
        for shard in 0..2 {
            self.mail.push(Message::Push(shard, header.clone(), None));
            for block in map.of_shard(ShardId(shard as u32)) {
                for (slice, place) in places.iter().filter(|(_, place)| weight(*place) > 0.0) {
                    let values = gradient(*place, block.len as usize, block.start);
                    let (node, payload) = (Node::leaf(SliceId(*slice)), payload_of(&values).to_vec().into());
                    let block = GradientBlock { block: block.id, node, payload };
                    self.mail.push(Message::Push(shard, header.clone(), Some(block)));
                }
            }
        }
    }

    /// Lets a worker do its next thing, or send again what it has in hand.
    fn act(&mut self, rank: u32) {
        let member = self.members[&rank];
        let hand = self.hands[&rank].clone();
        if hand.done {
            return;
        }
        if let Some(header) = &hand.pushed {
            return self.look(rank, header.clone());
        }
        let (mut step, mut sequence, mut places) = (hand.step, hand.step.0, Vec::new());
        if self.is_dealt() {
            match self.cluster.deal(member, Some(Step(u64::MAX))).unwrap() {
                Deal::Now(Work::Slice { sequence: number, step: of, slice }) => {
                    self.dealt.insert((rank, member.incarnation, number), (of, slice.0));
                    places.push((0, (of, slice.0)));
                    sequence = number;
                    step = self.shards.iter().map(Shard::open_step).min().unwrap();
                }
                Deal::Now(Work::Finished(_)) => self.hands.get_mut(&rank).unwrap().done = true,
                Deal::Now(Work::Evaluate(_)) | Deal::Wait(_) => {}
            }
        } else {
            let view = self.cluster.view();
            places.extend(view.owned_by(WorkerId(rank)).iter().map(|slice| (slice.0, (step.0, slice.0))));
        }
        if places.is_empty() {
            return;
        }
        let view = self.cluster.view();
        let header = PushHeader {
            member,
            generation: view.generation,
            era: view.era,
            step,
            sequence,
            slices: places.iter().map(|(slice, place)| header_of(*slice, *place)).collect(),
            loss_scale: 1.0,
        };
        self.send(&header, &places);
        self.hands.get_mut(&rank).unwrap().pushed = Some(header);
    }

    /// Sees whether a push is through; if not, maybe sends it again, with what the worker owns by now.
    fn look(&mut self, rank: u32, header: PushHeader) {
        let is_dealt = self.is_dealt();
        let verdict = |shard: &Shard| match is_dealt {
            true => match shard.fate(header.id()) {
                Fate::Committed(verdict) => Some(verdict),
                _ => None,
            },
            false => shard.closed(header.step).flatten(),
        };
        let verdicts: Vec<_> = self.shards.iter().filter_map(verdict).collect();
        let opens: Vec<_> = self.shards.iter().map(Shard::open_step).collect();
        let hand = self.hands.get_mut(&rank).unwrap();
        if verdicts.len() == self.shards.len() {
            assert_eq!(verdicts[0], verdicts[1], "both shards decided the same");
            hand.step = if is_dealt { hand.step } else { header.step.next() };
            hand.pushed = None;
            hand.done = !is_dealt && hand.step.0 == STEPS;
            let (samples, times) = (1, StepTimes::default());
            let report = StepReport { verdict: verdicts[0].clone(), samples, bytes_pushed: 1, bytes_pulled: 1, times };
            self.cluster.report(self.members[&rank], Report::Step(report)).unwrap();
        } else if !is_dealt && opens.iter().all(|open| *open > header.step.next() && *open == opens[0]) {
            // A quorum went on without it.
            (hand.step, hand.pushed, hand.done) = (opens[0], None, opens[0].0 == STEPS);
        } else if self.draw(4) == 0 {
            let place = |slice: u32| match is_dealt {
                true => self.dealt[&(rank, header.member.incarnation, header.sequence)],
                false => (header.step.0, slice),
            };
            let owned: Vec<u32> = match is_dealt {
                true => vec![0],
                false => self.cluster.view().owned_by(WorkerId(rank)).iter().map(|slice| slice.0).collect(),
            };
            let places: Vec<_> = owned.into_iter().map(|slice| (slice, place(slice))).collect();
            let slices: Vec<_> = places.iter().map(|(slice, place)| header_of(*slice, *place)).collect();
            // Another set of slices is another push.
            let sequence = header.sequence + if slices == header.slices { 0 } else { STEPS };
            let again = PushHeader { slices, sequence, generation: self.cluster.view().generation, ..header };
            self.send(&again, &places);
            self.hands.get_mut(&rank).unwrap().pushed = Some(again);
        }
    }

    fn follow(&mut self, outcome: Outcome) {
        self.mail.extend(outcome.accumulated.map(Message::Decide));
        self.mail.extend(outcome.staged.map(Message::Stage));
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Push(shard, header, block) => {
                let core = &self.shards[shard];
                let outcomes = core.open(&header).and_then(|(push, opened)| {
                    let accepted = block.map(|block| core.accept(&push, &block)).transpose()?;
                    Ok((opened, accepted.unwrap_or_default()))
                });
                match outcomes {
                    Ok((opened, accepted)) => {
                        self.follow(opened);
                        self.follow(accepted);
                    }
                    Err(
                        Refusal::Fenced { .. }
                        | Refusal::Step { .. }
                        | Refusal::Missed { .. }
                        | Refusal::NotOwner { .. },
                    ) => {}
                    Err(refusal) => panic!("{refusal}: {header:?}"),
                }
            }
            Message::Decide(part) => {
                let server = self.server(part.shard);
                if let Some(verdict) = self.cluster.decide(server, part).unwrap() {
                    (0..2).for_each(|shard| self.mail.push(Message::Decided(shard, verdict.clone())));
                }
            }
            Message::Decided(shard, verdict) => {
                let outcome = self.shards[shard].decide(verdict);
                self.follow(outcome);
            }
            Message::Stage(staged) => {
                let server = self.server(staged.shard);
                self.cluster.stage(server, staged.clone()).unwrap();
                self.waiting.push(staged);
            }
            Message::Chosen(shard, verdict) => {
                let outcome = self.shards[shard].choose(verdict);
                self.follow(outcome);
            }
            Message::Dropped(shard, header) => {
                let outcome = self.shards[shard].drop_push(header.id());
                self.follow(outcome);
            }
            Message::View(shard, view) => {
                // Views come in order: an older one says nothing.
                let newest = self.cluster.view();
                self.shards[shard].set_view(if view.generation < newest.generation { newest } else { view });
            }
        }
    }

    fn server(&self, shard: ShardId) -> Member {
        Member { role: Role::Server, rank: shard.0, incarnation: Incarnation(u64::from(shard.0) + 1) }
    }

    /// One event: a message arrives, or a worker acts, or dies and comes back.
    fn tick(&mut self, faults: bool) {
        for staged in std::mem::take(&mut self.waiting) {
            let shard = staged.shard.0 as usize;
            match self.cluster.engine().fate(&staged.header) {
                Chosen::Open => self.waiting.push(staged),
                Chosen::Verdict(verdict) => {
                    let known = self.log.entry(verdict.step).or_insert_with(|| verdict.clone());
                    assert_eq!(*known, verdict, "a step has one verdict");
                    self.mail.push(Message::Chosen(shard, verdict));
                }
                Chosen::Dropped => self.mail.push(Message::Dropped(shard, staged.header)),
            }
        }
        let kind = self.draw(100);
        if !self.mail.is_empty() && kind < 85 {
            let at = self.draw(self.mail.len() as u64) as usize;
            let message = self.mail.swap_remove(at);
            let fate = self.draw(20);
            // Pushes may be lost, for workers send again; what servers and coordinator say to each other is retried
            // below them, so it is only delayed and repeated.
            if faults && fate == 0 && matches!(message, Message::Push(..)) {
                return;
            }
            if faults && fate == 1 {
                self.mail.push(message.clone());
            }
            self.deliver(message);
        } else if faults && kind == 99 {
            let rank = self.draw(u64::from(WORKERS)) as u32;
            if !self.hands[&rank].done {
                self.cluster.lose(self.members[&rank]).unwrap();
                let step = self.shards.iter().map(Shard::open_step).min().unwrap();
                self.tell_shards();
                self.join(Role::Worker, rank);
                self.tell_shards();
                let dealt = self.is_dealt();
                let hand = self.hands.get_mut(&rank).unwrap();
                (hand.step, hand.done) = (step, !dealt && step.0 == STEPS);
            }
        } else {
            let rank = self.draw(u64::from(WORKERS)) as u32;
            self.act(rank);
        }
        self.check();
    }

    /// What holds at every moment.
    fn check(&mut self) {
        let opens: Vec<_> = self.shards.iter().map(|shard| shard.open_step().0).collect();
        if !self.config.mode.is_chosen() {
            assert!(opens[0].abs_diff(opens[1]) <= 1, "shards are {opens:?}");
        }
        for shard in &self.shards {
            let last = shard.open_step().0.checked_sub(1).and_then(|step| shard.committed(Step(step)));
            if let Some(verdict) = last {
                let known = self.log.entry(verdict.step).or_insert_with(|| verdict.clone());
                assert_eq!(*known, verdict, "a step has one verdict");
            }
        }
    }

    pub fn parameters(&self) -> Vec<f32> {
        let mut values = Vec::new();
        for shard in &self.shards {
            for block in shard.all_blocks() {
                match shard.version(block, shard.open_step(), Weights::Trained).unwrap() {
                    Lookup::Ready(version) => values.extend(version.iter().copied()),
                    other => panic!("{other:?}"),
                }
            }
        }
        values
    }

    pub fn run(&mut self, faults: bool) {
        for _ in 0..200_000u32 {
            let is_quiet = self.mail.is_empty() && self.waiting.is_empty();
            if is_quiet && self.hands.values().all(|hand| hand.done) {
                return;
            }
            self.tick(faults);
        }
        let opens: Vec<_> = self.shards.iter().map(Shard::open_step).collect();
        panic!("it does not end: {} {opens:?} {:?}", self.cluster.awaited(), self.hands);
    }
}
