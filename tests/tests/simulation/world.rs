//! The world of a case: cores, messages on their way, and what workers are about.

use std::collections::{BTreeMap, BTreeSet};

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
    ids::{Era, Incarnation, Member, Role, ServerId, ShardId, Step},
    layout::Layout,
    manifest::{Manifest, TensorRole},
    messages::{ClusterView, JoinOffer, JoinPart, ParameterBlock, Phase, Staged, Verdict, WorkerOffer},
    order::{Purpose, below, stream},
    schedule::Horizon,
    sum::payload_of,
};
use convoy_server::core::{
    kept::{Snapshot, Used},
    refusal::Refusal,
    shard::{Outcome, Shard},
};

use crate::{
    STEPS, WORKERS,
    model::{At, Message, config},
    workers::Hand,
};

pub struct World {
    pub config: Config,
    pub manifest: Manifest,
    pub random: Box<dyn FnMut(u64) -> u64>,
    pub cluster: Cluster,
    /// By rank, what servers hold: nothing yet, where a shard is on its way.
    pub cores: BTreeMap<u32, Shard>,
    pub members: BTreeMap<u32, Member>,
    pub servers: BTreeMap<u32, Member>,
    /// The view that servers were told of last.
    told_view: ClusterView,
    pub hands: BTreeMap<u32, Hand>,
    pub mail: Vec<Message>,
    /// Staged pushes that wait for the coordinator's word.
    waiting: Vec<(Member, Staged)>,
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
    pub disk: BTreeMap<(Step, Era, ShardId), Snapshot>,
    /// What commits used, by era, and where eras began.
    pub used: Vec<(Era, Used)>,
    pub begins: Vec<(Era, Step)>,
    /// How often a server died, and how often another had its shard.
    pub crashes: u32,
    pub takeovers: u32,
    /// How often a server took its shard from another.
    pub copies: u32,
    /// Copies that were asked of servers, and those that are ready to be fetched.
    pub asked: BTreeSet<(Member, Member, Step)>,
    pub ready: BTreeMap<(Member, Step), Snapshot>,
    /// What servers keep that another is to write.
    pub reserve: BTreeMap<u32, (Era, Snapshot)>,
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
            told_view: cluster.view(),
            cluster,
            cores: BTreeMap::new(),
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
            takeovers: 0,
            copies: 0,
            asked: BTreeSet::new(),
            ready: BTreeMap::new(),
            reserve: BTreeMap::new(),
        };
        let servers = world.layout().servers();
        (0..servers).for_each(|rank| world.join(Role::Server, rank));
        (0..WORKERS).for_each(|rank| world.join(Role::Worker, rank));
        world.cluster.advance(Phase::Training);
        world.cores = (0..servers).map(|rank| (rank, world.first_shard(rank))).collect();
        world
    }

    pub fn layout(&self) -> Layout {
        Layout::of(&self.config)
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

    pub fn new_shard(&self, rank: u32) -> Shard {
        let horizon = Horizon { steps: STEPS, steps_per_epoch: STEPS };
        Shard::new(ServerId(rank), &self.config, (&self.manifest, horizon), self.cluster.view())
    }

    /// A shard of an era that begins with the first step.
    pub fn first_shard(&self, rank: u32) -> Shard {
        let core = self.new_shard(rank);
        let initialiser = self.cluster.view().initialiser;
        for block in BlockMap::new(&self.manifest, 2).of_shard(core.id()) {
            let values: Vec<f32> = block.range().map(|i| (i as f32 * 0.37).cos()).collect();
            let block = ParameterBlock { block: block.id, payload: payload_of(&values).to_vec().into(), place: None };
            core.initialise(self.members[&initialiser.0], &[block]).unwrap();
        }
        core
    }

    /// Tells servers how the cluster stands, if that has changed.
    fn tell(&mut self) {
        let view = self.cluster.view();
        if view != self.told_view {
            self.told_view = view.clone();
            self.mail.extend(self.cores.keys().map(|rank| Message::View(*rank, view.clone())));
        }
        if let Some(verdict) = self.cluster.settle_decision() {
            self.decided(&verdict);
        }
    }

    fn decided(&mut self, verdict: &Verdict) {
        let era = self.cluster.era();
        self.mail.extend(self.servers.values().map(|server| Message::Decided((*server, era), verdict.clone())));
    }

    pub fn follow(&mut self, (server, era): At, outcome: Outcome) {
        for formed in outcome.formed {
            self.formed((server, era), formed);
        }
        for used in outcome.used {
            let known = self.used.iter().find(|(of, other)| (*of, other.commit) == (era, used.commit));
            assert!(known.is_none_or(|(_, other)| *other == used), "copies say the same of {used:?}");
            if known.is_none() {
                self.used.push((era, used));
            }
        }
        self.mail.extend(outcome.accumulated.map(|part| Message::Decide(server, part)));
        self.mail.extend(outcome.staged.map(|staged| Message::Stage(server, staged)));
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Push(rank, header, block) => {
                // What nobody takes is sent again.
                let Some(core) = self.cores.get(&rank) else { return };
                let at = (self.servers[&rank], core.era());
                let outcomes = core.open(&header).and_then(|(push, opened)| {
                    let accepted = block.map(|block| core.accept(&push, &block)).transpose()?;
                    Ok((opened, accepted.unwrap_or_default()))
                });
                match outcomes {
                    Ok((opened, accepted)) => {
                        self.follow(at, opened);
                        self.follow(at, accepted);
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
            Message::Decide(server, part) => match self.cluster.decide(server, part) {
                Ok(Some(verdict)) => self.decided(&verdict),
                Ok(None) | Err(NotHeard::Era { .. } | NotHeard::Stranger(_)) => {}
                Err(problem) => panic!("{problem}"),
            },
            Message::Stage(server, staged) => match self.cluster.stage(server, staged.clone()) {
                Ok(_) => self.waiting.push((server, staged)),
                Err(NotHeard::Era { .. } | NotHeard::Stranger(_)) => {}
                Err(problem) => panic!("{problem}"),
            },
            // What belongs to an era that is over, or a process that is gone, reaches nobody.
            Message::Decided(at, _) | Message::Chosen(at, _) | Message::Dropped(at, _) | Message::Save(at, _)
                if !self.is_current(at) => {}
            Message::Decided(at, verdict) => {
                let outcome = self.cores[&at.0.rank].decide(verdict);
                self.follow(at, outcome);
            }
            Message::Chosen(at, verdict) => {
                let outcome = self.cores[&at.0.rank].choose(verdict);
                self.follow(at, outcome);
            }
            Message::Dropped(at, header) => {
                let outcome = self.cores[&at.0.rank].drop_push(header.id());
                self.follow(at, outcome);
            }
            Message::Save(at, snapshot) => self.save(at, snapshot),
            Message::Restore(rank, era) => self.restore(rank, era),
            Message::View(rank, view) => {
                // Views come in order: an older one says nothing.
                let newest = self.cluster.view();
                let view = if view.generation < newest.generation { newest } else { view };
                if let Some(core) = self.cores.get(&rank) {
                    core.set_view(view.clone());
                    self.heed(rank, &view);
                }
            }
        }
    }

    /// One event: a message arrives, or a worker acts, or dies and comes back.
    fn tick(&mut self, faults: bool) {
        for (server, staged) in std::mem::take(&mut self.waiting) {
            let at = (server, staged.era);
            if !self.is_current(at) {
                continue;
            }
            match self.cluster.engine().fate(&staged.header) {
                Fate::Open => self.waiting.push((server, staged)),
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
        } else if faults && kind == 97 && self.crashes < 4 && !self.ended && self.draw(8) == 0 {
            self.crash();
        } else if faults && kind == 96 {
            self.come_back();
        } else if kind == 95 {
            self.fill();
        } else if faults && kind >= 98 {
            self.die_or_return();
        } else {
            let rank = self.draw(u64::from(WORKERS)) as u32;
            self.act(rank);
        }
        self.complete();
        self.tell();
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
            let step = if self.cluster.phase() >= Phase::Training { self.common_step() } else { begun };
            self.hands.insert(rank, Hand::at(step));
            self.returned = true;
        }
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
        let opens: Vec<_> = self.cores.values().map(|core| core.open_step().0).collect();
        let (least, most) = (opens.iter().min().copied().unwrap_or(0), opens.iter().max().copied().unwrap_or(0));
        if !self.config.mode.is_chosen() {
            assert!(most - least <= 1, "servers are at {opens:?}");
            let told = self.cluster.engine().commits().0;
            assert!(told <= least, "{told} commits were made, and every server has them: {opens:?}");
        }
        for shard in self.cores.values() {
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

    pub fn run(&mut self, faults: bool) {
        for _ in 0..200_000u32 {
            let is_quiet = self.mail.is_empty() && self.waiting.is_empty();
            if is_quiet && self.ended {
                return;
            }
            self.tick(faults);
        }
        let opens: Vec<_> = self.cores.iter().map(|(rank, core)| (rank, core.open_step())).collect();
        panic!("it does not end: {} {opens:?} {:?} {:?}", self.cluster.awaited(), self.hands, self.cluster.view());
    }
}
