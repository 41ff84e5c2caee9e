//! What an evaluation means for the run: whether its parameters are the best so far, and whether it has been long
//! enough since there were better ones.

use serde::{Deserialize, Serialize};

use crate::coordinator::evaluation::Score;

/// The evaluations so far.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Review {
    patience: u64,
    best: Option<Score>,
    since: u64,
    /// The step that was judged last.
    judged: Option<u64>,
    /// Whose parameters are kept.
    kept: Option<Score>,
}

/// What an evaluation means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Its loss is lower than that of the parameters that are kept.
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

    /// The same after a roll-back: what was judged since is judged again, what was kept since stays.
    pub fn after(self, since: Review) -> Review {
        Review { kept: since.kept, ..self }
    }

    /// The parameters of an evaluation are kept.
    pub fn keep(&mut self, score: Score) {
        self.kept = Some(score);
    }

    /// The parameters that were kept are not there any more.
    pub fn forget_kept(&mut self) {
        self.kept = None;
    }

    /// Takes note of an evaluation. One that was judged before, because the run went on from there, changes nothing.
    pub fn judge(&mut self, score: Score) -> Judgement {
        // A loss that is no number is never better.
        let is_below = |best: Option<Score>| score.loss.is_finite() && best.is_none_or(|best| score.loss < best.loss);
        if self.judged.is_none_or(|judged| judged < score.step) {
            self.judged = Some(score.step);
            if is_below(self.best) {
                (self.best, self.since) = (Some(score), 0);
            } else {
                self.since += 1;
            }
        }
        Judgement { is_best: is_below(self.kept), is_enough: self.patience > 0 && self.since >= self.patience }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(step: u64, loss: f64) -> Score {
        Score { step, loss, accuracy: None, perplexity: None, rmse: None, samples: 1.0 }
    }

    /// `b` where parameters are to be kept, `e` where it is enough, `.` elsewhere.
    fn judged(review: &mut Review, scores: impl IntoIterator<Item = (u64, f64)>) -> String {
        let judge = |(step, loss)| {
            let judgement = review.judge(score(step, loss));
            if judgement.is_best {
                review.keep(score(step, loss));
            }
            match judgement {
                Judgement { is_best: true, .. } => 'b',
                Judgement { is_enough: true, .. } => 'e',
                _ => '.',
            }
        };
        scores.into_iter().map(judge).collect()
    }

    fn judge(patience: u64, losses: &[f64]) -> String {
        judged(&mut Review::new(patience), (1..).zip(losses.iter().copied()))
    }

    #[test]
    fn what_is_judged_again_after_a_roll_back_takes_no_patience() {
        let mut review = Review::new(1);
        assert_eq!(judged(&mut review, [(20, 3.0)]), "b");
        let cut = review;
        assert_eq!(judged(&mut review, [(40, 2.0)]), "b");
        let mut again = cut.after(review);
        assert_eq!(judged(&mut again, [(40, 2.0), (60, 1.0)]), ".b", "its parameters are there");
        let mut resumed = review;
        assert_eq!(judged(&mut resumed, [(40, 2.0)]), ".", "a cut may come after its own evaluation");
        let mut unsaved = cut.after(cut);
        assert_eq!(judged(&mut unsaved, [(40, 2.0)]), "b", "a death came before they were kept");
    }

    #[test]
    fn patience_runs_out_and_starts_anew() {
        assert_eq!(judge(2, &[3.0, 2.0, 2.5, 1.0, 1.0, 1.5]), "bb.b.e");
        assert_eq!(judge(0, &[3.0, 4.0, 4.0, 4.0]), "b...");
        assert_eq!(judge(1, &[f64::NAN, 2.0]), "eb");
    }
}
