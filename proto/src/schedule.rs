//! The learning rate of a step: a pure function of the schedule and the run's length.
//!
//! Every server computes it by itself, so it must have the same bits on every machine: IEEE arithmetic, and the cosine
//! of a library in Rust in place of the system's.

use std::f64::consts::PI;

use crate::{
    clock::Clock,
    config::{
        Config, Mode, Schedule,
        raw::decimal,
        schedule::{Shape, Unit},
    },
    ids::Step,
};

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Steps in all.
    pub steps: u64,
    /// Steps in one pass over the training data.
    pub steps_per_epoch: u64,
}

/// A schedule over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// The highest rate.
    pub base: f64,
    /// How it changes.
    pub schedule: Schedule,
    /// The run's length.
    pub horizon: Horizon,
}

/// The one-cycle policy begins at this share of the highest rate (Smith and Topin, 2018; PyTorch's default).
const ONE_CYCLE_START: f64 = 1.0 / 25.0;

/// From 1 at 0 to 0 at 1, along half a cosine.
fn half_cosine(progress: f64) -> f64 {
    (1.0 + libm::cos(PI * progress)) / 2.0
}

/// A power by squaring: multiplications only, because a library's differs between machines.
pub fn power(base: f64, mut exponent: u64) -> f64 {
    let (mut result, mut square) = (1.0, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    result
}

impl LearningRate {
    /// The rate of a step, at most the highest.
    pub fn of(&self, step: Step) -> f64 {
        let Horizon { steps, steps_per_epoch } = self.horizon;
        let (at, units) = match self.schedule.unit {
            Unit::Step => (step.0, steps),
            Unit::Epoch => (step.0 / steps_per_epoch.max(1), steps.div_ceil(steps_per_epoch.max(1))),
        };
        self.base * self.factor(at, units)
    }

    /// The share of the highest rate at a unit of so many.
    fn factor(&self, at: u64, units: u64) -> f64 {
        let warmup = self.schedule.warmup_units(units);
        let (least, one_cycle) = (self.schedule.min_factor, self.schedule.shape == Shape::OneCycle);
        if at < warmup {
            let rise = (at + 1) as f64 / warmup as f64;
            return if one_cycle {
                ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * (1.0 - half_cosine(rise))
            } else {
                rise
            };
        }
        let since = at - warmup;
        let progress = since as f64 / units.saturating_sub(warmup).max(1) as f64;
        match self.schedule.shape {
            Shape::Constant => 1.0,
            Shape::Cosine | Shape::OneCycle => least + (1.0 - least) * half_cosine(progress.min(1.0)),
            Shape::Linear => least + (1.0 - least) * (1.0 - progress.min(1.0)),
            Shape::Step { every, factor } => {
                let every = if every == 0 { units.div_ceil(3).max(1) } else { every };
                power(factor, since / every)
            }
            Shape::InverseSqrt => (warmup as f64 / (at + 1) as f64).sqrt().min(1.0),
        }
    }
}

/// The learning rate of a commit: the run's schedule at its step, or the outer optimizer's with local steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommitRate {
    rate: LearningRate,
    clock: Clock,
}

impl CommitRate {
    /// The rates of a run.
    pub fn new(config: &Config, horizon: Horizon) -> CommitRate {
        let (base, schedule) = match config.mode {
            Mode::Local(local) => (decimal(local.outer_lr), Schedule::CONSTANT),
            _ => (config.optimizer.lr, config.schedule),
        };
        CommitRate { rate: LearningRate { base, schedule, horizon }, clock: Clock::new(config, horizon.steps) }
    }

    /// The rate of a commit.
    pub fn of(&self, commit: Step) -> f64 {
        self.rate.of(Step(self.clock.steps_of(commit).start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, layers::Layers};

    fn config(text: &str) -> Config {
        let text = format!("[schedule]\n{text}\n[optimizer]\nlr = 2.0");
        Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap()
    }

    /// The rates of ten steps, five to an epoch, to three places.
    fn rates(text: &str) -> String {
        let config = config(text);
        let horizon = Horizon { steps: 10, steps_per_epoch: 5 };
        let rate = LearningRate { base: config.optimizer.lr, schedule: config.schedule, horizon };
        let rates: Vec<_> = (0..10).map(|step| format!("{:.3}", rate.of(Step(step)))).collect();
        rates.join(" ")
    }

    /// Golden: a change here changes every run with a schedule.
    #[test]
    fn shapes() {
        let golden = [
            ("", "2.000 2.000 2.000 2.000 2.000 2.000 2.000 2.000 2.000 2.000"),
            ("name = 'warmup'\nwarmup = 4", "0.500 1.000 1.500 2.000 2.000 2.000 2.000 2.000 2.000 2.000"),
            ("name = 'linear'", "2.000 1.800 1.600 1.400 1.200 1.000 0.800 0.600 0.400 0.200"),
            (
                "name = 'linear'\nwarmup = 2\nmin_factor = 0.5",
                "1.000 2.000 2.000 1.875 1.750 1.625 1.500 1.375 1.250 1.125",
            ),
            ("name = 'cosine'", "2.000 1.951 1.809 1.588 1.309 1.000 0.691 0.412 0.191 0.049"),
            ("name = 'step'\nevery = 3\nfactor = 0.5", "2.000 2.000 2.000 1.000 1.000 1.000 0.500 0.500 0.500 0.250"),
            ("name = 'step'", "2.000 2.000 2.000 2.000 0.200 0.200 0.200 0.200 0.020 0.020"),
            ("name = 'inverse_sqrt'\nwarmup = 2", "1.000 2.000 1.633 1.414 1.265 1.155 1.069 1.000 0.943 0.894"),
            ("name = 'one_cycle'", "0.560 1.520 2.000 2.000 1.901 1.623 1.223 0.777 0.377 0.099"),
            ("name = 'linear'\nunit = 'epoch'", "2.000 2.000 2.000 2.000 2.000 1.000 1.000 1.000 1.000 1.000"),
        ];
        for (text, expected) in golden {
            assert_eq!(rates(text), expected, "{text}");
        }
    }

    #[test]
    fn powers_go_as_far_as_they_are_asked() {
        assert_eq!((power(0.5, 0), power(0.5, 5), power(3.0, 13)), (1.0, 0.03125, 1_594_323.0));
        assert!((power(0.9995, 20_000) / 0.9995f64.powf(20_000.0) - 1.0).abs() < 1e-10);
    }

    #[test]
    fn every_rate_of_every_shape_is_usable() {
        for name in crate::config::schedule::NAMES {
            for unit in ["step", "epoch"] {
                let config = config(&format!("name = '{name}'\nunit = '{unit}'"));
                for steps in [1, 2, 3, 7, 100] {
                    let horizon = Horizon { steps, steps_per_epoch: 4 };
                    let rate = LearningRate { base: 2.0, schedule: config.schedule, horizon };
                    for step in 0..steps {
                        let rate = rate.of(Step(step));
                        assert!(rate > 0.0 && rate <= 2.0, "{name} by {unit}: step {step} of {steps} has {rate}");
                    }
                }
            }
        }
    }
}
