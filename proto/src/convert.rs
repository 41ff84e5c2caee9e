//! The one place where wire types become domain types and back.
//!
//! Everything a peer sends is checked here for form: enums are known, counts fit, numbers are in range. Whether it
//! is *allowed* (the right step, block, owner) is for the cores to say. An error names the field.

use crate::{
    ids::{BlockId, Era, Generation, Incarnation, Member, Role, SliceId, Step, WorkerId},
    manifest::{Manifest, TensorRole},
    messages::{
        Accumulated, Action, Admission, ClusterView, EvaluationPart, GradientBlock, JoinOffer, JoinPart,
        ParameterBlock, Phase, PulledPart, PushHeader, PushPart, Report, SliceHeader, StepReport, StepTimes, Verdict,
        WorkerOffer,
    },
    tree::Node,
    wire,
};

/// What is wrong with a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("malformed message: {field} {problem}")]
pub struct WireError {
    /// Where.
    pub field: &'static str,
    /// What.
    pub problem: String,
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        tonic::Status::invalid_argument(error.to_string())
    }
}

type Result<T> = std::result::Result<T, WireError>;

fn wrong(field: &'static str, problem: impl Into<String>) -> WireError {
    WireError { field, problem: problem.into() }
}

fn present<T>(field: &'static str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| wrong(field, "is missing"))
}

fn finite(field: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() { Ok(value) } else { Err(wrong(field, format!("is {value}"))) }
}

fn weight(field: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(wrong(field, format!("is {value}"))) }
}

impl From<Role> for wire::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Server => wire::Role::Server,
            Role::Worker => wire::Role::Worker,
            Role::Launcher => wire::Role::Launcher,
        }
    }
}

fn role(value: i32) -> Result<Role> {
    match wire::Role::try_from(value) {
        Ok(wire::Role::Server) => Ok(Role::Server),
        Ok(wire::Role::Worker) => Ok(Role::Worker),
        Ok(wire::Role::Launcher) => Ok(Role::Launcher),
        Ok(wire::Role::Unspecified) | Err(_) => Err(wrong("role", format!("{value} is unknown"))),
    }
}

impl From<Member> for wire::Member {
    fn from(member: Member) -> Self {
        wire::Member {
            role: wire::Role::from(member.role).into(),
            rank: member.rank,
            incarnation: member.incarnation.0,
        }
    }
}

impl TryFrom<Option<wire::Member>> for Member {
    type Error = WireError;

    fn try_from(member: Option<wire::Member>) -> Result<Self> {
        let member = present("member", member)?;
        Ok(Member { role: role(member.role)?, rank: member.rank, incarnation: Incarnation(member.incarnation) })
    }
}

impl From<&Manifest> for wire::Manifest {
    fn from(manifest: &Manifest) -> Self {
        let tensors = manifest.tensors().iter().map(|tensor| wire::Tensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            role: match tensor.role {
                TensorRole::Trainable => wire::TensorRole::Trainable,
                TensorRole::Frozen => wire::TensorRole::Frozen,
            }
            .into(),
        });
        wire::Manifest { tensors: tensors.collect() }
    }
}

impl TryFrom<wire::Manifest> for Manifest {
    type Error = WireError;

    fn try_from(manifest: wire::Manifest) -> Result<Self> {
        let tensors: Result<Vec<_>> = manifest
            .tensors
            .into_iter()
            .map(|tensor| match wire::TensorRole::try_from(tensor.role) {
                Ok(wire::TensorRole::Trainable) => Ok((tensor.name, tensor.shape, TensorRole::Trainable)),
                Ok(wire::TensorRole::Frozen) => Ok((tensor.name, tensor.shape, TensorRole::Frozen)),
                _ => Err(wrong("manifest.role", format!("{} of `{}` is unknown", tensor.role, tensor.name))),
            })
            .collect();
        Manifest::new(tensors?).map_err(|error| wrong("manifest", error.to_string()))
    }
}

impl From<JoinOffer> for wire::JoinRequest {
    fn from(offer: JoinOffer) -> Self {
        let mut request = wire::JoinRequest {
            protocol: offer.protocol,
            build: offer.build,
            run_id: offer.run_id,
            role: wire::Role::from(offer.role).into(),
            rank: offer.rank,
            pid: offer.pid,
            host: offer.host,
            config_fingerprint: offer.config_fingerprint.into(),
            ..Default::default()
        };
        match offer.part {
            JoinPart::Server { address } => request.address = address,
            JoinPart::Worker(worker) => {
                request.manifest = Some((&worker.manifest).into());
                request.backend = worker.backend;
                request.device = worker.device;
                request.numeric_class = worker.numeric_class;
                request.data_fingerprint = worker.data_fingerprint.into();
            }
        }
        request
    }
}

impl TryFrom<wire::JoinRequest> for JoinOffer {
    type Error = WireError;

    fn try_from(request: wire::JoinRequest) -> Result<Self> {
        let role = role(request.role)?;
        let part = match role {
            Role::Server if request.address.is_empty() => return Err(wrong("address", "is empty")),
            Role::Server => JoinPart::Server { address: request.address },
            Role::Worker => JoinPart::Worker(Box::new(WorkerOffer {
                backend: request.backend,
                device: request.device,
                numeric_class: request.numeric_class,
                data_fingerprint: request.data_fingerprint.into(),
                manifest: present("manifest", request.manifest)?.try_into()?,
            })),
            Role::Launcher => return Err(wrong("role", "launcher cannot join")),
        };
        Ok(JoinOffer {
            protocol: request.protocol,
            build: request.build,
            run_id: request.run_id,
            role,
            rank: request.rank,
            pid: request.pid,
            host: request.host,
            config_fingerprint: request.config_fingerprint.into(),
            part,
        })
    }
}

impl From<Admission> for wire::JoinResponse {
    fn from(admission: Admission) -> Self {
        wire::JoinResponse {
            incarnation: admission.incarnation.0,
            heartbeat_ms: admission.heartbeat_ms,
            lease_ms: admission.lease_ms,
        }
    }
}

impl TryFrom<wire::JoinResponse> for Admission {
    type Error = WireError;

    fn try_from(response: wire::JoinResponse) -> Result<Self> {
        if response.heartbeat_ms == 0 || response.lease_ms <= response.heartbeat_ms {
            return Err(wrong("lease_ms", format!("{} is no lease", response.lease_ms)));
        }
        Ok(Admission {
            incarnation: Incarnation(response.incarnation),
            heartbeat_ms: response.heartbeat_ms,
            lease_ms: response.lease_ms,
        })
    }
}

impl From<Phase> for wire::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Gathering => wire::Phase::Gathering,
            Phase::Initialising => wire::Phase::Initialising,
            Phase::Training => wire::Phase::Training,
            Phase::Stopping => wire::Phase::Stopping,
            Phase::Ended => wire::Phase::Ended,
        }
    }
}

impl From<ClusterView> for wire::WatchResponse {
    fn from(view: ClusterView) -> Self {
        wire::WatchResponse {
            phase: wire::Phase::from(view.phase).into(),
            generation: view.generation.0,
            era: view.era.0,
            shards: (0..).zip(view.shards).map(|(shard, address)| wire::Shard { shard, address }).collect(),
            owners: view.owners.iter().map(|owner| owner.0).collect(),
            initialiser: view.initialiser.0,
            incarnations: view.incarnations.iter().map(|incarnation| incarnation.0).collect(),
            stop_at: view.stop_at.map(|step| step.0),
        }
    }
}

impl TryFrom<wire::WatchResponse> for ClusterView {
    type Error = WireError;

    fn try_from(view: wire::WatchResponse) -> Result<Self> {
        let phase = match wire::Phase::try_from(view.phase) {
            Ok(wire::Phase::Gathering) => Phase::Gathering,
            Ok(wire::Phase::Initialising) => Phase::Initialising,
            Ok(wire::Phase::Training) => Phase::Training,
            Ok(wire::Phase::Stopping) => Phase::Stopping,
            Ok(wire::Phase::Ended) => Phase::Ended,
            Ok(wire::Phase::Unspecified) | Err(_) => return Err(wrong("phase", format!("{} is unknown", view.phase))),
        };
        if (0..).zip(&view.shards).any(|(i, shard)| shard.shard != i) {
            return Err(wrong("shards", "are not numbered from 0"));
        }
        Ok(ClusterView {
            phase,
            generation: Generation(view.generation),
            era: Era(view.era),
            shards: view.shards.into_iter().map(|shard| shard.address).collect(),
            owners: view.owners.into_iter().map(WorkerId).collect(),
            initialiser: WorkerId(view.initialiser),
            incarnations: view.incarnations.into_iter().map(Incarnation).collect(),
            stop_at: view.stop_at.map(Step),
        })
    }
}

impl From<PushHeader> for wire::PushHeader {
    fn from(header: PushHeader) -> Self {
        let slices = header.slices.iter().map(|slice| wire::SliceHeader {
            slice: slice.slice.0,
            weight: slice.weight,
            loss_sum: slice.loss_sum,
            finite: slice.finite,
        });
        wire::PushHeader {
            member: Some(header.member.into()),
            generation: header.generation.0,
            era: header.era.0,
            step: header.step.0,
            slices: slices.collect(),
        }
    }
}

impl TryFrom<wire::PushHeader> for PushHeader {
    type Error = WireError;

    fn try_from(header: wire::PushHeader) -> Result<Self> {
        let slices = header.slices.iter().map(|slice| {
            let weight = weight("slice.weight", slice.weight)?;
            let loss_sum = if slice.finite { finite("slice.loss_sum", slice.loss_sum)? } else { slice.loss_sum };
            Ok(SliceHeader { slice: SliceId(slice.slice), weight, loss_sum, finite: slice.finite })
        });
        Ok(PushHeader {
            slices: slices.collect::<Result<_>>()?,
            member: header.member.try_into()?,
            generation: Generation(header.generation),
            era: Era(header.era),
            step: Step(header.step),
        })
    }
}

fn dense(encoding: i32) -> Result<()> {
    match wire::Encoding::try_from(encoding) {
        Ok(wire::Encoding::F32) => Ok(()),
        _ => Err(wrong("encoding", format!("{encoding} is unknown"))),
    }
}

impl From<GradientBlock> for wire::GradientBlock {
    fn from(block: GradientBlock) -> Self {
        wire::GradientBlock {
            block: block.block.0,
            node_first: block.node.first,
            node_len: block.node.len,
            encoding: wire::Encoding::F32.into(),
            payload: block.payload,
        }
    }
}

impl TryFrom<wire::GradientBlock> for GradientBlock {
    type Error = WireError;

    fn try_from(block: wire::GradientBlock) -> Result<Self> {
        dense(block.encoding)?;
        let end = block.node_first.checked_add(block.node_len).filter(|_| block.node_len > 0);
        present("node", end)?;
        let node = Node { first: block.node_first, len: block.node_len };
        Ok(GradientBlock { block: BlockId(block.block), node, payload: block.payload })
    }
}

impl From<ParameterBlock> for wire::ParameterBlock {
    fn from(block: ParameterBlock) -> Self {
        wire::ParameterBlock { block: block.block.0, encoding: wire::Encoding::F32.into(), payload: block.payload }
    }
}

impl TryFrom<wire::ParameterBlock> for ParameterBlock {
    type Error = WireError;

    fn try_from(block: wire::ParameterBlock) -> Result<Self> {
        dense(block.encoding)?;
        Ok(ParameterBlock { block: BlockId(block.block), payload: block.payload })
    }
}

fn all<W, D: TryFrom<W, Error = WireError>>(items: Vec<W>) -> Result<Vec<D>> {
    items.into_iter().map(D::try_from).collect()
}

/// The two RPCs that push carry the same parts under different names.
macro_rules! push_part {
    ($request:ident, $part:ident) => {
        impl From<PushPart> for wire::$request {
            fn from(part: PushPart) -> Self {
                use wire::$part::Part;
                let part = match part {
                    PushPart::Header(header) => Part::Header(header.into()),
                    PushPart::Blocks(blocks) => {
                        Part::Frame(wire::GradientFrame { blocks: blocks.into_iter().map(Into::into).collect() })
                    }
                };
                wire::$request { part: Some(part) }
            }
        }

        impl TryFrom<wire::$request> for PushPart {
            type Error = WireError;

            fn try_from(request: wire::$request) -> Result<Self> {
                use wire::$part::Part;
                match present("part", request.part)? {
                    Part::Header(header) => Ok(PushPart::Header(header.try_into()?)),
                    Part::Frame(frame) => Ok(PushPart::Blocks(all(frame.blocks)?)),
                }
            }
        }
    };
}

push_part!(PushRequest, push_request);
push_part!(PushPullRequest, push_pull_request);

impl From<Vec<ParameterBlock>> for wire::PullResponse {
    fn from(blocks: Vec<ParameterBlock>) -> Self {
        wire::PullResponse { blocks: blocks.into_iter().map(Into::into).collect() }
    }
}

impl TryFrom<wire::PullResponse> for Vec<ParameterBlock> {
    type Error = WireError;

    fn try_from(response: wire::PullResponse) -> Result<Self> {
        all(response.blocks)
    }
}

impl From<PulledPart> for wire::PushPullResponse {
    fn from(part: PulledPart) -> Self {
        use wire::push_pull_response::Part;
        let part = match part {
            PulledPart::Blocks(blocks) => {
                Part::Frame(wire::ParameterFrame { blocks: blocks.into_iter().map(Into::into).collect() })
            }
            PulledPart::Committed(verdict) => Part::Committed(verdict.into()),
        };
        wire::PushPullResponse { part: Some(part) }
    }
}

impl TryFrom<wire::PushPullResponse> for PulledPart {
    type Error = WireError;

    fn try_from(response: wire::PushPullResponse) -> Result<Self> {
        use wire::push_pull_response::Part;
        match present("part", response.part)? {
            Part::Frame(frame) => Ok(PulledPart::Blocks(all(frame.blocks)?)),
            Part::Committed(verdict) => Ok(PulledPart::Committed(Some(verdict).try_into()?)),
        }
    }
}

impl From<Verdict> for wire::Verdict {
    fn from(verdict: Verdict) -> Self {
        wire::Verdict {
            step: verdict.step.0,
            action: match verdict.action {
                Action::Apply => wire::Action::Apply,
                Action::SkipNonFinite => wire::Action::SkipNonFinite,
            }
            .into(),
            weight: verdict.weight,
            loss_sum: verdict.loss_sum,
            clip: verdict.clip,
            learning_rate: verdict.learning_rate,
            gradient_norm: verdict.gradient_norm,
            slices: verdict.slices.iter().map(|slice| slice.0).collect(),
        }
    }
}

impl TryFrom<Option<wire::Verdict>> for Verdict {
    type Error = WireError;

    fn try_from(verdict: Option<wire::Verdict>) -> Result<Self> {
        let verdict = present("verdict", verdict)?;
        let action = match wire::Action::try_from(verdict.action) {
            Ok(wire::Action::Apply) => Action::Apply,
            Ok(wire::Action::SkipNonFinite) => Action::SkipNonFinite,
            Ok(wire::Action::Unspecified) | Err(_) => {
                return Err(wrong("verdict.action", format!("{} is unknown", verdict.action)));
            }
        };
        Ok(Verdict {
            step: Step(verdict.step),
            action,
            weight: weight("verdict.weight", verdict.weight)?,
            loss_sum: verdict.loss_sum,
            clip: finite("verdict.clip", verdict.clip)?,
            learning_rate: finite("verdict.learning_rate", verdict.learning_rate)?,
            gradient_norm: verdict.gradient_norm,
            slices: verdict.slices.into_iter().map(SliceId).collect(),
        })
    }
}

impl Accumulated {
    /// The request that a server sends for it.
    pub fn into_request(self, member: Member) -> wire::DecideRequest {
        let norms = self.norms.iter().map(|(block, sum)| wire::BlockNorm { block: block.0, sum_of_squares: *sum });
        wire::DecideRequest {
            member: Some(member.into()),
            era: self.era.0,
            step: self.proposal.step.0,
            norms: norms.collect(),
            proposal: Some(self.proposal.into()),
        }
    }
}

impl TryFrom<wire::DecideRequest> for Accumulated {
    type Error = WireError;

    fn try_from(request: wire::DecideRequest) -> Result<Self> {
        let member = Member::try_from(request.member)?;
        if member.role != Role::Server {
            return Err(wrong("member", "is not a server"));
        }
        let proposal = Verdict::try_from(request.proposal)?;
        if proposal.step.0 != request.step {
            return Err(wrong("step", format!("{} is not the proposal's {}", request.step, proposal.step)));
        }
        let norms = request.norms.iter().map(|norm| (BlockId(norm.block), norm.sum_of_squares)).collect();
        Ok(Accumulated { shard: crate::ids::ShardId(member.rank), era: Era(request.era), proposal, norms })
    }
}

impl From<Report> for wire::Report {
    fn from(report: Report) -> Self {
        use wire::report::Kind;
        let kind = match report {
            Report::Initialised => Kind::Initialised(wire::Initialised {}),
            Report::Step(step) => Kind::Step(step.into()),
            Report::Evaluation { step, parts } => {
                let parts = parts.iter().map(|part| wire::EvaluationPart {
                    slice: part.slice.0,
                    weight: part.weight,
                    loss_sum: part.loss_sum,
                    correct: part.correct,
                });
                Kind::Evaluation(wire::EvaluationReport { step: step.0, parts: parts.collect() })
            }
            Report::Pausing { pushed } => Kind::Pausing(wire::Pausing { pushed: pushed.0 }),
            Report::Finished { step } => Kind::Finished(wire::Finished { steps: step.0 }),
        };
        wire::Report { kind: Some(kind) }
    }
}

impl TryFrom<wire::Report> for Report {
    type Error = WireError;

    fn try_from(report: wire::Report) -> Result<Self> {
        use wire::report::Kind;
        Ok(match present("report", report.kind)? {
            Kind::Initialised(_) => Report::Initialised,
            Kind::Step(step) => Report::Step(step.try_into()?),
            Kind::Evaluation(report) => {
                let parts = report.parts.iter().map(|part| {
                    Ok(EvaluationPart {
                        slice: SliceId(part.slice),
                        weight: weight("evaluation.weight", part.weight)?,
                        loss_sum: part.loss_sum,
                        correct: part.correct,
                    })
                });
                Report::Evaluation { step: Step(report.step), parts: parts.collect::<Result<_>>()? }
            }
            Kind::Pausing(pausing) => Report::Pausing { pushed: Step(pausing.pushed) },
            Kind::Finished(finished) => Report::Finished { step: Step(finished.steps) },
        })
    }
}

impl From<StepReport> for wire::StepReport {
    fn from(report: StepReport) -> Self {
        let StepTimes { data, compute, exchange, load } = report.times;
        wire::StepReport {
            verdict: Some(report.verdict.into()),
            samples: report.samples,
            bytes_pushed: report.bytes_pushed,
            bytes_pulled: report.bytes_pulled,
            times: Some(wire::StepTimes { data, compute, exchange, load }),
        }
    }
}

impl TryFrom<wire::StepReport> for StepReport {
    type Error = WireError;

    fn try_from(report: wire::StepReport) -> Result<Self> {
        let wire::StepTimes { data, compute, exchange, load } = present("times", report.times)?;
        Ok(StepReport {
            verdict: report.verdict.try_into()?,
            samples: report.samples,
            bytes_pushed: report.bytes_pushed,
            bytes_pulled: report.bytes_pulled,
            times: StepTimes { data, compute, exchange, load },
        })
    }
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
