//! The messages between processes, as the rest of the code sees them.
//!
//! Plain data. How they look on the wire, and every check of what a peer sent, is in [`crate::convert`].

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Serialize;

use crate::{
    ids::{BlockId, Era, Generation, Incarnation, Member, Role, ShardId, SliceId, Step, WorkerId},
    manifest::Manifest,
    tree::{Node, SliceTree, fold},
};

/// A process that asks to be admitted, and what it must have in common with the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinOffer {
    /// Must equal [`crate::PROTOCOL`].
    pub protocol: u32,
    /// Must equal [`crate::BUILD`].
    pub build: String,
    /// The run it belongs to.
    pub run_id: String,
    /// Its place.
    pub role: Role,
    /// Its place.
    pub rank: u32,
    /// For people, and for signals.
    pub pid: u32,
    /// For people.
    pub host: String,
    /// SHA-256 of the resolved configuration.
    pub config_fingerprint: Vec<u8>,
    /// What only one role brings.
    pub part: JoinPart,
}

/// What a role brings when it joins.
#[derive(Clone, Debug, PartialEq)]
pub enum JoinPart {
    /// A server.
    Server {
        /// Where workers reach it, `host:port`.
        address: String,
    },
    /// A worker.
    Worker(Box<WorkerOffer>),
}

/// What a worker brings when it joins.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerOffer {
    /// `cpu`, `wgpu` or `cuda`.
    pub backend: String,
    /// The device's name.
    pub device: String,
    /// What must be equal for two workers to compute the same bits.
    pub numeric_class: String,
    /// SHA-256 over the data.
    pub data_fingerprint: Vec<u8>,
    /// The model's tensors.
    pub manifest: Manifest,
}

/// An admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Who the process is from now on.
    pub incarnation: Incarnation,
    /// How often to send a heartbeat.
    pub heartbeat_ms: u32,
    /// How long the coordinator waits for one.
    pub lease_ms: u32,
}

/// Where the cluster stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Members are still joining.
    Gathering,
    /// One worker sets the parameters of step 0.
    Initialising,
    /// Steps are made.
    Training,
    /// Finish the steps that all have pushed, start no other.
    Stopping,
    /// Training is over.
    Ended,
}

/// What every member knows of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// Where it stands.
    pub phase: Phase,
    /// The membership's version.
    pub generation: Generation,
    /// The current era.
    pub era: Era,
    /// Address by shard.
    pub shards: Vec<String>,
    /// Owner by slice.
    pub owners: Vec<WorkerId>,
    /// The worker that sets the initial parameters.
    pub initialiser: WorkerId,
    /// Incarnation by worker; 0 for a place that nobody has taken.
    pub incarnations: Vec<Incarnation>,
    /// While stopping: the step that nobody makes any more, once it is known.
    pub stop_at: Option<Step>,
    /// Where evaluations are reviewed: the last one that training may go on from.
    pub reviewed: Step,
}

impl ClusterView {
    /// The slices that a worker owns.
    pub fn owned_by(&self, worker: WorkerId) -> BTreeSet<SliceId> {
        (0..).map(SliceId).zip(&self.owners).filter(|(_, owner)| **owner == worker).map(|(slice, _)| slice).collect()
    }
}

/// What a slice contributes to a step, without its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SliceHeader {
    /// Which slice.
    pub slice: SliceId,
    /// Samples, tokens, or whatever the mean is taken over; 0 if the slice is empty.
    pub weight: f64,
    /// The sum of the loss over the slice.
    pub loss_sum: f64,
    /// Whether the loss and every gradient are finite.
    pub finite: bool,
}

/// Opens a push.
#[derive(Clone, Debug, PartialEq)]
pub struct PushHeader {
    /// The worker.
    pub member: Member,
    /// The membership it acts on.
    pub generation: Generation,
    /// The era it acts in.
    pub era: Era,
    /// The step it contributes to.
    pub step: Step,
    /// Its slices.
    pub slices: Vec<SliceHeader>,
    /// What the loss was multiplied by, a power of two.
    pub loss_scale: f64,
}

/// One block's part of a node's sum: little-endian f32, dense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GradientBlock {
    /// Which block.
    pub block: BlockId,
    /// Over which slices it is summed.
    pub node: Node,
    /// Four bytes an element.
    pub payload: Bytes,
}

/// One block of the parameters: little-endian f32, dense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterBlock {
    /// Which block.
    pub block: BlockId,
    /// Four bytes an element.
    pub payload: Bytes,
}

/// Asks for all parameters of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Who asks.
    pub member: Member,
    /// The era it acts in.
    pub era: Era,
    /// The step that starts from them.
    pub step: Step,
    /// Which values.
    pub weights: Weights,
}

/// One part of a push.
#[derive(Clone, Debug, PartialEq)]
pub enum PushPart {
    /// Comes first.
    Header(PushHeader),
    /// Then these.
    Blocks(Vec<GradientBlock>),
}

/// One part of a push-pull's answer.
#[derive(Clone, Debug, PartialEq)]
pub enum PulledPart {
    /// Updated blocks.
    Blocks(Vec<ParameterBlock>),
    /// The step is committed on this shard.
    Committed(Verdict),
}

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
}

/// Bit for bit: two shards that saw the same loss, even one that is not a number, agree.
impl PartialEq for Verdict {
    fn eq(&self, other: &Self) -> bool {
        let bits = |v: &Verdict| {
            let numbers = [v.weight, v.loss_sum, v.clip, v.learning_rate, v.loss_scale].map(f64::to_bits);
            let trust: Vec<_> = v.trust.iter().map(|ratio| ratio.to_bits()).collect();
            (numbers, v.gradient_norm.map(f64::to_bits), trust)
        };
        let rest = |v: &Verdict| (v.step, v.action);
        rest(self) == rest(other) && bits(self) == bits(other) && self.slices == other.slices
    }
}

impl Verdict {
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
        let (clip, gradient_norm, trust) = (1.0, None, Vec::new());
        Verdict { step, action, weight, loss_sum, clip, learning_rate, gradient_norm, slices, loss_scale, trust }
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

/// A shard's part in a decision that needs all shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Accumulated {
    /// Whose shard.
    pub shard: ShardId,
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

/// Which values of the parameters are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weights {
    /// Those that are trained.
    Trained,
    /// Their moving average.
    Averaged,
}

/// Where a step's time went, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepTimes {
    /// Reading and preparing samples.
    pub data: f64,
    /// Forward, backward, and reading gradients off the device.
    pub compute: f64,
    /// From the push's first byte to the last block that came back.
    pub exchange: f64,
    /// Putting the new parameters onto the device.
    pub load: f64,
}

/// A committed step, seen by one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// How it ended.
    pub verdict: Verdict,
    /// Samples this worker computed for it.
    pub samples: u64,
    /// Payload bytes this worker pushed for it.
    pub bytes_pushed: u64,
    /// Payload bytes it pulled.
    pub bytes_pulled: u64,
    /// Where the time went.
    pub times: StepTimes,
}

/// Sums over one slice of the held-out data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvaluationPart {
    /// Which slice.
    pub slice: SliceId,
    /// Samples, or whatever the mean is taken over.
    pub weight: f64,
    /// Sum of the loss.
    pub loss_sum: f64,
    /// Correctly classified samples.
    pub correct: u64,
}

/// What a worker tells the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// The parameters of step 0 are set on every shard.
    Initialised,
    /// A step is committed.
    Step(StepReport),
    /// Its slices of the held-out data, with the parameters that `step` steps made.
    Evaluation {
        /// How many steps the parameters have seen.
        step: Step,
        /// Of which parameters.
        weights: Weights,
        /// By slice.
        parts: Vec<EvaluationPart>,
    },
    /// The worker sees that the cluster stops: it has pushed the steps below this one, and pushes no other.
    Pausing {
        /// The first step it has not pushed.
        pushed: Step,
    },
    /// The worker made its last step.
    Finished {
        /// How many steps the parameters have seen.
        step: Step,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { learning_rate: 0.1, loss_scale: 1.0 };

    fn header(slice: u32, weight: f64, loss_sum: f64, finite: bool) -> SliceHeader {
        SliceHeader { slice: SliceId(slice), weight, loss_sum, finite }
    }

    #[test]
    fn a_verdict_counts_what_is_present() {
        let headers = [header(0, 3.0, 1.5, true), header(1, 0.0, 0.0, true), header(2, 1.0, 2.5, true)];
        let verdict = Verdict::from_headers(Step(4), SliceTree::new(3), &headers, TERMS);
        assert_eq!((verdict.action, verdict.weight, verdict.loss()), (Action::Apply, 4.0, 1.0));
        assert_eq!(verdict.slices, [SliceId(0), SliceId(2)]);
    }

    #[test]
    fn one_part_that_is_not_finite_skips_the_step() {
        let headers = [header(0, 3.0, 1.5, true), header(1, 1.0, f64::NAN, false)];
        let verdict = Verdict::from_headers(Step(0), SliceTree::new(2), &headers, TERMS);
        assert_eq!(verdict.action, Action::SkipNonFinite);
        assert_eq!(verdict, verdict.clone(), "a loss that is not a number is the same on both sides");
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
