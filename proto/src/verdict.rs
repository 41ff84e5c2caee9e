//! The decision that closes a step, and what shards bring to one that needs all of them.
//!
//! Every shard derives the same verdict from the same headers. Clipping and layerwise rules need sums over all shards,
//! which the coordinator forms.

use serde::Serialize;

use crate::{
    ids::{BlockId, Era, ServerId, SliceId, Step},
    messages::{PushId, SliceHeader},
    tree::{SliceTree, fold},
};

/// What a verdict does to the parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The optimizer is applied.
    Apply,
    /// The step counts, the parameters stay: a contribution was not finite.
    SkipNonFinite,
}

/// What a step's headers do not say: it follows from the steps before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// The learning rate.
    pub learning_rate: f64,
    /// The power of two that the loss is multiplied by.
    pub loss_scale: f64,
}

/// The one decision that closes a step, the same for all shards.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The step it closes.
    pub step: Step,
    /// What to do.
    pub action: Action,
    /// Sum of the present slices' weights, in tree order.
    pub weight: f64,
    /// Sum of the present slices' losses, in tree order.
    pub loss_sum: f64,
    /// The factor that clips the mean gradient.
    pub clip: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// L2 norm of the mean gradient before clipping, where one was needed.
    pub gradient_norm: Option<f64>,
    /// The slices in the sum, ascending.
    pub slices: Vec<SliceId>,
    /// A power of two: the gradients in the sum are those of the loss times this.
    pub loss_scale: f64,
    /// Layerwise rules: the factor of each tensor's step, by its place in the manifest; empty until it is known.
    pub trust: Vec<f64>,
    /// Where slices are dealt out: the push that is committed.
    pub push: Option<PushId>,
    /// Commits between the parameters that the push was computed with and this one.
    pub staleness: u64,
}

/// Bit for bit: two shards that saw the same loss, even one that is not a number, agree.
impl PartialEq for Verdict {
    fn eq(&self, other: &Self) -> bool {
        let bits = |v: &Verdict| {
            let numbers = [v.weight, v.loss_sum, v.clip, v.learning_rate, v.loss_scale].map(f64::to_bits);
            let trust: Vec<_> = v.trust.iter().map(|ratio| ratio.to_bits()).collect();
            (numbers, v.gradient_norm.map(f64::to_bits), trust)
        };
        let rest = |v: &Verdict| (v.step, v.action, v.push, v.staleness);
        rest(self) == rest(other) && bits(self) == bits(other) && self.slices == other.slices
    }
}

impl Verdict {
    /// Whether both do the same to the parameters. Losses are only told of: where devices do not repeat their results, two
    /// shards may have noted different ones of a slice that two workers computed.
    pub fn does_the_same_as(&self, other: &Verdict) -> bool {
        *self == Verdict { loss_sum: self.loss_sum, ..other.clone() }
    }

    /// What a complete set of headers (by slice) decides, before any clipping; `terms` are the step's learning rate and
    /// loss scale.
    ///
    /// A step without a single sample, or with a part that is not finite, is skipped.
    pub fn from_headers(step: Step, tree: SliceTree, headers: &[SliceHeader], terms: Terms) -> Verdict {
        let present = |slice: SliceId| headers.get(slice.index()).filter(|h| h.weight > 0.0);
        let mut add = |a, b| a + b;
        let weight = fold(tree.root(), &mut |s| present(s).map(|h| h.weight), &mut add).unwrap_or(0.0);
        let loss_sum = fold(tree.root(), &mut |s| present(s).map(|h| h.loss_sum), &mut add).unwrap_or(0.0);
        let slices: Vec<_> = tree.root().slices().filter(|s| present(*s).is_some()).collect();
        let finite = headers.iter().all(|h| h.finite) && weight > 0.0 && weight.is_finite();
        let action = if finite { Action::Apply } else { Action::SkipNonFinite };
        let Terms { learning_rate, loss_scale } = terms;
        Verdict {
            step,
            action,
            weight,
            loss_sum,
            clip: 1.0,
            learning_rate,
            gradient_norm: None,
            slices,
            loss_scale,
            trust: Vec::new(),
            push: None,
            staleness: 0,
        }
    }

    /// The same verdict with the mean gradient clipped to `max_norm`, as the sum's squares (by block, in manifest
    /// order) demand. A norm that is not finite skips the step.
    pub fn clipped(mut self, squares: impl IntoIterator<Item = f64>, max_norm: f64) -> Verdict {
        let norm = squares.into_iter().fold(0.0, |sum, x| sum + x).sqrt() / (self.weight * self.loss_scale);
        self.gradient_norm = Some(norm);
        if !norm.is_finite() {
            self.action = Action::SkipNonFinite;
        } else if norm > max_norm {
            self.clip = max_norm / norm;
        }
        self
    }

    /// The same verdict with the factors of tensors.
    pub fn trusting(mut self, trust: Vec<f64>) -> Verdict {
        if trust.iter().all(|ratio| ratio.is_finite()) {
            self.trust = trust;
        } else {
            self.action = Action::SkipNonFinite;
        }
        self
    }

    /// The mean loss over the step's samples.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.weight
    }
}

/// A server's part in a decision that needs all servers.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulated {
    /// Which server.
    pub server: ServerId,
    /// The era it acts in.
    pub era: Era,
    /// What it derived from the headers; clipped already when it is the tensors' factors that are asked for.
    pub proposal: Verdict,
    /// What it asks for, and with what.
    pub norms: Norms,
}

/// Sums of squares by trainable block, ascending: what a common decision is formed from.
#[derive(Clone, Debug, PartialEq)]
pub enum Norms {
    /// Of the summed gradient, to clip it.
    Gradient(Vec<(BlockId, f64)>),
    /// Of the direction that a layerwise rule wants to go, and of the parameters, to scale each tensor's step.
    Direction(Vec<(BlockId, Squares)>),
}

/// Two sums of squares over one block.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Squares {
    /// Of the direction.
    pub direction: f64,
    /// Of the parameters before the step.
    pub parameters: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { learning_rate: 0.1, loss_scale: 1.0 };

    fn header(slice: u32, weight: f64, loss_sum: f64, finite: bool) -> SliceHeader {
        SliceHeader { slice: SliceId(slice), weight, loss_sum, finite }
    }

    /// The verdict on headers written as `weight:loss`, `-` for an empty slice, `!` behind what is not finite.
    fn judge(text: &str) -> String {
        let read = |(slice, word): (u32, &str)| {
            let finite = !word.ends_with('!');
            let (weight, loss_sum) = word.trim_end_matches('!').split_once(':').unwrap_or(("0", "0"));
            header(slice, weight.parse().unwrap(), loss_sum.parse().unwrap(), finite)
        };
        let headers: Vec<_> = (0..).zip(text.split_whitespace()).map(read).collect();
        let tree = SliceTree::new(headers.len() as u32);
        let verdict = Verdict::from_headers(Step(4), tree, &headers, TERMS);
        assert_eq!(verdict, verdict.clone(), "a loss that is not a number is the same on both sides");
        let slices: Vec<_> = verdict.slices.iter().map(ToString::to_string).collect();
        let (weight, loss) = (verdict.weight, verdict.loss());
        format!("{:?} [{}] weight {weight} loss {loss}", verdict.action, slices.join(" "))
    }

    /// Golden: a change here changes which steps are made, and what a loss is.
    #[test]
    fn verdicts() {
        let golden = [
            ("2:1", "Apply [0] weight 2 loss 0.5"),
            ("3:1.5 - 1:2.5", "Apply [0 2] weight 4 loss 1"),
            ("1:4 2:2 3:6 4:8 5:10", "Apply [0 1 2 3 4] weight 15 loss 2"),
            // In tree order, ((0 1) 2): a unit in the last place is lost twice, or not at all.
            ("1:1e16 1:1 1:1", "Apply [0 1 2] weight 3 loss 3333333333333333.5"),
            ("1:1 1:1 1:1e16", "Apply [0 1 2] weight 3 loss 3333333333333334"),
            ("- -", "SkipNonFinite [] weight 0 loss NaN"),
            ("3:1.5 1:NaN!", "SkipNonFinite [0 1] weight 4 loss NaN"),
            ("3:1.5 1:2.5!", "SkipNonFinite [0 1] weight 4 loss 1"),
            ("3:1.5 -!", "SkipNonFinite [0] weight 3 loss 0.5"),
            ("inf:1 1:1", "SkipNonFinite [0 1] weight inf loss 0"),
        ];
        for (headers, verdict) in golden {
            assert_eq!(judge(headers), verdict, "{headers}");
        }
    }

    #[test]
    fn clips_the_mean_and_not_the_sum() {
        let verdict = Verdict::from_headers(Step(0), SliceTree::new(1), &[header(0, 2.0, 1.0, true)], TERMS);
        let clipped = verdict.clone().clipped([36.0, 64.0], 1.0);
        assert_eq!((clipped.gradient_norm, clipped.clip), (Some(5.0), 0.2));
        assert_eq!(verdict.clone().clipped([1.0], 1.0).clip, 1.0);
        assert_eq!(verdict.clipped([f64::INFINITY], 1.0).action, Action::SkipNonFinite);
    }

    #[test]
    fn a_loss_scale_is_no_part_of_the_norm() {
        let terms = Terms { loss_scale: 8.0, ..TERMS };
        let verdict = Verdict::from_headers(Step(0), SliceTree::new(1), &[header(0, 2.0, 1.0, true)], terms);
        assert_eq!(verdict.clipped([36.0 * 64.0, 64.0 * 64.0], 1.0).gradient_norm, Some(5.0));
    }

    #[test]
    fn a_factor_that_is_not_finite_skips_the_step() {
        let verdict = Verdict::from_headers(Step(0), SliceTree::new(1), &[header(0, 2.0, 1.0, true)], TERMS);
        assert_eq!(verdict.clone().trusting(vec![1.0, 2.0]).trust, [1.0, 2.0]);
        assert_eq!(verdict.trusting(vec![1.0, f64::NAN]).action, Action::SkipNonFinite);
    }
}
