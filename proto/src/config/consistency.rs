//! When gradients are aggregated: the mode, and the keys that only some modes have.
//!
//! A key that a mode does not have is refused with the reason, never ignored.

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    raw::{choice, count, decimal, number, value_error},
};

/// The names of all modes.
pub const NAMES: [&str; 4] = ["sync", "async", "ssp", "local"];

/// How many of a step's slices make a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// All.
    All,
    /// So many, the same set on every server; the rest are dropped.
    Slices(u32),
}

/// What is done about gradients of parameters that have changed since.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Staleness {
    /// Divide the learning rate by the number of commits since, if there was more than one.
    pub scales_rate: bool,
    /// λ of the delay compensation; 0 is none.
    pub compensation: f32,
    /// Whether a worker computes a slice while its last one is on its way, which is not in its parameters then.
    pub overlaps: bool,
}

/// Local steps between two rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalSteps {
    /// H: local steps a round.
    pub steps: u32,
    /// Learning rate of the outer optimizer.
    pub outer_lr: f32,
    /// Nesterov momentum of the outer optimizer.
    pub outer_momentum: f32,
    /// Whether a slice's inner optimizer keeps its state from round to round.
    pub keeps_inner_state: bool,
}

/// When gradients are aggregated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Bulk synchronous: a step commits when its slices are in.
    Sync(Quorum),
    /// Each push commits by itself.
    Async(Staleness),
    /// As asynchronous, but no worker gets more than so many steps ahead of the slowest.
    Ssp(u64, Staleness),
    /// Rounds of local steps, whose differences an outer optimizer applies.
    Local(LocalSteps),
}

impl Mode {
    /// The name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Sync(_) => "sync",
            Mode::Async(_) => "async",
            Mode::Ssp(..) => "ssp",
            Mode::Local(_) => "local",
        }
    }

    /// Whether slices are dealt out as workers ask, and each is a commit of its own.
    pub fn is_dealt(self) -> bool {
        matches!(self, Mode::Async(_) | Mode::Ssp(..))
    }

    /// Whether the coordinator chooses what is committed; otherwise each server finds it out by itself.
    pub fn is_chosen(self) -> bool {
        self.is_dealt() || matches!(self, Mode::Sync(Quorum::Slices(_)))
    }

    /// Why the same run may end in other bits next time, if it may.
    pub fn inexact(self) -> Option<&'static str> {
        match self {
            Mode::Sync(Quorum::Slices(_)) => Some("which slices make the quorum depends on who is quick"),
            Mode::Async(_) | Mode::Ssp(..) => Some("the order of commits depends on who is quick"),
            Mode::Local(local) if local.keeps_inner_state => {
                Some("the state of inner optimizers stays with the worker that computed a slice")
            }
            Mode::Sync(Quorum::All) | Mode::Local(_) => None,
        }
    }

    /// Whether a worker computes a slice while its last one is on its way: never where it is not to be stale at all.
    pub fn overlaps(self) -> bool {
        !matches!(self, Mode::Ssp(0, _)) && self.staleness().is_some_and(|staleness| staleness.overlaps)
    }

    /// What is done about staleness, where there is any.
    pub fn staleness(self) -> Option<Staleness> {
        match self {
            Mode::Async(staleness) | Mode::Ssp(_, staleness) => Some(staleness),
            Mode::Sync(_) | Mode::Local(_) => None,
        }
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Mode::Sync(Quorum::Slices(slices)) => write!(f, "sync, quorum of {slices} slices"),
            Mode::Ssp(bound, _) => write!(f, "ssp, at most {bound} steps ahead"),
            Mode::Local(local) => write!(f, "local, rounds of {} steps", local.steps),
            mode => f.write_str(mode.name()),
        }
    }
}

/// The `[consistency]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawConsistency {
    pub quorum: Option<u64>,
    pub backup_workers: Option<u64>,
    pub max_staleness: Option<u64>,
    pub staleness_lr: Option<bool>,
    pub compensation: Option<f64>,
    pub overlap: Option<bool>,
    pub local_steps: Option<u64>,
    pub outer_lr: Option<f64>,
    pub outer_momentum: Option<f64>,
    pub inner_state: Option<String>,
}

/// Which modes a key belongs to, and why no other has it.
const BELONGS: [(&str, &[&str], &str); 10] = [
    ("consistency.quorum", &["sync"], "only a synchronous step waits for others, so only it can wait for fewer"),
    (
        "consistency.backup_workers",
        &["sync"],
        "only a synchronous step waits for others, so only it can wait for fewer",
    ),
    ("consistency.max_staleness", &["ssp"], "`async` has no bound, and the other modes have no staleness"),
    ("consistency.staleness_lr", &["async", "ssp"], "gradients are never stale in the other modes"),
    ("consistency.compensation", &["async", "ssp"], "gradients are never stale in the other modes"),
    ("consistency.overlap", &["async", "ssp"], "in the other modes a step begins with what the last one made"),
    ("consistency.local_steps", &["local"], "in the other modes every step is aggregated"),
    ("consistency.outer_lr", &["local"], "only rounds of local steps have an outer optimizer"),
    ("consistency.outer_momentum", &["local"], "only rounds of local steps have an outer optimizer"),
    ("consistency.inner_state", &["local"], "only rounds of local steps have inner optimizers"),
];

/// What the modes' checks need to know of the rest.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    /// Slices of a step.
    pub slices: u32,
    /// Workers that own them.
    pub workers: u32,
}

impl RawConsistency {
    fn given(&self) -> Vec<(&'static str, String)> {
        let given = [
            self.quorum.map(|value| value.to_string()),
            self.backup_workers.map(|value| value.to_string()),
            self.max_staleness.map(|value| value.to_string()),
            self.staleness_lr.map(|value| value.to_string()),
            self.compensation.map(|value| value.to_string()),
            self.overlap.map(|value| value.to_string()),
            self.local_steps.map(|value| value.to_string()),
            self.outer_lr.map(|value| value.to_string()),
            self.outer_momentum.map(|value| value.to_string()),
            self.inner_state.clone(),
        ];
        BELONGS.iter().zip(given).filter_map(|((key, ..), value)| Some((*key, value?))).collect()
    }

    /// Checks everything and fills in the defaults.
    ///
    /// # Errors
    /// A value that is out of range, or that has no meaning in the mode.
    pub(super) fn resolve(self, mode: Option<&str>, around: Around) -> Result<Mode, ConfigError> {
        let mode = choice("mode", mode.unwrap_or("sync"), &NAMES)?;
        for (key, value) in self.given() {
            let belongs = BELONGS.iter().find(|(known, ..)| *known == key);
            if let Some((_, modes, why)) = belongs.filter(|(_, modes, _)| !modes.contains(&mode)) {
                let modes = modes.join(" and ");
                return Err(value_error(key, value, format!("goes with mode {modes}, not with {mode}: {why}")));
            }
        }
        Ok(match mode {
            "async" => Mode::Async(self.staleness()?),
            "ssp" => Mode::Ssp(
                u64::from(count("consistency.max_staleness", self.max_staleness.unwrap_or(3), 0, u32::MAX)?),
                self.staleness()?,
            ),
            "local" => Mode::Local(self.local()?),
            _ => Mode::Sync(self.quorum(around)?),
        })
    }

    fn staleness(&self) -> Result<Staleness, ConfigError> {
        let compensation = self.compensation.unwrap_or(0.0);
        let compensation =
            number("consistency.compensation", compensation, "0 or more, at most 100", |x| (0.0..=100.0).contains(&x))?;
        let overlaps = self.overlap.unwrap_or(compensation == 0.0);
        if overlaps && compensation > 0.0 {
            let problem = "excludes `consistency.compensation`, which needs to know what a gradient was computed with";
            return Err(value_error("consistency.overlap", overlaps, problem));
        }
        let scales_rate = self.staleness_lr.unwrap_or(false);
        Ok(Staleness { scales_rate, compensation: compensation as f32, overlaps })
    }

    fn quorum(&self, around: Around) -> Result<Quorum, ConfigError> {
        let Around { slices, workers } = around;
        if let Some(quorum) = self.quorum {
            let quorum = count("consistency.quorum", quorum, 1, slices).map_err(|_| {
                value_error(
                    "consistency.quorum",
                    quorum,
                    format!("must be between 1 and the {slices} slices of a step"),
                )
            })?;
            return Ok(if quorum == slices { Quorum::All } else { Quorum::Slices(quorum) });
        }
        let Some(backup) = self.backup_workers else { return Ok(Quorum::All) };
        if backup >= u64::from(workers) {
            let problem = format!("leaves none of the {workers} workers to wait for");
            return Err(value_error("consistency.backup_workers", backup, problem));
        }
        // What the workers with the largest shares own, so that any so many may be late.
        let shares = (0..workers).map(|worker| crate::order::share(slices.into(), worker, workers));
        let mut owned: Vec<u64> = shares.map(|share| share.end - share.start).collect();
        owned.sort_unstable();
        let needed: u64 = owned.iter().take((u64::from(workers) - backup) as usize).sum();
        Ok(if backup == 0 { Quorum::All } else { Quorum::Slices(needed as u32) })
    }

    fn local(&self) -> Result<LocalSteps, ConfigError> {
        let rate = self.outer_lr.unwrap_or(0.7);
        let rate = number("consistency.outer_lr", rate, "above 0, at most 10", |x| x > 0.0 && x <= 10.0)?;
        let momentum = self.outer_momentum.unwrap_or(0.9);
        let momentum =
            number("consistency.outer_momentum", momentum, "0 or more, below 1", |x| (0.0..1.0).contains(&x))?;
        let inner =
            choice("consistency.inner_state", self.inner_state.as_deref().unwrap_or("fresh"), &["fresh", "keep"])?;
        Ok(LocalSteps {
            steps: count("consistency.local_steps", self.local_steps.unwrap_or(50), 1, 1 << 20)?,
            outer_lr: rate as f32,
            outer_momentum: momentum as f32,
            keeps_inner_state: inner == "keep",
        })
    }
}

impl From<Mode> for RawConsistency {
    fn from(mode: Mode) -> Self {
        let stale = mode.staleness();
        let mut raw = RawConsistency {
            staleness_lr: stale.map(|staleness| staleness.scales_rate),
            compensation: stale.map(|staleness| decimal(staleness.compensation)),
            overlap: stale.map(|staleness| staleness.overlaps),
            ..RawConsistency::default()
        };
        match mode {
            Mode::Sync(Quorum::Slices(slices)) => raw.quorum = Some(slices.into()),
            Mode::Ssp(bound, _) => raw.max_staleness = Some(bound),
            Mode::Local(local) => {
                raw.local_steps = Some(local.steps.into());
                raw.outer_lr = Some(decimal(local.outer_lr));
                raw.outer_momentum = Some(decimal(local.outer_momentum));
                raw.inner_state = Some(if local.keeps_inner_state { "keep" } else { "fresh" }.into());
            }
            Mode::Sync(Quorum::All) | Mode::Async(_) => {}
        }
        raw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, layers::Layers};

    fn config(text: &str) -> Result<Config, ConfigError> {
        Layers::new().toml("test", text)?.raw()?.resolve(1)
    }

    #[test]
    fn modes() {
        let golden = [
            ("", "sync"),
            ("workers = 4\n[consistency]\nquorum = 3", "sync, quorum of 3 slices"),
            ("workers = 4\n[consistency]\nquorum = 4", "sync"),
            ("workers = 4\n[consistency]\nbackup_workers = 1", "sync, quorum of 3 slices"),
            ("workers = 3\nslices = 8\n[consistency]\nbackup_workers = 1", "sync, quorum of 5 slices"),
            ("workers = 4\n[consistency]\nbackup_workers = 0", "sync"),
            ("mode = 'async'", "async"),
            ("mode = 'ssp'", "ssp, at most 3 steps ahead"),
            ("mode = 'async'\n[consistency]\noverlap = false", "async"),
            ("mode = 'async'\n[consistency]\ncompensation = 0.5", "async"),
            ("mode = 'local'\n[consistency]\nlocal_steps = 7", "local, rounds of 7 steps"),
        ];
        for (text, mode) in golden {
            let config = config(text).unwrap();
            assert_eq!(config.mode.to_string(), mode, "{text}");
            assert_eq!(Config::from_toml("again", &config.to_toml()).unwrap(), config, "{text}");
        }
    }

    #[test]
    fn what_has_no_meaning_is_refused_with_the_reason() {
        let refusals = [
            (
                "mode = 'async'\n[consistency]\nquorum = 1",
                "`consistency.quorum` = 1: goes with mode sync, not with async: only a synchronous step waits",
            ),
            ("[consistency]\nmax_staleness = 1", "goes with mode ssp, not with sync: `async` has no bound"),
            ("[consistency]\nlocal_steps = 1", "goes with mode local, not with sync: in the other modes every step"),
            ("mode = 'local'\n[consistency]\ncompensation = 1", "goes with mode async and ssp, not with local"),
            ("workers = 2\n[consistency]\nquorum = 3", "must be between 1 and the 2 slices of a step"),
            ("workers = 2\n[consistency]\nbackup_workers = 2", "leaves none of the 2 workers to wait for"),
            (
                "mode = 'async'\n[consistency]\ncompensation = 1\noverlap = true",
                "`consistency.overlap` = true: excludes `consistency.compensation`",
            ),
            ("[consistency]\noverlap = true", "goes with mode async and ssp, not with sync"),
            ("mode = 'asinc'", "did you mean `async`?"),
            ("mode = 'async'\nprecision = 'f16'", "`f16` needs a loss scale that all follow"),
            ("workers = 2\n[consistency]\nquorum = 1\nbackup_workers = 1", "exclude each other"),
        ];
        for (text, problem) in refusals {
            let refusal = config(text).unwrap_err().to_string().replace(" (test)", "");
            assert!(refusal.contains(problem), "{text}: {refusal}");
        }
    }
}
