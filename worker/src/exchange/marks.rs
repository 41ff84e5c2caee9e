//! Where the time of an exchange goes.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use convoy_proto::trace;

use crate::step::EXCHANGE;

/// Seconds of an exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Until the last gradient was handed to a connection.
    pub push: f64,
    /// From there until the first block came back.
    pub wait: f64,
    /// From there until the last one was here.
    pub pull: f64,
}

/// When the parts of an exchange ended, in nanoseconds since it began.
#[derive(Debug)]
pub(super) struct Marks {
    /// The exchange as a trace has it; its parts lie within.
    span: Mutex<Option<trace::Open>>,
    begun: Instant,
    pushed: AtomicU64,
    answered: AtomicU64,
}

impl Marks {
    /// An exchange for a step begins.
    pub fn begin(step: u64) -> Marks {
        let span = Mutex::new(trace::open("exchange", EXCHANGE, step));
        Marks { span, begun: Instant::now(), pushed: AtomicU64::new(0), answered: AtomicU64::new(u64::MAX) }
    }

    fn span(&self) -> MutexGuard<'_, Option<trace::Open>> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What calls for this exchange are below.
    pub fn caller(&self) -> Option<trace::SpanId> {
        self.span().as_ref().map(trace::Open::id)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// All gradients for a server are handed over.
    pub fn pushed(&self) {
        self.pushed.fetch_max(self.now(), Relaxed);
    }

    /// A block came back.
    pub fn answered(&self) {
        if self.answered.load(Relaxed) == u64::MAX {
            self.answered.fetch_min(self.now(), Relaxed);
        }
    }

    /// Where the time of a step's exchange went, now that everything is here.
    pub fn spent(&self, step: u64) -> Spent {
        let spent = split(self.pushed.load(Relaxed), self.answered.load(Relaxed), self.now());
        let mut start = self.begun;
        for (phase, seconds) in [("push", spent.push), ("wait", spent.wait), ("pull", spent.pull)] {
            let took = Duration::from_secs_f64(seconds);
            trace::past((phase, EXCHANGE, step), start, took);
            start += took;
        }
        self.span().take();
        spent
    }
}

/// Blocks may come back before all gradients are gone: then nobody waited.
fn split(pushed: u64, answered: u64, end: u64) -> Spent {
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
    let pushed = pushed.min(end);
    let answered = answered.clamp(pushed, end);
    Spent { push: seconds(0, pushed), wait: seconds(pushed, answered), pull: seconds(answered, end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        let nothing_back = Spent { push: 2.0, wait: 3.0, pull: 0.0 };
        assert_eq!(split(2_000_000_000, u64::MAX, 5_000_000_000), nothing_back);
        let overlapped = Spent { push: 2.0, wait: 0.0, pull: 3.0 };
        assert_eq!(split(2_000_000_000, 1_000_000_000, 5_000_000_000), overlapped);
        let nothing_pushed = Spent { push: 0.0, wait: 1.0, pull: 4.0 };
        assert_eq!(split(0, 1_000_000_000, 5_000_000_000), nothing_pushed);
    }
}
