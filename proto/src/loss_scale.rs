//! Dynamic loss scaling (Micikevicius et al., "Mixed Precision Training", 2018), for numbers with a small range.
//!
//! The loss is multiplied by a power of two before the backward pass, and the sum of gradients is divided by it, which
//! loses nothing. A step that is not finite halves the scale; so many clean steps in a row double it. Everybody derives
//! the scale from the verdicts, so nobody has to be told.

use crate::messages::Action;

/// Clean steps in a row after which the scale doubles.
const PATIENCE: u64 = 2000;
/// The largest scale.
const MOST: f64 = (1u64 << 24) as f64;

/// The scale of the next step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    scale: f64,
    clean: u64,
    /// Whether verdicts change it.
    dynamic: bool,
}

impl LossScale {
    /// What 16 bits begin with: low, because a slice's loss is a sum and not a mean.
    pub const USUAL: f64 = 256.0;

    /// Whether a number can be a scale: a power of two in range.
    pub fn fits(scale: f64) -> bool {
        (1.0..=MOST).contains(&scale) && (scale as u64).is_power_of_two() && scale.fract() == 0.0
    }

    /// Begins with a scale; at 1 it stays there.
    pub fn new(scale: f64) -> LossScale {
        LossScale { scale, clean: 0, dynamic: scale > 1.0 }
    }

    /// This scale as it was once, after so many clean steps in a row.
    pub fn at(self, scale: f64, clean: u64) -> LossScale {
        LossScale { scale, clean, ..self }
    }

    /// Clean steps in a row so far.
    pub fn clean(&self) -> u64 {
        self.clean
    }

    /// What the next step's loss is multiplied by.
    pub fn get(&self) -> f64 {
        self.scale
    }

    /// Takes over the scale of others, which a process that was not there from the beginning cannot derive.
    pub fn adopt(&mut self, scale: f64) {
        (self.scale, self.clean) = (scale, 0);
    }

    /// Takes note of how a step ended.
    pub fn follow(&mut self, action: Action) {
        if !self.dynamic {
            return;
        }
        match action {
            Action::SkipNonFinite => (self.scale, self.clean) = ((self.scale / 2.0).max(1.0), 0),
            Action::Apply if self.clean + 1 == PATIENCE => (self.scale, self.clean) = ((self.scale * 2.0).min(MOST), 0),
            Action::Apply => self.clean += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_at_once_and_doubles_after_long() {
        let mut scale = LossScale::new(4.0);
        scale.follow(Action::SkipNonFinite);
        assert_eq!(scale.get(), 2.0);
        (1..PATIENCE).for_each(|_| scale.follow(Action::Apply));
        assert_eq!(scale.get(), 2.0);
        scale.follow(Action::Apply);
        assert_eq!(scale.get(), 4.0);
        (0..5).for_each(|_| scale.follow(Action::SkipNonFinite));
        assert_eq!(scale.get(), 1.0);
    }

    #[test]
    fn a_scale_of_one_stays() {
        let mut scale = LossScale::new(1.0);
        (0..2 * PATIENCE).for_each(|_| scale.follow(Action::Apply));
        assert_eq!(scale.get(), 1.0);
    }

    #[test]
    fn only_powers_of_two_fit() {
        assert!(LossScale::fits(1.0) && LossScale::fits(65_536.0) && LossScale::fits(MOST));
        assert!([0.0, 0.5, 3.0, MOST * 2.0, f64::NAN, f64::INFINITY].iter().all(|scale| !LossScale::fits(*scale)));
    }
}
