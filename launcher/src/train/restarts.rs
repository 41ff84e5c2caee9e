//! Which processes are to be started again, and when: each up to a number of times, after a delay that doubles for as
//! long as nothing is trained in between.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use convoy_proto::ids::Role;

/// The longest delay.
const LONGEST: Duration = Duration::from_secs(30);

/// A process's place.
pub type Place = (Role, u32);

/// The restarts of a run's processes.
#[derive(Clone, Debug)]
pub struct Restarts {
    most: u32,
    first: Duration,
    /// How often each was started again, or is about to be.
    counts: BTreeMap<Place, u32>,
    /// How often since training got on.
    streaks: BTreeMap<Place, u32>,
    due: BTreeMap<Place, Instant>,
}

/// A restart that is to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The how-manieth it is, from 1.
    pub number: u32,
    /// After how long.
    pub delay: Duration,
}

impl Restarts {
    /// None yet; `most` of each process, the first after a delay of `first`.
    pub fn new(most: u32, first: Duration) -> Restarts {
        Restarts { most, first, counts: BTreeMap::new(), streaks: BTreeMap::new(), due: BTreeMap::new() }
    }

    /// Whether a process may be started again.
    pub fn may(&self, place: Place) -> bool {
        self.counts.get(&place).copied().unwrap_or(0) < self.most
    }

    /// Plans a restart, if there may be one.
    pub fn plan(&mut self, place: Place, now: Instant) -> Option<Plan> {
        let count = self.counts.entry(place).or_default();
        if *count >= self.most {
            return None;
        }
        let streak = self.streaks.entry(place).or_default();
        let delay = self.first.saturating_mul(1 << (*streak).min(16)).min(LONGEST);
        (*count, *streak) = (*count + 1, *streak + 1);
        self.due.insert(place, now + delay);
        Some(Plan { number: *count, delay })
    }

    /// A process is not wanted any more.
    pub fn cancel(&mut self, place: Place) {
        self.due.remove(&place);
    }

    /// Training gets on: whoever dies now does not die of how it is started.
    pub fn progressed(&mut self) {
        self.streaks.clear();
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// The processes that are to be started now; each is told of once.
    pub fn take_due(&mut self, now: Instant) -> Vec<Place> {
        let due: Vec<Place> = self.due.iter().filter(|(_, at)| **at <= now).map(|(place, _)| *place).collect();
        self.due.retain(|place, _| !due.contains(place));
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(rank: u32) -> Place {
        (Role::Worker, rank)
    }

    #[test]
    fn delays_double_and_come_to_an_end() {
        let (mut restarts, now) = (Restarts::new(3, Duration::from_secs(10)), Instant::now());
        let delays: Vec<_> = (0..4).map(|_| restarts.plan(worker(1), now).map(|plan| plan.delay.as_secs())).collect();
        assert_eq!(delays, [Some(10), Some(20), Some(30), None]);
        assert!(restarts.may(worker(0)) && !restarts.may(worker(1)));
    }

    #[test]
    fn progress_makes_delays_short_again() {
        let (mut restarts, now) = (Restarts::new(9, Duration::from_secs(1)), Instant::now());
        let mut delay = |place, has_progressed: bool| {
            if has_progressed {
                restarts.progressed();
            }
            restarts.plan(place, now).map(|plan| (plan.number, plan.delay.as_secs()))
        };
        let delays =
            [delay(worker(1), false), delay(worker(1), false), delay(worker(1), true), delay(worker(1), false)];
        assert_eq!(delays, [Some((1, 1)), Some((2, 2)), Some((3, 1)), Some((4, 2))]);
    }

    #[test]
    fn each_is_told_of_once_when_it_is_due() {
        let (mut restarts, now) = (Restarts::new(1, Duration::from_secs(1)), Instant::now());
        restarts.plan(worker(2), now);
        restarts.plan(worker(0), now + Duration::from_secs(5));
        assert_eq!(restarts.take_due(now), Vec::<Place>::new());
        assert_eq!(restarts.next(), Some(now + Duration::from_secs(1)));
        assert_eq!(restarts.take_due(now + Duration::from_secs(2)), [worker(2)]);
        assert_eq!(restarts.take_due(now + Duration::from_secs(9)), [worker(0)]);
        assert_eq!((restarts.next(), restarts.take_due(now + Duration::from_secs(9))), (None, vec![]));
    }
}
