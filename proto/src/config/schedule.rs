//! How the learning rate changes over a run, as it is configured; [`crate::schedule`] computes it.

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    raw::{choice, number, value_error},
};

/// The shape of a schedule, after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// Stays.
    Constant,
    /// Falls along half a cosine to `min_factor`.
    Cosine,
    /// Falls in a straight line to `min_factor`.
    Linear,
    /// Is multiplied by `factor` every so many units; 0 is a third of the run.
    Step {
        /// Units between two changes.
        every: u64,
        /// What it is multiplied by.
        factor: f64,
    },
    /// Falls with the square root of the time.
    InverseSqrt,
    /// Rises along a cosine and falls along another, far below where it began.
    OneCycle,
}

/// What a schedule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// It changes with every step.
    Step,
    /// It changes with every epoch.
    Epoch,
}

/// A schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Its shape.
    pub shape: Shape,
    /// What it counts.
    pub unit: Unit,
    /// Units over which the rate rises from near 0; none is the shape's own.
    pub warmup: Option<u64>,
    /// The share of the rate that it falls to.
    pub min_factor: f64,
    /// Whether it was named after its warm-up, the rest being constant.
    is_warmup: bool,
}

/// The names of all schedules.
pub const NAMES: [&str; 7] = ["constant", "warmup", "cosine", "linear", "step", "inverse_sqrt", "one_cycle"];

/// The `[schedule]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawSchedule {
    pub name: Option<String>,
    pub unit: Option<String>,
    pub warmup: Option<u64>,
    pub min_factor: Option<f64>,
    pub every: Option<u64>,
    pub factor: Option<f64>,
}

impl RawSchedule {
    /// Checks everything and fills in the defaults.
    ///
    /// # Errors
    /// A value that is out of range or has no meaning for the schedule.
    pub(super) fn resolve(self) -> Result<Schedule, ConfigError> {
        let name = choice("schedule.name", self.name.as_deref().unwrap_or("constant"), &NAMES)?;
        let unit = match choice("schedule.unit", self.unit.as_deref().unwrap_or("step"), &["step", "epoch"])? {
            "epoch" => Unit::Epoch,
            _ => Unit::Step,
        };
        let meaningless = |key, value: String| value_error(key, value, format!("has no meaning for `{name}`"));
        if let (Some(every), true) = (self.every, name != "step") {
            return Err(meaningless("schedule.every", every.to_string()));
        }
        if let (Some(factor), true) = (self.factor, name != "step") {
            return Err(meaningless("schedule.factor", factor.to_string()));
        }
        let falls_to = matches!(name, "cosine" | "linear" | "one_cycle");
        if let (Some(least), false) = (self.min_factor, falls_to) {
            return Err(meaningless("schedule.min_factor", least.to_string()));
        }
        let share = |key, value| number(key, value, "between 0 and 1", |x| (0.0..=1.0).contains(&x));
        let shape = match name {
            "cosine" => Shape::Cosine,
            "linear" => Shape::Linear,
            "step" => Shape::Step {
                every: self.every.unwrap_or(0),
                factor: share("schedule.factor", self.factor.unwrap_or(0.1))?,
            },
            "inverse_sqrt" => Shape::InverseSqrt,
            "one_cycle" => Shape::OneCycle,
            _ => Shape::Constant,
        };
        let least = if name == "one_cycle" { 4e-6 } else { 0.0 };
        Ok(Schedule {
            shape,
            unit,
            warmup: self.warmup,
            min_factor: share("schedule.min_factor", self.min_factor.unwrap_or(least))?,
            is_warmup: name == "warmup",
        })
    }
}

impl Schedule {
    /// The same rate throughout.
    pub const CONSTANT: Schedule =
        Schedule { shape: Shape::Constant, unit: Unit::Step, warmup: None, min_factor: 0.0, is_warmup: false };

    /// The name in configurations.
    pub fn name(&self) -> &'static str {
        match self.shape {
            Shape::Constant if self.is_warmup => "warmup",
            Shape::Constant => "constant",
            Shape::Cosine => "cosine",
            Shape::Linear => "linear",
            Shape::Step { .. } => "step",
            Shape::InverseSqrt => "inverse_sqrt",
            Shape::OneCycle => "one_cycle",
        }
    }

    /// How many of `units` the rate rises over.
    pub fn warmup_units(&self, units: u64) -> u64 {
        let own = match self.shape {
            Shape::OneCycle => units * 3 / 10,
            Shape::InverseSqrt => units / 20,
            Shape::Constant if self.is_warmup => units / 20,
            _ => 0,
        };
        let least = u64::from(matches!(self.shape, Shape::InverseSqrt | Shape::OneCycle));
        self.warmup.unwrap_or(own).max(least)
    }
}

impl From<&Schedule> for RawSchedule {
    fn from(schedule: &Schedule) -> Self {
        let (every, factor) = match schedule.shape {
            Shape::Step { every, factor } => (Some(every), Some(factor)),
            _ => (None, None),
        };
        let falls_to = matches!(schedule.shape, Shape::Cosine | Shape::Linear | Shape::OneCycle);
        RawSchedule {
            name: Some(schedule.name().into()),
            unit: Some(if schedule.unit == Unit::Step { "step" } else { "epoch" }.into()),
            warmup: schedule.warmup,
            min_factor: falls_to.then_some(schedule.min_factor),
            every,
            factor,
        }
    }
}
