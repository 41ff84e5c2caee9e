//! Workers that keep the others waiting, by the time that their own part of a step takes.

use std::collections::BTreeMap;

use convoy_proto::ids::WorkerId;

/// Steps before anybody is judged, and the weight of the newest in the mean.
const PATIENCE: u32 = 5;
const NEWEST: f64 = 0.2;
/// Slow is more than this times what is usual, and no longer slow is less than that.
const SLOW: f64 = 2.0;
const QUICK: f64 = 1.5;
/// Less than this is no matter.
const LEAST_SECONDS: f64 = 0.01;

/// A worker that has become slow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Straggler {
    /// Who.
    pub worker: WorkerId,
    /// How long its part of a step takes.
    pub seconds: f64,
    /// How long the others' takes, the one in the middle.
    pub usual: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    mean: f64,
    count: u32,
    is_slow: bool,
}

/// How long workers take.
#[derive(Clone, Debug, Default)]
pub struct Stragglers {
    times: BTreeMap<WorkerId, Times>,
}

impl Stragglers {
    /// Takes note of a worker's step; names it when it has become slow.
    pub fn note(&mut self, worker: WorkerId, seconds: f64) -> Option<Straggler> {
        let usual = self.usual(worker);
        let times = self.times.entry(worker).or_default();
        times.mean = if times.count == 0 { seconds } else { times.mean + NEWEST * (seconds - times.mean) };
        times.count += 1;
        let usual = usual.filter(|_| times.count >= PATIENCE)?;
        let was_slow = times.is_slow;
        times.is_slow = times.mean - usual > LEAST_SECONDS && times.mean > usual * if was_slow { QUICK } else { SLOW };
        (times.is_slow && !was_slow).then_some(Straggler { worker, seconds: times.mean, usual })
    }

    /// Whether a worker is slow now.
    pub fn is_slow(&self, worker: WorkerId) -> bool {
        self.times.get(&worker).is_some_and(|times| times.is_slow)
    }

    /// Forgets a worker that is gone.
    pub fn forget(&mut self, worker: WorkerId) {
        self.times.remove(&worker);
    }

    /// The middle of the others.
    fn usual(&self, worker: WorkerId) -> Option<f64> {
        let others = self.times.iter().filter(|(other, times)| **other != worker && times.count >= PATIENCE);
        let mut others: Vec<_> = others.map(|(_, times)| times.mean).collect();
        others.sort_by(f64::total_cmp);
        others.get(others.len() / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_straggler_is_named_once_until_it_recovers() {
        let mut stragglers = Stragglers::default();
        let mut named = String::new();
        for step in 0..60 {
            for worker in 0..4 {
                let is_slow = worker == 3 && !(20..40).contains(&step);
                if let Some(found) = stragglers.note(WorkerId(worker), if is_slow { 0.06 } else { 0.01 }) {
                    assert!(found.worker == WorkerId(3) && found.seconds > 0.02 && found.usual == 0.01, "{found:?}");
                    named += &format!("{step} ");
                }
            }
        }
        assert_eq!(named, "4 40 ");
    }

    #[test]
    fn equals_and_single_workers_are_not_slow() {
        let mut stragglers = Stragglers::default();
        let noted = (0..50).filter_map(|step| stragglers.note(WorkerId(step % 2), 1.0 + f64::from(step % 3) * 0.2));
        assert_eq!(noted.count(), 0);
        assert!((0..50).all(|_| Stragglers::default().note(WorkerId(0), 9.0).is_none()));
    }
}
