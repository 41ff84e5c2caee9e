//! Scores of the held-out data, put together from the workers' slices in tree order.

use std::collections::BTreeMap;

use convoy_proto::{
    ids::{SliceId, Step},
    messages::EvaluationPart,
    tree::{self, SliceTree},
};
use serde::Serialize;

/// A score of all held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// How many steps the parameters had seen.
    pub step: u64,
    /// Mean loss.
    pub loss: f64,
    /// Share of correctly classified samples, 0 to 1.
    pub accuracy: f64,
    /// Samples, or whatever the mean is over.
    pub samples: f64,
}

/// Puts a complete set of parts together; the bits do not depend on who computed which.
pub fn score(step: Step, tree: SliceTree, part: impl Fn(SliceId) -> Option<EvaluationPart>) -> Option<Score> {
    let mut complete = true;
    let mut leaf = |slice| {
        let found = part(slice);
        complete &= found.is_some();
        found.map(|part| (part.weight, part.loss_sum, part.correct))
    };
    let sums = tree::fold(tree.root(), &mut leaf, &mut |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
    let (weight, loss_sum, correct) = sums.filter(|_| complete)?;
    Some(Score { step: step.0, loss: loss_sum / weight, accuracy: correct as f64 / weight, samples: weight })
}

/// Parts of evaluations that are not complete yet.
#[derive(Clone, Debug)]
pub struct Evaluations {
    tree: SliceTree,
    open: BTreeMap<Step, BTreeMap<SliceId, EvaluationPart>>,
}

impl Evaluations {
    /// No part yet.
    pub fn new(tree: SliceTree) -> Evaluations {
        Evaluations { tree, open: BTreeMap::new() }
    }

    /// Adds parts; gives the score once all slices are there.
    pub fn add(&mut self, step: Step, parts: Vec<EvaluationPart>) -> Option<Score> {
        let open = self.open.entry(step).or_default();
        open.extend(parts.into_iter().map(|part| (part.slice, part)));
        let score = score(step, self.tree, |slice| open.get(&slice).copied())?;
        self.open.remove(&step);
        Some(score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_needs_every_slice() {
        let part =
            |slice, weight, loss_sum, correct| EvaluationPart { slice: SliceId(slice), weight, loss_sum, correct };
        let mut evaluations = Evaluations::new(SliceTree::new(3));
        assert_eq!(evaluations.add(Step(5), vec![part(2, 4.0, 2.0, 4), part(0, 4.0, 1.0, 2)]), None);
        assert_eq!(evaluations.add(Step(6), vec![part(1, 4.0, 1.0, 2)]), None);
        let score = evaluations.add(Step(5), vec![part(1, 0.0, 0.0, 0)]);
        assert_eq!(score, Some(Score { step: 5, loss: 0.375, accuracy: 0.75, samples: 8.0 }));
    }
}
