//! What workers do: ask, evaluate, push, look whether it is through, and push again when slices have changed hands.

use std::collections::{BTreeMap, BTreeSet};

use convoy_launcher::coordinator::dealer::Deal;
use convoy_proto::{
    blocks::BlockMap,
    clock::Clock,
    codec::Encoding,
    fates::Fate,
    ids::{Member, Role, ServerId, ShardId, SliceId, Step, WorkerId},
    messages::{
        ClusterView, DealtSlice, Effort, EvaluationPart, GradientBlock, Phase, PushHeader, Report, StepReport, Verdict,
        Weights, Work,
    },
    sum::{self, payload_of},
    tree::{SliceTree, fold},
};
use convoy_server::core::{shard::Shard, versions::Lookup};

use crate::{
    EVAL_EVERY, SLICES, SOME_DAY, STEPS,
    model::{Message, gradient, header_of, score_of, weight},
    world::World,
};

/// What a worker is about.
#[derive(Clone, Debug)]
pub struct Hand {
    /// The step that its parameters are the input of.
    pub step: Step,
    /// The cluster as it knows it, which may be out of date.
    view: Option<ClusterView>,
    /// The headers of what it has pushed and that is not known to be committed, and to whom.
    pushed: Option<(PushHeader, Vec<Member>)>,
    /// The number of the last slice that it was dealt.
    heard: u64,
    /// What it has computed meanwhile: the number, and the step that its parameters were the input of.
    next: Option<(u64, Step)>,
    /// The evaluation that it took part in last, and its slices of it.
    evaluated: Option<(Step, BTreeSet<SliceId>)>,
    /// Whether it has said that it made its last step.
    finished: bool,
}

impl Hand {
    /// A worker that takes up with a step.
    pub fn at(step: Step) -> Hand {
        Hand { step, view: None, pushed: None, heard: 0, next: None, evaluated: None, finished: false }
    }
}

impl World {
    fn is_dealt(&self) -> bool {
        self.config.mode.is_dealt()
    }

    /// The cluster as a worker knows it: now and then, it looks.
    fn look_up(&mut self, rank: u32, is_late: bool) -> ClusterView {
        let now = self.cluster.view();
        let known = self.hands[&rank].view.clone().filter(|view| view.era == now.era && view.phase == now.phase);
        let view = match known {
            Some(known) if is_late && self.draw(4) > 0 => known,
            _ => now,
        };
        self.hands.get_mut(&rank).unwrap().view = Some(view.clone());
        view
    }

    /// The parts of a push to servers, in as few sums as there can be: some are lost now and then, and the worker sends
    /// them again.
    fn send(&mut self, (header, to): (&PushHeader, &[Member]), places: &[(u32, (u64, u32))]) {
        let (map, tree) = (BlockMap::new(&self.manifest, 2), SliceTree::new(SLICES));
        let places: BTreeMap<SliceId, (u64, u32)> =
            places.iter().map(|(slice, place)| (SliceId(*slice), *place)).collect();
        for Member { rank, .. } in to.iter().copied() {
            self.mail.push(Message::Push(rank, header.clone(), None));
            for block in map.of_shard(self.layout().shard_of(ServerId(rank))) {
                let mut leaf = |slice| {
                    let place = *places.get(&slice)?;
                    (weight(place) > 0.0).then(|| gradient(place, block.len as usize, block.start))
                };
                let mut add = |mut left: Vec<f32>, right: Vec<f32>| {
                    sum::add(&mut left, &right);
                    left
                };
                for node in tree.cover(&places.keys().copied().collect()) {
                    let Some(values) = fold(node, &mut leaf, &mut add) else { continue };
                    let payload = payload_of(&values).to_vec().into();
                    let block = GradientBlock { block: block.id, node, encoding: Encoding::F32, payload, place: None };
                    self.mail.push(Message::Push(rank, header.clone(), Some(block)));
                }
            }
        }
    }

    fn report(&mut self, member: Member, report: Report) {
        let events = self.cluster.report(member, self.cluster.era(), report).unwrap();
        self.note(events);
    }

    /// Scores what is this worker's of a step's evaluation and not scored yet, with parameters that must be there.
    fn evaluate(&mut self, member: Member, step: Step, view: &ClusterView) {
        let owned = view.owned_by(WorkerId(member.rank));
        let scored = match self.hands[&member.rank].evaluated.clone() {
            Some((at, scored)) if at == step => scored,
            _ => BTreeSet::new(),
        };
        let missing = &owned - &scored;
        let find =
            |shard: &Shard| shard.all_blocks().map(|b| shard.version(b, step, Weights::Trained).unwrap()).collect();
        let found: Vec<Vec<Lookup>> = self.leading().map(find).collect();
        let is_gone = found.iter().flatten().any(|found| matches!(found, Lookup::Gone));
        assert!(
            !is_gone || self.cluster.engine().is_scored(step),
            "parameters of {step} are kept until they are scored, eras {:?}",
            self.begins
        );
        if missing.is_empty() || !found.iter().flatten().all(|found| matches!(found, Lookup::Ready(_))) {
            return;
        }
        self.hands.get_mut(&member.rank).unwrap().evaluated = Some((step, &scored | &missing));
        let part =
            |slice: &SliceId| EvaluationPart { slice: *slice, weight: 1.0, loss_sum: score_of(*slice), correct: 0 };
        let parts = missing.iter().map(part).collect();
        self.report(member, Report::Evaluation { step, weights: Weights::Trained, parts });
    }

    /// Lets a worker do its next thing, or send again what it has in hand.
    pub fn act(&mut self, rank: u32) {
        let Some(member) = self.members.get(&rank).copied() else { return };
        if self.cluster.phase() < Phase::Training {
            // Servers are taking up an era.
            return;
        }
        let hand = self.hands[&rank].clone();
        if let Some((header, to)) = &hand.pushed {
            if self.is_dealt() && hand.next.is_none() && self.draw(2) == 0 {
                self.ask_ahead(member, hand.heard);
            }
            self.look(rank, header.clone(), to);
        } else if let Some((sequence, step)) = hand.next {
            self.hands.get_mut(&rank).unwrap().next = None;
            self.push_dealt(member, sequence, step);
        } else if hand.finished {
            // It stays until all are through, and takes over what others leave.
            let view = self.look_up(rank, true);
            self.evaluate(member, hand.step, &view);
        } else if self.is_dealt() {
            self.ask(member, hand.heard);
        } else {
            self.make_step(member, hand.step);
        }
    }

    /// Computes the next slice while the last one is on its way.
    fn ask_ahead(&mut self, member: Member, heard: u64) {
        if let Deal::Now(Work::Slice { sequence, step: of, slice }) = self.cluster.deal(member, heard).unwrap() {
            let step = self.take_slice(member, sequence, (of, slice.0));
            self.hands.get_mut(&member.rank).unwrap().next = Some((sequence, step));
        }
    }

    /// Takes note of a slice that is dealt, and gives the step that the newest parameters are the input of.
    fn take_slice(&mut self, member: Member, sequence: u64, place: (u64, u32)) -> Step {
        self.hands.get_mut(&member.rank).unwrap().heard = sequence;
        self.dealt.insert((member.rank, member.incarnation, sequence), place);
        self.leading().map(Shard::open_step).min().unwrap()
    }

    fn push_dealt(&mut self, member: Member, sequence: u64, step: Step) {
        let place = self.dealt[&(member.rank, member.incarnation, sequence)];
        // Who deals sees to it that the worker knows who takes part.
        let view = self.look_up(member.rank, false);
        self.push(member, (step, sequence), &[(0, place)], &view);
    }

    fn ask(&mut self, member: Member, heard: u64) {
        match self.cluster.deal(member, heard).unwrap() {
            Deal::Now(Work::Slice { sequence, step: of, slice }) => {
                let step = self.take_slice(member, sequence, (of, slice.0));
                self.push_dealt(member, sequence, step);
            }
            Deal::Now(Work::Evaluate(step)) => {
                let view = self.look_up(member.rank, true);
                self.evaluate(member, step, &view);
            }
            Deal::Now(Work::Finished(step)) => self.finish(member, step),
            Deal::Wait(_) => {}
        }
    }

    fn make_step(&mut self, member: Member, step: Step) {
        let view = self.look_up(member.rank, true);
        if Clock::new(&self.config, STEPS).is_due(step, EVAL_EVERY) || step.0 == STEPS {
            self.evaluate(member, step, &view);
        }
        if step.0 == STEPS {
            return self.finish(member, step);
        }
        let owned = view.owned_by(WorkerId(member.rank));
        let places: Vec<_> = owned.iter().map(|slice| (slice.0, (step.0, slice.0))).collect();
        self.push(member, (step, step.0), &places, &view);
    }

    fn finish(&mut self, member: Member, step: Step) {
        let hand = self.hands.get_mut(&member.rank).unwrap();
        (hand.step, hand.finished) = (step, true);
        self.report(member, Report::Finished { step });
    }

    fn push(
        &mut self,
        member: Member,
        (step, sequence): (Step, u64),
        places: &[(u32, (u64, u32))],
        view: &ClusterView,
    ) {
        if places.is_empty() {
            return;
        }
        let commit = if self.is_dealt() { SOME_DAY } else { step };
        let copies = (0..self.layout().shards()).flat_map(|shard| view.copies(ShardId(shard), commit));
        let to = copies.map(|server| {
            let incarnation = view.servers[server.index()].incarnation;
            Member { role: Role::Server, rank: server.0, incarnation }
        });
        let to: Vec<_> = to.collect();
        let header = PushHeader {
            member,
            generation: view.generation,
            era: view.era,
            step,
            sequence,
            slices: places.iter().map(|(slice, place)| header_of(*slice, *place)).collect(),
            loss_scale: 1.0,
            dealt: self.is_dealt().then(|| DealtSlice { step: places[0].1.0, slice: SliceId(places[0].1.1) }),
        };
        self.send((&header, &to), places);
        self.hands.get_mut(&member.rank).unwrap().pushed = Some((header, to));
    }

    /// Sees whether a push is through; if not, maybe sends it again, with what the worker owns by now.
    fn look(&mut self, rank: u32, header: PushHeader, to: &[Member]) {
        let (is_dealt, view) = (self.is_dealt(), self.cluster.view());
        let commit = if is_dealt { SOME_DAY } else { header.step };
        let verdict = |shard: &Shard| match is_dealt {
            true => match shard.fate(header.id()) {
                Fate::Decided(verdict) => Some(verdict),
                _ => None,
            },
            false => shard.closed(header.step).flatten(),
        };
        // Whoever is gone is not waited for, nor who was told to take part later.
        let takes_part = |server: &&Member| {
            let there = view.server(ServerId(server.rank));
            there.is_some_and(|there| there.incarnation == server.incarnation && there.since.includes(commit))
        };
        let awaited: Vec<u32> = to.iter().filter(takes_part).map(|server| server.rank).collect();
        let cores = || awaited.iter().filter_map(|rank| self.cores.get(rank));
        let verdicts: Vec<Verdict> = cores().filter_map(verdict).collect();
        let opens: Vec<_> = cores().map(Shard::open_step).collect();
        let layout = self.layout();
        let has_one = |shard: u32| awaited.iter().any(|rank| layout.shard_of(ServerId(*rank)) == ShardId(shard));
        let is_whole = (0..layout.shards()).all(has_one);
        let common = self.common_step();
        let hand = self.hands.get_mut(&rank).unwrap();
        if verdicts.len() == awaited.len() && is_whole {
            assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "all servers decided the same");
            hand.step = if is_dealt { hand.step } else { header.step.next() };
            hand.pushed = None;
            let report = StepReport { verdict: verdicts[0].clone(), effort: Effort::default() };
            self.report(self.members[&rank], Report::Step(report));
        } else if !is_dealt && opens.iter().all(|open| *open > header.step.next() && *open == common) {
            // A quorum went on without it.
            (hand.step, hand.pushed) = (common, None);
            let report = Report::Missed { next: common, effort: Effort::default() };
            self.report(self.members[&rank], report);
        } else if self.draw(4) == 0 {
            self.push_again(rank, header);
        }
    }

    fn push_again(&mut self, rank: u32, header: PushHeader) {
        let member = header.member;
        let is_evaluated = self.hands[&rank].evaluated.as_ref().is_some_and(|(at, _)| *at == header.step);
        let view = self.look_up(rank, true);
        if is_evaluated && !self.is_dealt() {
            self.evaluate(member, header.step, &view);
        }
        let places: Vec<_> = match self.is_dealt() {
            true => vec![(0, self.dealt[&(rank, member.incarnation, header.sequence)])],
            false => {
                let owned = view.owned_by(WorkerId(rank));
                owned.iter().map(|slice| (slice.0, (header.step.0, slice.0))).collect()
            }
        };
        let slices: Vec<_> = places.iter().map(|(slice, place)| header_of(*slice, *place)).collect();
        // Another set of slices is another push.
        let sequence = header.sequence + if slices == header.slices { 0 } else { STEPS };
        self.push(member, (header.step, sequence), &places, &view);
    }
}
