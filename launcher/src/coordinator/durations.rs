//! How long steps take and where the time goes: over the last steps of a worker, and over all steps of the run.

use std::collections::VecDeque;

use convoy_proto::messages::StepTimes;
use serde::Serialize;

/// Where a worker's time goes, in the order in which it goes there.
pub const PHASES: [&str; 6] = ["data", "compute", "push", "wait", "pull", "load"];

/// Steps that the last ones are.
const RECENT: usize = 64;

/// Upper bounds of the counts, in seconds; there is one more count for what is longer.
pub const BOUNDS: [f64; 12] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Seconds by phase, in the order of [`PHASES`].
pub fn by_phase(times: &StepTimes) -> [f64; 6] {
    let StepTimes { data, compute, push, wait, pull, load } = *times;
    [data, compute, push, wait, pull, load]
}

/// A worker's last steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recent(VecDeque<[f64; 6]>);

impl Recent {
    /// Takes note of a step.
    pub fn note(&mut self, times: &StepTimes) {
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back(by_phase(times));
    }

    /// The mean seconds of a step by phase; nothing before the first.
    pub fn means(&self) -> Option<[f64; 6]> {
        let count = self.0.len();
        (count > 0).then(|| std::array::from_fn(|at| self.0.iter().map(|times| times[at]).sum::<f64>() / count as f64))
    }

    /// How long a step takes that is longer than this share of the others.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let mut totals: Vec<f64> = self.0.iter().map(|times| times.iter().sum()).collect();
        totals.sort_by(f64::total_cmp);
        let at = (share * totals.len() as f64) as usize;
        totals.get(at.min(totals.len().saturating_sub(1))).copied()
    }
}

/// Steps counted by how long they took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// By the first of [`BOUNDS`] that they do not exceed.
    pub counts: [u64; BOUNDS.len() + 1],
    /// Their seconds.
    pub sum: f64,
}

impl Histogram {
    fn note(&mut self, seconds: f64) {
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.counts[at] += 1;
        self.sum += seconds;
    }
}

/// All workers' steps, by phase in the order of [`PHASES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Durations(pub [Histogram; 6]);

impl Durations {
    /// Takes note of a worker's step.
    pub fn note(&mut self, times: &StepTimes) {
        self.0.iter_mut().zip(by_phase(times)).for_each(|(histogram, seconds)| histogram.note(seconds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(compute: f64) -> StepTimes {
        StepTimes { compute, wait: 0.5, ..StepTimes::default() }
    }

    #[test]
    fn the_last_steps_count() {
        let mut recent = Recent::default();
        assert_eq!((recent.means(), recent.quantile(0.5)), (None, None));
        (0..RECENT).for_each(|_| recent.note(&step(100.0)));
        (0..RECENT).for_each(|at| recent.note(&step(at as f64)));
        assert_eq!(recent.means(), Some([0.0, 31.5, 0.0, 0.5, 0.0, 0.0]));
        assert_eq!((recent.quantile(0.5), recent.quantile(0.99)), (Some(32.5), Some(63.5)));
    }

    #[test]
    fn steps_are_counted_by_their_length() {
        let mut durations = Durations::default();
        [0.001, 0.002, 7.0].into_iter().for_each(|seconds| durations.note(&step(seconds)));
        let compute = durations.0[1];
        assert_eq!((compute.counts[1], compute.counts[2], compute.counts[12], compute.sum), (1, 1, 1, 7.003));
        assert_eq!((durations.0[3].counts[9], durations.0[0].counts[0]), (3, 3));
    }
}
