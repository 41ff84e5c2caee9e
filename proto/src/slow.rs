//! `--slow-worker`: a testing aid that makes workers slow, so that modes can be compared on one machine.
//!
//! It delays a worker and changes nothing else: a synchronous run ends in the same bits.

use std::{fmt, str::FromStr, time::Duration};

use crate::{
    ids::WorkerId,
    order::{Purpose, stream, unit},
};

/// Who is delayed, by how much, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowWorker {
    /// One worker, or each.
    pub who: Option<WorkerId>,
    /// Added to a step.
    pub delay_ms: u64,
    /// How likely a step is delayed.
    pub probability: f64,
}

impl SlowWorker {
    /// The delay of a worker's `count`-th step, by the run's seed.
    pub fn delay(&self, seed: u64, worker: WorkerId, count: u64) -> Duration {
        let is_hit = self.who.is_none_or(|who| who == worker)
            && unit(&mut stream(seed, Purpose::Delay, worker.0.into(), count)) < self.probability;
        Duration::from_millis(if is_hit { self.delay_ms } else { 0 })
    }
}

impl fmt::Display for SlowWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            Some(worker) => write!(f, "{worker}")?,
            None => f.write_str("any")?,
        }
        write!(f, ":{}ms@{}", self.delay_ms, self.probability)
    }
}

impl FromStr for SlowWorker {
    type Err = String;

    /// Reads `RANK|any:DELAY[@P]`, such as `3:50ms` or `any:0.1s@0.25`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "must be RANK|any:DELAY[@P], such as 3:50ms or any:50ms@0.25".to_string();
        let (who, rest) = text.split_once(':').ok_or_else(wanted)?;
        let (delay, probability) = rest.split_once('@').unwrap_or((rest, "1"));
        let who = if who == "any" { None } else { Some(WorkerId(who.parse().map_err(|_| wanted())?)) };
        let (number, unit) = match delay.strip_suffix("ms") {
            Some(number) => (number, 1.0),
            None => (delay.strip_suffix('s').ok_or_else(wanted)?, 1e3),
        };
        let delay_ms = number.parse::<f64>().map_err(|_| wanted())? * unit;
        let probability: f64 = probability.parse().map_err(|_| wanted())?;
        if !(0.0..=3.6e6).contains(&delay_ms) {
            return Err("the delay must be between 0 and an hour".into());
        }
        if !(0.0..=1.0).contains(&probability) {
            return Err("the probability must be between 0 and 1".into());
        }
        Ok(SlowWorker { who, delay_ms: delay_ms.round() as u64, probability })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_and_written() {
        for (text, again) in [("3:50ms", "3:50ms@1"), ("any:50ms@0.25", "any:50ms@0.25"), ("0:1.5s", "0:1500ms@1")] {
            let slow: SlowWorker = text.parse().unwrap();
            assert_eq!(slow.to_string(), again);
            assert_eq!(again.parse(), Ok(slow));
        }
        for bad in ["", "3", "x:50ms", "3:50", "3:-1ms", "3:50ms@2", "3:NaNs", "3:5ms@x"] {
            assert!(bad.parse::<SlowWorker>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hits_whom_it_should_as_often_as_it_should() {
        let hits = |text: &str, worker| {
            let slow: SlowWorker = text.parse().unwrap();
            (0..4000).filter(|count| !slow.delay(7, WorkerId(worker), *count).is_zero()).count()
        };
        assert_eq!((hits("3:50ms", 3), hits("3:50ms", 2)), (4000, 0));
        assert!((900..1100).contains(&hits("any:50ms@0.25", 1)), "{}", hits("any:50ms@0.25", 1));
    }
}
