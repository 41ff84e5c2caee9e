//! How often a run writes checkpoints, where to, and how many it keeps.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    raw::{count, value_error},
};

/// When a checkpoint is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Never, but when the run is told to stop.
    Never,
    /// After so many steps.
    Steps(u64),
    /// After so much time.
    Millis(u64),
}

impl Every {
    /// The steps between two; 0 if they do not depend on steps.
    pub fn steps(self) -> u64 {
        if let Every::Steps(steps) = self { steps } else { 0 }
    }
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Every::Never => f.write_str("0"),
            Every::Steps(steps) => write!(f, "{steps}"),
            Every::Millis(ms) if ms % 1000 == 0 => write!(f, "{}s", ms / 1000),
            Every::Millis(ms) => write!(f, "{ms}ms"),
        }
    }
}

impl FromStr for Every {
    type Err = String;

    /// Reads a number of steps, or a time such as `500ms`, `30s`, `10m` or `2h`; 0 is never.
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "must be a number of steps, or a time such as 30s, 10m or 2h; 0 is never".to_string();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit_ms = match unit {
            "" => match number.parse().map_err(|_| wanted())? {
                0 => return Ok(Every::Never),
                steps => return Ok(Every::Steps(steps)),
            },
            "ms" => 1.0,
            "s" => 1e3,
            "m" => 6e4,
            "h" => 3.6e6,
            _ => return Err(wanted()),
        };
        let number: f64 = number.parse().map_err(|_| wanted())?;
        let least = if number > 0.0 { 1 } else { 0 };
        match ((number * unit_ms).round() as u64).max(least) {
            0 => Ok(Every::Never),
            ms if ms <= 1000 * 3_600_000 => Ok(Every::Millis(ms)),
            _ => Err("must be at most 1000h".into()),
        }
    }
}

/// The checkpoints of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoints {
    /// When one is due.
    pub every: Every,
    /// The directory or the URL of an object store below which they are kept, under the run's name; none keeps them in the
    /// run's directory.
    pub to: Option<String>,
    /// How many of the newest are kept.
    pub keep_last: u32,
}

/// The `[checkpoint]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawCheckpoints {
    pub every: Option<String>,
    pub to: Option<String>,
    pub keep_last: Option<u64>,
}

impl RawCheckpoints {
    pub(super) fn resolve(&self) -> Result<Checkpoints, ConfigError> {
        let text = self.every.as_deref().unwrap_or("60s");
        let every = text.parse().map_err(|problem: String| value_error("checkpoint.every", text, problem))?;
        let keep_last = count("checkpoint.keep_last", self.keep_last.unwrap_or(2), 1, 1_000_000)?;
        let to = self.to.clone().filter(|to| !to.is_empty());
        Ok(Checkpoints { every, to, keep_last })
    }
}

impl From<Checkpoints> for RawCheckpoints {
    fn from(checkpoints: Checkpoints) -> Self {
        let Checkpoints { every, to, keep_last } = checkpoints;
        RawCheckpoints {
            every: Some(every.to_string()),
            to: Some(to.unwrap_or_default()),
            keep_last: Some(keep_last.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_times_read_as_they_print() {
        for (text, every) in [
            ("0", Every::Never),
            ("0s", Every::Never),
            ("25", Every::Steps(25)),
            ("250ms", Every::Millis(250)),
            ("30s", Every::Millis(30_000)),
            ("28.8s", Every::Millis(28_800)),
            ("0.01ms", Every::Millis(1)),
            ("10m", Every::Millis(600_000)),
            ("2h", Every::Millis(7_200_000)),
        ] {
            assert_eq!(text.parse(), Ok(every), "{text}");
            assert_eq!(every.to_string().parse(), Ok(every), "{text}");
        }
        for text in ["", "s", "-1", "1.5", "1.2.3s", ".s", "30 s", "30sec", "99999999999999999999", "1001h"] {
            assert!(text.parse::<Every>().is_err(), "{text}");
        }
    }
}
