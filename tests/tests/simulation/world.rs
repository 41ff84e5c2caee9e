//! The world of a case: cores, messages on their way, and what workers are about.

use std::collections::BTreeMap;

use convoy_launcher::coordinator::{
    core::{Cluster, Event, Origin, SaveEvent},
    evaluation::Kind,
    handshake::Reference,
    refusal::Refusal as NotHeard,
    saves::SavedSet,
};
use convoy_proto::{
    BUILD, PROTOCOL,
    blocks::BlockMap,
    config::Config,
    fates::Fate,
    ids::{Era, Incarnation, Member, Role, ServerId, Step},
    manifest::{Manifest, TensorRole},
    messages::{JoinOffer, JoinPart, ParameterBlock, Phase, Staged, Verdict, Weights, WorkerOffer},
    order::{Purpose, below, stream},
    schedule::Horizon,
    sum::payload_of,
};
use convoy_server::core::{
    kept::{Snapshot, Used},
    refusal::Refusal,
    shard::{Outcome, Shard},
    versions::Lookup,
};

use crate::{
    STEPS, WORKERS,
    model::{Message, config},
    workers::Hand,
};

pub struct World {
    pub config: Config,
    pub manifest: Manifest,
    pub random: Box<dyn FnMut(u64) -> u64>,
    pub cluster: Cluster,
    pub shards: Vec<Shard>,
    pub members: BTreeMap<u32, Member>,
    pub servers: BTreeMap<u32, Member>,
    pub hands: BTreeMap<u32, Hand>,
    pub mail: Vec<Message>,
    /// Staged pushes that wait for the coordinator's word.
    waiting: Vec<Staged>,
    /// Every commit, as the first shard that made it saw it.
    pub log: BTreeMap<Step, Verdict>,
    /// Of each push, which slice of the data it holds.
    pub dealt: BTreeMap<(u32, Incarnation, u64), (u64, u32)>,
    /// Steps and scores, in the order in which the coordinator told of them.
    pub told: Vec<u64>,
    pub scores: Vec<(u64, f64)>,
    pub ended: bool,
    /// Whether a worker came back.
    pub returned: bool,
    /// Checkpoints that are whole, and the parts that are on disk.
    pub checkpoints: BTreeMap<Step, Origin>,
    pub written: Vec<SavedSet>,
    pub disk: BTreeMap<(Step, Era, usize), Snapshot>,
    /// What commits used, by era, and where eras began.
    pub used: Vec<(Era, Used)>,
    pub begins: Vec<(Era, Step)>,
    /// How often a server died.
    pub crashes: u32,
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
            servers: BTreeMap::new(),
            hands: BTreeMap::new(),
            mail: Vec::new(),
            waiting: Vec::new(),
            log: BTreeMap::new(),
            dealt: BTreeMap::new(),
            told: Vec::new(),
            scores: Vec::new(),
            ended: false,
            returned: false,
            checkpoints: BTreeMap::new(),
            written: Vec::new(),
            disk: BTreeMap::new(),
            used: Vec::new(),
            begins: vec![(Era(0), Step(0))],
            crashes: 0,
        };
        (0..2).for_each(|rank| world.join(Role::Server, rank));
        (0..WORKERS).for_each(|rank| world.join(Role::Worker, rank));
        world.cluster.advance(Phase::Training);
        (0..2).for_each(|shard| {
            let core = world.first_shard(shard);
            world.shards.push(core);
        });
        world
    }

    pub fn draw(&mut self, bound: u64) -> u64 {
        (self.random)(bound)
    }

    pub fn join(&mut self, role: Role, rank: u32) {
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
        let (admission, events) = self.cluster.join(offer, 0).unwrap();
        self.note(events);
        let member = Member { role, rank, incarnation: admission.incarnation };
        if role == Role::Server {
            self.servers.insert(rank, member);
        } else {
            self.members.insert(rank, member);
            self.hands.insert(rank, Hand::at(Step(0)));
        }
    }

    pub fn new_shard(&self, shard: usize) -> Shard {
        let horizon = Horizon { steps: STEPS, steps_per_epoch: STEPS };
        Shard::new(ServerId(shard as u32), &self.config, (&self.manifest, horizon), self.cluster.view())
    }

    /// A shard of an era that begins with the first step.
    pub fn first_shard(&self, shard: usize) -> Shard {
        let core = self.new_shard(shard);
        let initialiser = self.cluster.view().initialiser;
        for block in BlockMap::new(&self.manifest, 2).of_shard(core.id()) {
            let values: Vec<f32> = block.range().map(|i| (i as f32 * 0.37).cos()).collect();
            let block = ParameterBlock { block: block.id, payload: payload_of(&values).to_vec().into() };
            core.initialise(self.members[&initialiser.0], &[block]).unwrap();
        }
        core
    }

    fn tell_shards(&mut self) {
        let view = self.cluster.view();
        (0..self.shards.len()).for_each(|shard| self.mail.push(Message::View(shard, view.clone())));
    }

    fn follow(&mut self, (shard, era): (usize, Era), outcome: Outcome) {
        let saves = outcome.formed.into_iter().filter(|formed| formed.is_saved);
        let saves = saves.map(|formed| Message::Save((shard, era), Snapshot::clone(&formed.snapshot)));
        self.mail.extend(saves);
        self.used.extend(outcome.used.into_iter().map(|used| (era, used)));
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
                        self.follow((shard, header.era), opened);
                        self.follow((shard, header.era), accepted);
                    }
                    Err(
                        Refusal::Era { .. }
                        | Refusal::Fenced { .. }
                        | Refusal::Generation { .. }
                        | Refusal::Step { .. }
                        | Refusal::Missed { .. }
                        | Refusal::NotOwner { .. },
                    ) => {}
                    Err(refusal) => panic!("{refusal}: {header:?}"),
                }
            }
            Message::Decide(part) => {
                let (server, era) = (self.server(part.server), part.era);
                match self.cluster.decide(server, part) {
                    Ok(Some(verdict)) => {
                        (0..2).for_each(|shard| self.mail.push(Message::Decided((shard, era), verdict.clone())));
                    }
                    Ok(None) | Err(NotHeard::Era { .. } | NotHeard::Stranger(_)) => {}
                    Err(problem) => panic!("{problem}"),
                }
            }
            Message::Stage(staged) => match self.cluster.stage(self.server(staged.server), staged.clone()) {
                Ok(_) => self.waiting.push(staged),
                Err(NotHeard::Era { .. } | NotHeard::Stranger(_)) => {}
                Err(problem) => panic!("{problem}"),
            },
            // What belongs to an era that is over reaches a shard that nobody asks any more.
            Message::Decided((shard, era), _)
            | Message::Chosen((shard, era), _)
            | Message::Dropped((shard, era), _)
            | Message::Save((shard, era), _)
                if self.shards[shard].era() != era => {}
            Message::Decided(at, verdict) => {
                let outcome = self.shards[at.0].decide(verdict);
                self.follow(at, outcome);
            }
            Message::Chosen(at, verdict) => {
                let outcome = self.shards[at.0].choose(verdict);
                self.follow(at, outcome);
            }
            Message::Dropped(at, header) => {
                let outcome = self.shards[at.0].drop_push(header.id());
                self.follow(at, outcome);
            }
            Message::Save((shard, era), snapshot) => self.save(shard, era, snapshot),
            Message::Restore(shard, era) => self.restore(shard, era),
            Message::View(shard, view) => {
                // Views come in order: an older one says nothing.
                let newest = self.cluster.view();
                self.shards[shard].set_view(if view.generation < newest.generation { newest } else { view });
            }
        }
    }

    fn server(&self, server: ServerId) -> Member {
        self.servers[&server.0]
    }

    /// One event: a message arrives, or a worker acts, or dies and comes back.
    fn tick(&mut self, faults: bool) {
        for staged in std::mem::take(&mut self.waiting) {
            let at = (staged.server.0 as usize, staged.era);
            if staged.era != self.cluster.era() {
                continue;
            }
            match self.cluster.engine().fate(&staged.header) {
                Fate::Open => self.waiting.push(staged),
                Fate::Decided(verdict) => {
                    let known = self.log.entry(verdict.step).or_insert_with(|| verdict.clone());
                    assert_eq!(*known, verdict, "a step has one verdict");
                    self.mail.push(Message::Chosen(at, verdict));
                }
                Fate::Dropped => self.mail.push(Message::Dropped(at, staged.header)),
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
        } else if faults && kind == 97 && self.crashes < 3 && !self.ended && self.draw(8) == 0 {
            self.crash();
        } else if faults && kind >= 98 {
            self.die_or_return();
        } else {
            let rank = self.draw(u64::from(WORKERS)) as u32;
            self.act(rank);
        }
        self.complete();
        self.check();
    }

    /// A worker dies, but never the last, or one that died comes back.
    fn die_or_return(&mut self) {
        let rank = self.draw(u64::from(WORKERS)) as u32;
        if let Some(member) = self.members.get(&rank).copied() {
            if self.members.len() > 1 {
                self.members.remove(&rank);
                self.hands.remove(&rank);
                let events = self.cluster.lose(member, false).unwrap();
                self.note(events);
                if self.cluster.is_broken() {
                    // It was to set the first parameters.
                    self.begin_era();
                }
            }
        } else {
            self.join(Role::Worker, rank);
            let begun = self.begins.last().unwrap().1;
            let step = match self.cluster.phase() >= Phase::Training {
                true => self.shards.iter().map(Shard::open_step).min().unwrap(),
                false => begun,
            };
            self.hands.insert(rank, Hand::at(step));
            self.returned = true;
        }
        self.tell_shards();
    }

    /// Takes note of what the coordinator tells.
    pub fn note(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Step(verdict) => self.told.push(self.cluster.engine().made(verdict.step).0),
                Event::Evaluated(_, _, score) => self.scores.push((score.step, score.loss)),
                Event::Finished(_) => self.ended = true,
                Event::Diverging(problem) => panic!("{problem}"),
                Event::Save(SaveEvent::Written(set)) => self.written.push(set),
                Event::NotRestored(member, problem) => panic!("{member}: {problem}"),
                _ => {}
            }
        }
    }

    /// What holds at every moment.
    fn check(&mut self) {
        if self.cluster.phase() < Phase::Training {
            return;
        }
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

    /// Steps that the coordinator counts.
    pub fn steps(&self) -> u64 {
        self.cluster.steps()
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
            if is_quiet && self.ended {
                return;
            }
            self.tick(faults);
        }
        let opens: Vec<_> = self.shards.iter().map(Shard::open_step).collect();
        panic!("it does not end: {} {opens:?} {:?}", self.cluster.awaited(), self.hands);
    }
}
