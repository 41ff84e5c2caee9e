//! Scores of the held-out data, put together from the workers' slices in tree order.

use std::collections::{BTreeMap, BTreeSet};

use convoy_proto::{
    ids::{SliceId, Step},
    messages::{EvaluationPart, Weights},
    tree::{self, SliceTree},
};
use serde::{Deserialize, Serialize};

/// How held-out data are scored, beside the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// By the share of right classes.
    Classes,
    /// By the share of right tokens, and by perplexity.
    Tokens,
    /// By the root of the mean square error, where one unit of the target is this in the source's own.
    Numbers {
        /// The unit.
        unit: f64,
    },
}

/// A score of all held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// How many steps the parameters had seen.
    pub step: u64,
    /// Mean loss; of text in nats per token, of numbers the mean square error of the standardised target.
    pub loss: f64,
    /// Share of right classes or tokens, 0 to 1.
    pub accuracy: Option<f64>,
    /// `e` to the loss.
    pub perplexity: Option<f64>,
    /// Root of the mean square error, in the source's unit.
    pub rmse: Option<f64>,
    /// Samples, tokens, or whatever the mean is over.
    pub samples: f64,
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "loss {:.4}", self.loss)?;
        for (name, value) in [("accuracy", self.accuracy), ("perplexity", self.perplexity), ("rmse", self.rmse)] {
            if let Some(value) = value {
                write!(f, "  {name} {value:.4}")?;
            }
        }
        Ok(())
    }
}

/// Puts a complete set of parts together; the bits do not depend on who computed which.
pub fn score(
    step: Step,
    tree: SliceTree,
    kind: Kind,
    part: impl Fn(SliceId) -> Option<EvaluationPart>,
) -> Option<Score> {
    let mut complete = true;
    let mut leaf = |slice| {
        let found = part(slice);
        complete &= found.is_some();
        found.map(|part| (part.weight, part.loss_sum, part.correct))
    };
    let sums = tree::fold(tree.root(), &mut leaf, &mut |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
    let (samples, loss_sum, correct) = sums.filter(|_| complete)?;
    let (loss, accuracy) = (loss_sum / samples, correct as f64 / samples);
    Some(Score {
        step: step.0,
        loss,
        accuracy: matches!(kind, Kind::Classes | Kind::Tokens).then_some(accuracy),
        perplexity: (kind == Kind::Tokens).then(|| loss.exp()),
        rmse: match kind {
            Kind::Numbers { unit } => Some(loss.sqrt() * unit),
            _ => None,
        },
        samples,
    })
}

/// What an evaluation still lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// Nothing.
    Nothing,
    /// Slices of whoever asks.
    Own,
    /// Slices of others.
    Others,
}

/// The parts of evaluations, and which evaluations are complete.
#[derive(Clone, Debug)]
pub struct Evaluations {
    tree: SliceTree,
    kind: Kind,
    /// What an evaluation scores.
    scores: Vec<Weights>,
    open: BTreeMap<(Step, Weights), BTreeMap<SliceId, EvaluationPart>>,
    /// Those of the last evaluation that are complete.
    complete: BTreeSet<(Step, Weights)>,
}

impl Evaluations {
    /// No part yet, of evaluations that score the weights, and their average if there is one.
    pub fn new(tree: SliceTree, kind: Kind, is_averaged: bool) -> Evaluations {
        let scores = [Weights::Trained, Weights::Averaged].into_iter().take(1 + usize::from(is_averaged)).collect();
        Evaluations { tree, kind, scores, open: BTreeMap::new(), complete: BTreeSet::new() }
    }

    /// Adds parts; gives the score once all slices are there. Parts of what is complete change nothing.
    pub fn add(&mut self, step: Step, weights: Weights, parts: Vec<EvaluationPart>) -> Option<Score> {
        if self.complete.contains(&(step, weights)) {
            return None;
        }
        let open = self.open.entry((step, weights)).or_default();
        open.extend(parts.into_iter().map(|part| (part.slice, part)));
        let score = score(step, self.tree, self.kind, |slice| open.get(&slice).copied())?;
        self.open.remove(&(step, weights));
        self.complete.retain(|(scored, _)| *scored >= step);
        self.complete.insert((step, weights));
        Some(score)
    }

    /// What the evaluation of a step lacks, for a worker that owns these slices.
    pub fn lacking(&self, step: Step, owned: &BTreeSet<SliceId>) -> Lacking {
        let open = self.scores.iter().map(|weights| (step, *weights)).filter(|key| !self.complete.contains(key));
        let open: Vec<_> = open.collect();
        let has = |key, slice| self.open.get(key).is_some_and(|parts| parts.contains_key(slice));
        if open.is_empty() {
            Lacking::Nothing
        } else if open.iter().any(|key| owned.iter().any(|slice| !has(key, slice))) {
            Lacking::Own
        } else {
            Lacking::Others
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_needs_every_slice() {
        let part =
            |slice, weight, loss_sum, correct| EvaluationPart { slice: SliceId(slice), weight, loss_sum, correct };
        let mut evaluations = Evaluations::new(SliceTree::new(3), Kind::Classes, false);
        let add = |all: &mut Evaluations, step, parts| all.add(Step(step), Weights::Trained, parts);
        let lacking = |all: &Evaluations, slice| all.lacking(Step(5), &BTreeSet::from([SliceId(slice)]));
        assert_eq!(add(&mut evaluations, 5, vec![part(2, 4.0, 2.0, 4), part(0, 4.0, 1.0, 2)]), None);
        assert_eq!(add(&mut evaluations, 6, vec![part(1, 4.0, 1.0, 2)]), None);
        assert_eq!((lacking(&evaluations, 1), lacking(&evaluations, 2)), (Lacking::Own, Lacking::Others));
        let score = add(&mut evaluations, 5, vec![part(1, 0.0, 0.0, 0)]).unwrap();
        assert_eq!((score.step, score.loss, score.accuracy, score.samples), (5, 0.375, Some(0.75), 8.0));
        assert_eq!((score.perplexity, score.rmse), (None, None));
        assert_eq!(add(&mut evaluations, 5, vec![part(1, 0.0, 0.0, 0)]), None, "it is complete");
        assert_eq!(lacking(&evaluations, 1), Lacking::Nothing);
    }

    #[test]
    fn an_average_is_scored_beside_the_weights() {
        let part = EvaluationPart { slice: SliceId(0), weight: 1.0, loss_sum: 1.0, correct: 1 };
        let mut evaluations = Evaluations::new(SliceTree::new(1), Kind::Classes, true);
        let own = BTreeSet::from([SliceId(0)]);
        assert!(evaluations.add(Step(1), Weights::Trained, vec![part]).is_some());
        assert_eq!(evaluations.lacking(Step(1), &own), Lacking::Own);
        assert!(evaluations.add(Step(1), Weights::Averaged, vec![part]).is_some());
        assert_eq!(evaluations.lacking(Step(1), &own), Lacking::Nothing);
    }

    #[test]
    fn text_and_numbers_have_scores_of_their_own() {
        let part = |_| Some(EvaluationPart { slice: SliceId(0), weight: 2.0, loss_sum: 8.0, correct: 1 });
        let text = score(Step(0), SliceTree::new(1), Kind::Tokens, part).unwrap();
        assert_eq!((text.perplexity, text.accuracy), (Some(4f64.exp()), Some(0.5)));
        let number = score(Step(0), SliceTree::new(1), Kind::Numbers { unit: 3.0 }, part).unwrap();
        assert_eq!((number.rmse, number.accuracy), (Some(6.0), None));
    }
}
