//! The messages between processes, as the rest of the code sees them.
//!
//! Plain data. How they look on the wire, and every check of what a peer sent, is in [`crate::convert`].

use crate::{
    access::Guard,
    ids::{Era, Generation, Incarnation, Member, Role, ServerId, SliceId, Step, WorkerId},
    manifest::Manifest,
};

pub use crate::shard_report::{Part, Saved, ShardReport};
pub use crate::transfer::{BlockState, CopyPart, Extent, GradientBlock, ParameterBlock, Place, Pull, Pulled, Wanted};
pub use crate::verdict::{Accumulated, Action, Norms, Squares, Terms, Verdict};
pub use crate::view::{ClusterView, Phase, ServerView, Since, owned};
pub use crate::vitals::{GpuVitals, ShardVitals, Vitals};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Who the process is from now on.
    pub incarnation: Incarnation,
    /// How often to send a heartbeat.
    pub heartbeat_ms: u32,
    /// How long the coordinator waits for one.
    pub lease_ms: u32,
    /// What a server checks callers' tokens with, where there are tokens.
    pub guard: Option<Guard>,
}

/// What a slice contributes to a step, without its gradient. Equal if all bits are: also where the loss is no number.
#[derive(Clone, Copy, Debug)]
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

impl PartialEq for SliceHeader {
    fn eq(&self, other: &SliceHeader) -> bool {
        let bits =
            |header: &SliceHeader| (header.slice, header.weight.to_bits(), header.loss_sum.to_bits(), header.finite);
        bits(self) == bits(other)
    }
}

/// Names a push, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PushId {
    /// Whose.
    pub worker: WorkerId,
    /// Which process in that place.
    pub incarnation: Incarnation,
    /// Ascends with the process's pushes.
    pub sequence: u64,
}

impl std::fmt::Display for PushId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of worker {}", self.sequence, self.worker)
    }
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
    /// The step it contributes to; where slices are dealt out, the step of the parameters it was computed with.
    pub step: Step,
    /// Its number among the worker's pushes.
    pub sequence: u64,
    /// Its slices.
    pub slices: Vec<SliceHeader>,
    /// What the loss was multiplied by, a power of two.
    pub loss_scale: f64,
    /// Where slices are dealt out: whose gradient it is.
    pub dealt: Option<DealtSlice>,
}

/// A slice of a step's batch, as people count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DealtSlice {
    /// The step.
    pub step: u64,
    /// Which part.
    pub slice: SliceId,
}

impl PushHeader {
    /// The push's name.
    pub fn id(&self) -> PushId {
        let Member { rank, incarnation, .. } = self.member;
        PushId { worker: WorkerId(rank), incarnation, sequence: self.sequence }
    }
}

/// A server has all of a push.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    /// Which server.
    pub server: ServerId,
    /// The era it acts in.
    pub era: Era,
    /// The push.
    pub header: PushHeader,
}

/// What a worker is to do next, where slices are dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Compute a slice and push its gradient.
    Slice {
        /// The number that the push bears.
        sequence: u64,
        /// The step of whose batch it is a part, as people count.
        step: u64,
        /// Which part.
        slice: SliceId,
    },
    /// Score the parameters that so many commits made.
    Evaluate(Step),
    /// End: so many commits were made, and no other will be.
    Finished(Step),
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
    /// The step, or the push, is committed on this shard.
    Committed(Verdict),
    /// It will not be: not like this.
    Setback(Setback),
}

/// What keeps a push from being committed, and what to do about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setback {
    /// It came too late: take up with this step, which is open.
    Missed(Step),
    /// Slices have changed hands: look at the view of this generation.
    Outdated(Generation),
    /// The loss has to be multiplied by this, a power of two: compute again.
    Rescale(f64),
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
    /// Handing gradients to connections.
    pub push: f64,
    /// From there to the first block that came back, or to the commit: waiting for others, and for servers' work.
    pub wait: f64,
    /// From there to the last block.
    pub pull: f64,
    /// Putting the new parameters onto the device.
    pub load: f64,
}

/// What a worker did for a step, or a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Effort {
    /// Samples it computed.
    pub samples: u64,
    /// Payload bytes up.
    pub bytes_pushed: u64,
    /// Payload bytes down.
    pub bytes_pulled: u64,
    /// Where the time went.
    pub times: StepTimes,
}

/// A committed step, seen by one worker.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// How it ended.
    pub verdict: Verdict,
    /// What the worker did for it.
    pub effort: Effort,
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
    /// A step was made without the worker.
    Missed {
        /// The step that it takes up with.
        next: Step,
        /// What it did in vain.
        effort: Effort,
    },
    /// The worker made its last step.
    Finished {
        /// How many steps the parameters have seen.
        step: Step,
    },
}
