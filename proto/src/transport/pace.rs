//! How fast a connection makes calls: no faster than a run needs, so that one who does nothing else takes little from others.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::limits::CALLS_PER_SECOND;

/// A connection's calls; clones share it. A bucket that fills with time, and that each call takes from.
#[derive(Clone, Debug)]
pub struct Pace(Arc<Mutex<(f64, Instant)>>);

impl Pace {
    /// A connection that has just begun may make a second's calls at once.
    pub fn new() -> Pace {
        Pace(Arc::new(Mutex::new((CALLS_PER_SECOND, Instant::now()))))
    }

    /// Whether another call may be made at a moment.
    pub fn may(&self, now: Instant) -> bool {
        let mut bucket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, last) = *bucket;
        let left = (left + now.saturating_duration_since(last).as_secs_f64() * CALLS_PER_SECOND).min(CALLS_PER_SECOND);
        let may = left >= 1.0;
        *bucket = (if may { left - 1.0 } else { left }, now.max(last));
        may
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn calls_are_let_through_as_fast_as_the_bucket_fills() {
        let (pace, start) = (Pace::new(), Instant::now());
        let count = |at: Instant| (0..).take_while(|_| pace.may(at)).count() as f64;
        let first = count(start);
        assert!((first - CALLS_PER_SECOND).abs() <= CALLS_PER_SECOND * 0.01, "{first}");
        assert!(!pace.may(start));
        let later = count(start + Duration::from_millis(500));
        assert!((later - CALLS_PER_SECOND / 2.0).abs() <= CALLS_PER_SECOND * 0.01, "{later}");
        // Time that goes back gives nothing.
        assert!(!pace.may(start));
    }
}
