//! How long something may take, from how long it took: the median and a number of deviations from it.
//!
//! Deviations are measured by their own median (MAD), which a few outliers do not move: a straggler's times do not make
//! room for a worker that hangs.

use std::collections::VecDeque;

/// What is remembered, and how much of it there must be before anything is judged.
const REMEMBERED: usize = 128;
const ENOUGH: usize = 8;
/// Deviations from the median that are still usual, and times the median where all are equal.
const DEVIATIONS: f64 = 20.0;
const LEAST_FACTOR: f64 = 3.0;

/// The last times that something took.
#[derive(Clone, Debug, Default)]
pub struct Deadlines {
    seconds: VecDeque<f64>,
}

impl Deadlines {
    /// Takes note of how long it took.
    pub fn note(&mut self, seconds: f64) {
        if self.seconds.len() == REMEMBERED {
            self.seconds.pop_front();
        }
        self.seconds.push_back(seconds);
    }

    /// How long it may take, in milliseconds; nothing while too little is known.
    pub fn limit_ms(&self) -> Option<u64> {
        if self.seconds.len() < ENOUGH {
            return None;
        }
        let median = middle(self.seconds.iter().copied());
        let deviation = middle(self.seconds.iter().map(|seconds| (seconds - median).abs()));
        let limit = (median + DEVIATIONS * deviation).max(median * LEAST_FACTOR);
        Some((limit * 1e3) as u64)
    }
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(seconds: impl IntoIterator<Item = f64>) -> Option<u64> {
        let mut deadlines = Deadlines::default();
        seconds.into_iter().for_each(|seconds| deadlines.note(seconds));
        deadlines.limit_ms()
    }

    #[test]
    fn what_is_usual_decides() {
        assert_eq!(limit([1.0; 7]), None, "too little is known");
        assert_eq!(limit([1.0; 8]), Some(3_000), "all are equal");
        let spread = (0..100).map(|i| 1.0 + f64::from(i % 5) * 0.25);
        assert_eq!(limit(spread), Some(6_500), "1.5 s and 20 times 0.25 s");
    }

    #[test]
    fn outliers_do_not_move_it_and_the_past_is_forgotten() {
        let outliers = (0..100).map(|i| if i % 4 == 0 { 1_000.0 } else { 1.0 });
        assert_eq!(limit(outliers), Some(3_000));
        let slower = (0..REMEMBERED * 2).map(|i| if i < REMEMBERED { 1.0 } else { 5.0 });
        assert_eq!(limit(slower), Some(15_000));
    }
}
