//! Who computes which slice, where slices are dealt out as workers ask.
//!
//! Slices are dealt in the order of the data, each once; a slice whose worker dies is dealt again. Where an evaluation is
//! due, dealing stops until everything dealt is committed and the evaluation is complete, so that all score the same
//! parameters.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use convoy_proto::{
    clock::Clock,
    config::Config,
    ids::{SliceId, Step, WorkerId},
    messages::{PushId, Work},
    policy::{self, Pace, Policy},
};
use serde::{Deserialize, Serialize};

use super::evaluation::Lacking;

/// What a worker that asks is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deal {
    /// Do this.
    Now(Work),
    /// Wait for somebody, in words.
    Wait(String),
}

#[derive(Clone, Debug, Default)]
struct Hand {
    /// The numbers and the places of the slices that it has in hand: one that it computes, and maybe one that it pushes.
    held: Vec<(u64, u64)>,
    /// Pushes that were committed: its clock.
    pushes: u64,
    is_done: bool,
}

/// Which slices were committed: all before a place, but for some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The first place in the order of slices that was never dealt.
    pub next: u64,
    /// Places before it that are not committed.
    pub missing: BTreeSet<u64>,
}

/// The slices of a run.
#[derive(Clone, Debug)]
pub struct Dealer {
    policy: Arc<dyn Policy>,
    clock: Clock,
    slices: u32,
    /// Slices that a worker may have in hand.
    at_once: usize,
    eval_every: u64,
    reviews: bool,
    reviewed: Step,
    /// The next place in the order of slices that was never dealt, and those that came back.
    next: u64,
    returned: BTreeSet<u64>,
    sequence: u64,
    hands: BTreeMap<WorkerId, Hand>,
    committed: u64,
    /// The last evaluation that all workers are through with.
    evaluated: Step,
    is_stopping: bool,
    /// Whether nothing is dealt until a server can take part.
    is_held: bool,
}

impl Dealer {
    /// Nothing is dealt yet.
    pub fn new(config: &Config, steps: u64) -> Dealer {
        Dealer {
            policy: policy::of(config.mode).into(),
            clock: Clock::new(config, steps),
            slices: config.slices,
            at_once: if config.mode.overlaps() { 2 } else { 1 },
            eval_every: config.eval_every,
            reviews: config.reviews_evaluations(),
            reviewed: Step(0),
            next: 0,
            returned: BTreeSet::new(),
            sequence: 0,
            hands: BTreeMap::new(),
            committed: 0,
            evaluated: Step(0),
            is_stopping: false,
            is_held: false,
        }
    }

    /// Goes on after so many commits, which were of the slices that the cursor says.
    pub fn resume(&mut self, commits: Step, cursor: &Cursor) {
        self.committed = commits.0;
        (self.next, self.returned) = (cursor.next, cursor.missing.clone());
        self.evaluated = Step(commits.0.saturating_sub(1));
    }

    /// The number of the last slice that was dealt.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Goes on with the numbers after this one, so that none comes twice.
    pub fn number_from(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// Which slices were committed. Those in hand are not.
    pub fn cursor(&self) -> Cursor {
        let held = self.hands.values().flat_map(|hand| &hand.held).map(|(_, place)| *place);
        Cursor { next: self.next, missing: self.returned.iter().copied().chain(held).collect() }
    }

    /// A worker is there. Its clock starts where the slowest is, so that nobody waits for it to catch up.
    pub fn join(&mut self, worker: WorkerId) {
        let pushes = self.slowest();
        self.hands.insert(worker, Hand { pushes, ..Hand::default() });
    }

    /// A worker is gone; what it had in hand is dealt again.
    pub fn lose(&mut self, worker: WorkerId) {
        let held = self.hands.remove(&worker).map(|hand| hand.held).unwrap_or_default();
        self.returned.extend(held.into_iter().map(|(_, place)| place));
    }

    /// A push is committed.
    pub fn committed(&mut self, push: PushId) {
        self.committed += 1;
        if let Some(hand) = self.hands.get_mut(&push.worker) {
            hand.pushes += 1;
            hand.held.retain(|(sequence, _)| *sequence != push.sequence);
        }
    }

    /// Whether a worker has the slice in hand that a push of this number would bear.
    pub fn has_dealt(&self, push: PushId) -> bool {
        let hand = self.hands.get(&push.worker);
        hand.is_some_and(|hand| hand.held.iter().any(|(sequence, _)| *sequence == push.sequence))
    }

    /// Deals nothing for the time being, or goes on.
    pub fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// Whether nobody has a slice in hand.
    pub fn is_idle(&self) -> bool {
        self.hands.values().all(|hand| hand.held.is_empty())
    }

    /// Deals no other slice.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// An evaluation was reviewed: training may go on from it.
    pub fn review(&mut self, step: Step) {
        self.reviewed = self.reviewed.max(step);
    }

    /// How far ahead of the slowest a worker is.
    pub fn lead(&self, worker: WorkerId) -> u64 {
        self.hands.get(&worker).map_or(0, |hand| hand.pushes.saturating_sub(self.slowest()))
    }

    /// How far behind the quickest a worker is.
    pub fn lag(&self, worker: WorkerId) -> u64 {
        let quickest = self.hands.values().map(|hand| hand.pushes).max().unwrap_or(0);
        self.hands.get(&worker).map_or(0, |hand| quickest - hand.pushes)
    }

    fn slowest(&self) -> u64 {
        self.hands.values().filter(|hand| !hand.is_done).map(|hand| hand.pushes).min().unwrap_or(0)
    }

    /// What a worker is to do that has heard of slices up to number `after`; `lacking` says what a step's evaluation still
    /// needs from it or from others.
    pub fn deal(&mut self, worker: WorkerId, after: u64, lacking: impl Fn(Step) -> Lacking) -> Deal {
        let Some(hand) = self.hands.get(&worker) else { return Deal::Wait("its admission".into()) };
        if let Some((sequence, place)) = hand.held.iter().find(|(sequence, _)| *sequence > after) {
            return Deal::Now(self.work(*sequence, *place));
        }
        let in_hand = hand.held.len();
        if in_hand == self.at_once {
            return Deal::Wait(format!("worker {worker} to push"));
        }
        if let Some(end) = self.end() {
            return self.finish(worker, end, lacking(end));
        }
        if let Some(wait) = self.at_barrier(lacking) {
            return wait;
        }
        if self.is_held {
            return Deal::Wait(format!("{}, so that a server can take part", self.holders()));
        }
        // What is in hand counts as made, so that the bound holds for the parameters that it is computed with.
        let pace = Pace { own: self.hands[&worker].pushes + in_hand as u64, slowest: self.slowest() };
        if !self.policy.may_go_on(pace) {
            return Deal::Wait(format!("{}, {} steps behind", self.hindmost(), pace.own - pace.slowest));
        }
        let place = self.returned.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.sequence += 1;
        let held = (self.sequence, place);
        if let Some(hand) = self.hands.get_mut(&worker) {
            hand.held.push(held);
        }
        Deal::Now(self.work(held.0, held.1))
    }

    fn work(&self, sequence: u64, place: u64) -> Work {
        let slices = u64::from(self.slices);
        Work::Slice { sequence, step: place / slices, slice: SliceId((place % slices) as u32) }
    }

    /// How many slices a phase of dealing goes up to: the next evaluation, or the end.
    fn limit(&self) -> u64 {
        let evaluated = self.clock.steps_after(self.evaluated);
        let due = evaluated.checked_div(self.eval_every).map(|passed| (passed + 1) * self.eval_every);
        let due = due.map(|steps| steps.saturating_mul(self.clock.commits_a_step()));
        due.unwrap_or(u64::MAX).min(self.clock.commits())
    }

    /// How many commits the run ends with, once nothing is left to deal and to commit.
    fn end(&self) -> Option<Step> {
        let all = if self.is_stopping { self.committed } else { self.clock.commits() };
        (self.is_idle() && self.committed >= all).then_some(Step(self.committed))
    }

    fn finish(&mut self, worker: WorkerId, end: Step, lacking: Lacking) -> Deal {
        if !self.is_stopping && lacking == Lacking::Own {
            return Deal::Now(Work::Evaluate(end));
        }
        self.hands.entry(worker).or_default().is_done = true;
        Deal::Now(Work::Finished(end))
    }

    /// What a worker does at an evaluation, if everything up to it is dealt; afterwards dealing goes on.
    fn at_barrier(&mut self, lacking: impl Fn(Step) -> Lacking) -> Option<Deal> {
        if self.is_stopping {
            return Some(Deal::Wait(self.holders()));
        }
        let limit = self.limit();
        if self.next < limit || !self.returned.is_empty() {
            return None;
        }
        if self.committed < limit {
            return Some(Deal::Wait(self.holders()));
        }
        let at = Step(limit);
        match lacking(at) {
            Lacking::Own => return Some(Deal::Now(Work::Evaluate(at))),
            Lacking::Others => return Some(Deal::Wait("others to evaluate".into())),
            Lacking::Nothing => {}
        }
        if self.reviews && self.reviewed < at {
            return Some(Deal::Wait("the review of the evaluation".into()));
        }
        self.evaluated = at;
        None
    }

    fn hindmost(&self) -> String {
        let slowest = self.hands.iter().filter(|(_, hand)| !hand.is_done).min_by_key(|(_, hand)| hand.pushes);
        slowest.map_or_else(String::new, |(worker, _)| format!("worker {worker}"))
    }

    /// Who has slices in hand, in words.
    pub fn holders(&self) -> String {
        let holders = self.hands.iter().filter(|(_, hand)| !hand.held.is_empty());
        let holders: Vec<_> = holders.map(|(worker, _)| worker.to_string()).collect();
        if holders.is_empty() { "every worker".into() } else { format!("worker {} to push", holders.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use convoy_proto::{config::layers::Layers, ids::Incarnation};
    use proptest::prelude::*;

    use super::*;

    fn dealer(text: &str, workers: u32, steps: u64) -> Dealer {
        let text = format!("workers = {workers}\n{text}");
        let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        let mut dealer = Dealer::new(&config, steps);
        (0..workers).for_each(|worker| dealer.join(WorkerId(worker)));
        dealer
    }

    fn push(worker: u32, sequence: u64) -> PushId {
        PushId { worker: WorkerId(worker), incarnation: Incarnation(1), sequence }
    }

    /// What an evaluation lacks of which some workers have made their parts.
    fn lacking(scored: &BTreeSet<(u32, Step)>, alive: &[u32], worker: u32, step: Step) -> Lacking {
        match (scored.contains(&(worker, step)), alive.iter().all(|other| scored.contains(&(*other, step)))) {
            (false, _) => Lacking::Own,
            (true, false) => Lacking::Others,
            (true, true) => Lacking::Nothing,
        }
    }

    /// Plays a script: `a` to `d` ask, with nothing in hand that they know of; `e` to `h` are the same four, who ask beyond
    /// what they have; `A` to `D` have their first push committed, `x` to `z` are the deaths of a to c.
    fn play(dealer: &mut Dealer, script: &str) -> String {
        let mut told = Vec::new();
        let mut held: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        let (mut scored, mut evaluates) = (BTreeSet::new(), BTreeMap::new());
        for event in script.chars() {
            match event {
                'a'..='h' => {
                    let worker = (event as u32 - 'a' as u32) % 4;
                    let known = held.get(&worker).filter(|_| event >= 'e').and_then(BTreeSet::last);
                    let after = known.copied().unwrap_or(0);
                    // Who was told to evaluate has done so when it asks again.
                    scored.extend(evaluates.remove(&worker).map(|step| (worker, step)));
                    let alive: Vec<u32> = dealer.hands.keys().map(|worker| worker.0).collect();
                    told.push(
                        match dealer.deal(WorkerId(worker), after, |step| lacking(&scored, &alive, worker, step)) {
                            Deal::Now(Work::Slice { sequence, step, slice }) => {
                                held.entry(worker).or_default().insert(sequence);
                                format!("{event}:{step}.{slice}")
                            }
                            Deal::Now(Work::Evaluate(step)) => {
                                evaluates.insert(worker, step);
                                format!("{event}:eval {step}")
                            }
                            Deal::Now(Work::Finished(step)) => format!("{event}:end {step}"),
                            Deal::Wait(who) => format!("{event}:wait for {who}"),
                        },
                    );
                }
                'A'..='D' => {
                    let worker = event as u32 - 'A' as u32;
                    dealer.committed(push(worker, held.get_mut(&worker).unwrap().pop_first().unwrap()));
                }
                _ => dealer.lose(WorkerId(event as u32 - 'x' as u32)),
            }
        }
        told.join("; ")
    }

    /// Golden: asynchronous, with a barrier at the evaluation and at the end.
    #[test]
    fn dealing() {
        let mut dealer = dealer("mode = 'async'\neval_every = 1", 2, 2);
        let told = play(&mut dealer, "aabAaBbabaabABab");
        let golden = "a:0.0; a:0.0; b:0.1; a:wait for worker 1 to push; b:eval 2; a:eval 2; \
            b:wait for others to evaluate; a:1.0; a:1.0; b:1.1; a:eval 4; b:eval 4";
        assert_eq!(told, golden);
    }

    /// Golden: with a bound of one, nobody begins a step while more than one ahead of the slowest.
    #[test]
    fn bounded_staleness() {
        let mut dealer = dealer("mode = 'ssp'\neval_every = 0\n[consistency]\nmax_staleness = 1", 3, 9);
        let told = play(&mut dealer, "abcAaAaBabBbCacAa");
        let golden = "a:0.0; b:0.1; c:0.2; a:1.0; a:wait for worker 1, 2 steps behind; \
            a:wait for worker 2, 2 steps behind; b:1.1; b:wait for worker 2, 2 steps behind; a:1.2; c:2.0; \
            a:wait for worker 2, 2 steps behind";
        assert_eq!(told, golden);
    }

    /// Golden: while a push is on its way, one more slice is dealt, unless an evaluation or the bound is in between.
    #[test]
    fn the_next_slice_is_dealt_ahead() {
        let mut dealer = super::tests::dealer("mode = 'async'\neval_every = 1", 2, 2);
        let golden = "a:0.0; a:0.1; a:wait for worker 0 to push; b:wait for worker 0 to push; \
            a:wait for worker 0 to push; a:eval 2";
        assert_eq!(play(&mut dealer, "aeebAeAa").replace("e:", "a:"), golden);
        let mut dealer = super::tests::dealer("mode = 'ssp'\neval_every = 0\n[consistency]\nmax_staleness = 1", 2, 9);
        let golden = "a:0.0; a:0.1; a:wait for worker 1, 2 steps behind; b:1.0; a:1.1";
        assert_eq!(play(&mut dealer, "aeAebBe").replace("e:", "a:"), golden);
        let mut dealer = super::tests::dealer("mode = 'async'\neval_every = 0\n[consistency]\noverlap = false", 2, 1);
        assert_eq!(play(&mut dealer, "ae").replace("e:", "a:"), "a:0.0; a:wait for worker 0 to push");
        let mut dealer = super::tests::dealer("mode = 'async'\neval_every = 0", 2, 1);
        assert_eq!(play(&mut dealer, "aexbf").replace("e:", "a:").replace("f:", "b:"), "a:0.0; a:0.1; b:0.0; b:0.1");
    }

    #[test]
    fn a_slice_of_the_dead_is_dealt_again() {
        let mut dealer = dealer("mode = 'async'\neval_every = 0", 2, 1);
        assert_eq!(play(&mut dealer, "abAxbBbb"), "a:0.0; b:0.1; b:0.1; b:eval 2; b:end 2");
        let mut dealer = super::tests::dealer("mode = 'async'\neval_every = 0", 2, 1);
        assert_eq!(play(&mut dealer, "axbBbBbb"), "a:0.0; b:0.0; b:0.1; b:eval 2; b:end 2");
    }

    #[test]
    fn a_stop_waits_for_what_is_in_hand() {
        let mut dealer = dealer("mode = 'async'", 2, 5);
        play(&mut dealer, "ab");
        dealer.stop();
        dealer.committed(push(0, 1));
        assert_eq!(dealer.deal(WorkerId(0), 0, |_| Lacking::Own), Deal::Wait("worker 1 to push".into()));
        dealer.committed(push(1, 2));
        assert_eq!(dealer.deal(WorkerId(0), 0, |_| Lacking::Own), Deal::Now(Work::Finished(Step(2))));
    }

    proptest! {
        /// Whatever workers do, and whoever dies: every slice is committed exactly once, staleness stays within its
        /// bound, and the run ends.
        #[test]
        fn every_slice_once(seed in proptest::collection::vec((0u32..3, 0u8..12), 400), bound in 0u64..4, steps in 1u64..6) {
            let text = format!("mode = 'ssp'\neval_every = 2\n[consistency]\nmax_staleness = {bound}");
            let mut dealer = dealer(&text, 3, steps);
            let (mut held, mut scored) = (BTreeMap::<u32, VecDeque<_>>::new(), BTreeSet::new());
            let mut done: BTreeMap<(u64, u32), u32> = BTreeMap::new();
            let mut finished = BTreeSet::new();
            let rounds = (0..200u32).map(|round| (round % 3, 0));
            for (worker, event) in seed.into_iter().chain(rounds) {
                let (id, held) = (WorkerId(worker), held.entry(worker).or_default());
                let (heard, in_hand) = (held.back().map_or(0, |(sequence, _)| *sequence), held.len() as u64);
                if event == 11 && finished.is_empty() {
                    dealer.lose(id);
                    held.clear();
                    dealer.join(id);
                    continue;
                }
                if (in_hand == 2 || event % 2 == 0)
                    && let Some((sequence, place)) = held.pop_front()
                {
                    *done.entry(place).or_default() += 1;
                    dealer.committed(push(worker, sequence));
                    continue;
                }
                match dealer.deal(id, heard, |step| lacking(&scored, &[0, 1, 2], worker, step)) {
                    Deal::Now(Work::Slice { sequence, step, slice }) => {
                        prop_assert!(dealer.lead(id) + in_hand <= bound, "{} ahead", dealer.lead(id));
                        held.push_back((sequence, (step, slice.0)));
                    }
                    Deal::Now(Work::Evaluate(step)) => {
                        prop_assert_eq!(in_hand, 0);
                        scored.insert((worker, step));
                    }
                    Deal::Now(Work::Finished(step)) => {
                        prop_assert_eq!(step.0, steps * 3);
                        finished.insert(worker);
                    }
                    Deal::Wait(_) => {}
                }
            }
            prop_assert_eq!(finished.len(), 3);
            prop_assert!(done.values().all(|count| *count == 1) && done.len() as u64 == steps * 3, "{done:?}");
        }
    }
}
