//! How quickly a run goes now: by what was done in the last seconds.

use std::collections::VecDeque;

/// How far back, in seconds.
const WINDOW: f64 = 10.0;
/// Changes that count, however long ago they were: a round of local steps may take minutes.
const CHANGES: usize = 3;

/// What was done until some moments: those of the last seconds at which something was new.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    changes: VecDeque<Done>,
    /// The last moment, at which nothing may have been new.
    now: f64,
}

/// What was done until a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Done {
    /// The moment, in seconds from any start.
    pub at: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Samples of the run.
    pub samples: u64,
    /// Samples by worker.
    pub of_workers: Vec<u64>,
}

impl Rates {
    /// Takes note. A run that goes back to a checkpoint begins anew.
    pub fn note(&mut self, done: Done) {
        self.now = done.at;
        let changes = &mut self.changes;
        if changes.back().is_some_and(|last| last.steps > done.steps || last.samples > done.samples) {
            changes.clear();
        }
        if changes.back().is_some_and(|last| (last.steps, last.samples) == (done.steps, done.samples)) {
            return;
        }
        while changes.len() >= CHANGES && changes.front().is_some_and(|first| done.at - first.at > WINDOW) {
            changes.pop_front();
        }
        changes.push_back(done);
    }

    /// Something a second; nothing as long as there is nothing to compare with.
    fn rate(&self, of: impl Fn(&Done) -> Option<u64>) -> Option<f64> {
        let (first, last) = (self.changes.front()?, self.changes.back()?);
        let seconds = last.at - first.at;
        // Where the next change takes much longer than those before, it slows down, or stands still.
        let usual = seconds / (self.changes.len() - 1).max(1) as f64;
        let since = self.now - last.at;
        let seconds = if since > 2.0 * usual.max(1.0) { seconds + since } else { seconds };
        let (before, now) = (of(first)?, of(last)?);
        (self.changes.len() > 1 && seconds > 0.0).then(|| now.saturating_sub(before) as f64 / seconds)
    }

    /// Steps a second.
    pub fn steps(&self) -> Option<f64> {
        self.rate(|done| Some(done.steps))
    }

    /// Samples a second.
    pub fn samples(&self) -> Option<f64> {
        self.rate(|done| Some(done.samples))
    }

    /// Samples a second of a worker.
    pub fn of_worker(&self, rank: usize) -> Option<f64> {
        self.rate(|done| done.of_workers.get(rank).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_seconds_count() {
        let mut rates = Rates::default();
        assert_eq!(rates.steps(), None);
        for at in 0..30u64 {
            let quick = at.max(15) - 15;
            let of_workers = if at < 25 { vec![at * 3] } else { vec![at * 3, at] };
            rates.note(Done { at: at as f64, steps: at + quick, samples: 10 * at, of_workers });
        }
        assert_eq!((rates.steps(), rates.samples()), (Some(2.0), Some(10.0)));
        assert_eq!((rates.of_worker(0), rates.of_worker(1), rates.of_worker(7)), (Some(3.0), None, None));
        rates.note(Done { at: 31.0, ..Done::default() });
        assert_eq!(rates.steps(), None, "it went back");
    }

    #[test]
    fn long_rounds_have_a_rate_and_a_run_that_stands_still_has_less_and_less() {
        let mut rates = Rates::default();
        for at in 0..=300u64 {
            rates.note(Done { at: at as f64, steps: at / 60 * 500, samples: at / 60 * 9_000, of_workers: Vec::new() });
            assert!(at < 60 || rates.steps().is_some_and(|rate| (rate - 500.0 / 60.0).abs() < 0.1), "{at}");
        }
        rates.note(Done { at: 700.0, steps: 2_500, samples: 45_000, of_workers: Vec::new() });
        assert!(rates.steps().unwrap() < 3.0);
    }
}
