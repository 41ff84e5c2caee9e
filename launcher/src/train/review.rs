//! What an evaluation means for the run: whether its parameters are the best so far, and whether it has been long
//! enough since there were better ones.

use serde::{Deserialize, Serialize};

use crate::coordinator::evaluation::Score;

/// The evaluations so far.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Review {
    patience: u64,
    best: Option<Score>,
    since: u64,
}

/// What an evaluation means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Its loss is the lowest so far.
    pub is_best: bool,
    /// Training has gone on without a better one for as long as it may.
    pub is_enough: bool,
}

impl Review {
    /// No evaluation yet; so many in a row may bring nothing better, any number if it is 0.
    pub fn new(patience: u64) -> Review {
        Review { patience, ..Review::default() }
    }

    /// The evaluation with the lowest loss, the first of equals.
    pub fn best(&self) -> Option<Score> {
        self.best
    }

    /// The same, if there was a better evaluation since, with that as its best: its parameters are kept.
    pub fn or_better(self, since: Review) -> Review {
        let is_better = |best: &Score| self.best.is_none_or(|own| best.loss < own.loss);
        Review { best: since.best.filter(is_better).or(self.best), ..self }
    }

    /// Takes note of an evaluation.
    pub fn judge(&mut self, score: Score) -> Judgement {
        // A loss that is no number is never better.
        let is_best = score.loss.is_finite() && self.best.is_none_or(|best| score.loss < best.loss);
        if is_best {
            (self.best, self.since) = (Some(score), 0);
        } else {
            self.since += 1;
        }
        Judgement { is_best, is_enough: self.patience > 0 && self.since >= self.patience }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(patience: u64, losses: &[f64]) -> String {
        let mut review = Review::new(patience);
        let score = |loss| Score { step: 0, loss, accuracy: None, perplexity: None, rmse: None, samples: 1.0 };
        let judged = losses.iter().map(|loss| match review.judge(score(*loss)) {
            Judgement { is_best: true, .. } => 'b',
            Judgement { is_enough: true, .. } => 'e',
            _ => '.',
        });
        judged.collect()
    }

    #[test]
    fn patience_runs_out_and_starts_anew() {
        assert_eq!(judge(2, &[3.0, 2.0, 2.5, 1.0, 1.0, 1.5]), "bb.b.e");
        assert_eq!(judge(0, &[3.0, 4.0, 4.0, 4.0]), "b...");
        assert_eq!(judge(1, &[f64::NAN, 2.0]), "eb");
    }
}
