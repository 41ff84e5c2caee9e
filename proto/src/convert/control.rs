//! Messages of the control path: joins, views, decisions, reports.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Result, WireError, lease, present, role, shown, weight, wrong};
use crate::{
    access::Guard,
    ids::{BlockId, Era, Generation, Incarnation, Member, Role, ServerId, SliceId, Step, WorkerId},
    messages::{
        Accumulated, Admission, ClusterView, Effort, EvaluationPart, JoinOffer, JoinPart, Norms, Phase, Report,
        ServerView, Since, Squares, Staged, StepReport, StepTimes, Verdict, Weights, Work, WorkerOffer,
    },
    wire,
};

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
            guard: digests(admission.guard.unwrap_or_default()),
        }
    }
}

fn digests(guard: Guard) -> HashMap<String, Bytes> {
    guard.0.into_iter().map(|(role, digest)| (role.to_string(), digest.into())).collect()
}

impl TryFrom<wire::JoinResponse> for Admission {
    type Error = WireError;

    fn try_from(response: wire::JoinResponse) -> Result<Self> {
        lease(response.heartbeat_ms, response.lease_ms)?;
        let digests = response.guard.into_iter().map(|(role, digest)| {
            let role = role.parse().map_err(|problem: String| wrong("guard", problem))?;
            Ok((role, digest.into()))
        });
        let guard = Guard(digests.collect::<Result<_>>()?);
        Ok(Admission {
            incarnation: Incarnation(response.incarnation),
            heartbeat_ms: response.heartbeat_ms,
            lease_ms: response.lease_ms,
            guard: Some(guard).filter(|guard| !guard.0.is_empty()),
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
            shards: view.shards,
            servers: view.servers.into_iter().map(Into::into).collect(),
            owners: view.owners.iter().map(|owner| owner.0).collect(),
            initialiser: view.initialiser.0,
            incarnations: view.incarnations.iter().map(|incarnation| incarnation.0).collect(),
            stop_at: view.stop_at.map(|step| step.0),
            reviewed: view.reviewed.0,
            restore: view.restore.unwrap_or_default(),
            save_at: view.save_at.map(|commit| commit.0),
            saved: view.saved.0,
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
        if view.shards == 0 || !(view.servers.len() as u64).is_multiple_of(view.shards.into()) {
            return Err(wrong("shards", format!("are {}, with {} servers", view.shards, view.servers.len())));
        }
        Ok(ClusterView {
            phase,
            generation: Generation(view.generation),
            era: Era(view.era),
            shards: view.shards,
            servers: view.servers.into_iter().map(Into::into).collect(),
            owners: view.owners.into_iter().map(WorkerId).collect(),
            initialiser: WorkerId(view.initialiser),
            incarnations: view.incarnations.into_iter().map(Incarnation).collect(),
            stop_at: view.stop_at.map(Step),
            reviewed: Step(view.reviewed),
            restore: Some(view.restore).filter(|place| !place.is_empty()),
            save_at: view.save_at.map(Step),
            saved: Step(view.saved),
        })
    }
}

impl From<ServerView> for wire::ServerPlace {
    fn from(server: ServerView) -> Self {
        let ServerView { address, incarnation, since } = server;
        let (is_late, since) = match since {
            Since::Beginning => (false, None),
            Since::Commit(commit) => (true, Some(commit.0)),
            Since::Waits => (true, None),
        };
        wire::ServerPlace { address, incarnation: incarnation.0, is_late, since }
    }
}

impl From<wire::ServerPlace> for ServerView {
    fn from(server: wire::ServerPlace) -> Self {
        let wire::ServerPlace { address, incarnation, is_late, since } = server;
        let since = match (is_late, since) {
            (false, _) => Since::Beginning,
            (true, Some(commit)) => Since::Commit(Step(commit)),
            (true, None) => Since::Waits,
        };
        ServerView { address, incarnation: Incarnation(incarnation), since }
    }
}

impl Accumulated {
    /// The request that a server sends for it.
    pub fn into_request(self, member: Member) -> wire::DecideRequest {
        let norm = |block: BlockId, sum_of_squares, parameters_sum_of_squares| wire::BlockNorm {
            block: block.0,
            sum_of_squares,
            parameters_sum_of_squares,
        };
        let (stage, norms) = match self.norms {
            Norms::Gradient(norms) => (wire::Stage::Clip, norms.iter().map(|(b, sum)| norm(*b, *sum, 0.0)).collect()),
            Norms::Direction(norms) => {
                (wire::Stage::Trust, norms.iter().map(|(b, s)| norm(*b, s.direction, s.parameters)).collect())
            }
        };
        wire::DecideRequest {
            member: Some(member.into()),
            era: self.era.0,
            step: self.proposal.step.0,
            stage: stage.into(),
            norms,
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
        let norms = request.norms.iter();
        let norms = match wire::Stage::try_from(request.stage) {
            Ok(wire::Stage::Clip) => {
                Norms::Gradient(norms.map(|norm| (BlockId(norm.block), norm.sum_of_squares)).collect())
            }
            Ok(wire::Stage::Trust) => {
                let squares = |norm: &wire::BlockNorm| Squares {
                    direction: norm.sum_of_squares,
                    parameters: norm.parameters_sum_of_squares,
                };
                Norms::Direction(norms.map(|norm| (BlockId(norm.block), squares(norm))).collect())
            }
            Ok(wire::Stage::Unspecified) | Err(_) => {
                return Err(wrong("stage", format!("{} is unknown", request.stage)));
            }
        };
        Ok(Accumulated { server: ServerId(member.rank), era: Era(request.era), proposal, norms })
    }
}

impl Staged {
    /// The request that a server sends for it.
    pub fn into_request(self, member: Member) -> wire::StageRequest {
        wire::StageRequest { member: Some(member.into()), era: self.era.0, header: Some(self.header.into()) }
    }
}

impl TryFrom<wire::StageRequest> for Staged {
    type Error = WireError;

    fn try_from(request: wire::StageRequest) -> Result<Self> {
        let member = Member::try_from(request.member)?;
        if member.role != Role::Server {
            return Err(wrong("member", "is not a server"));
        }
        let header = present("header", request.header)?.try_into()?;
        Ok(Staged { server: ServerId(member.rank), era: Era(request.era), header })
    }
}

impl From<(Work, Generation)> for wire::DealResponse {
    fn from((work, generation): (Work, Generation)) -> Self {
        use wire::deal_response::Work as Kind;
        let kind = match work {
            Work::Slice { sequence, step, slice } => Kind::Slice(wire::DealtSlice { sequence, step, slice: slice.0 }),
            Work::Evaluate(step) => Kind::Evaluate(step.0),
            Work::Finished(step) => Kind::Finished(step.0),
        };
        wire::DealResponse { work: Some(kind), generation: generation.0 }
    }
}

impl TryFrom<wire::DealResponse> for (Work, Generation) {
    type Error = WireError;

    fn try_from(response: wire::DealResponse) -> Result<Self> {
        use wire::deal_response::Work as Kind;
        let work = match present("work", response.work)? {
            Kind::Slice(dealt) => {
                Work::Slice { sequence: dealt.sequence, step: dealt.step, slice: SliceId(dealt.slice) }
            }
            Kind::Evaluate(step) => Work::Evaluate(Step(step)),
            Kind::Finished(step) => Work::Finished(Step(step)),
        };
        Ok((work, Generation(response.generation)))
    }
}

impl From<Report> for wire::Report {
    fn from(report: Report) -> Self {
        use wire::report::Kind;
        let kind = match report {
            Report::Initialised => Kind::Initialised(wire::Initialised {}),
            Report::Step(step) => Kind::Step(step.into()),
            Report::Evaluation { step, weights, parts } => {
                let parts = parts.iter().map(|part| wire::EvaluationPart {
                    slice: part.slice.0,
                    weight: part.weight,
                    loss_sum: part.loss_sum,
                    correct: part.correct,
                });
                let averaged = weights == Weights::Averaged;
                Kind::Evaluation(wire::EvaluationReport { step: step.0, parts: parts.collect(), averaged })
            }
            Report::Pausing { pushed } => Kind::Pausing(wire::Pausing { pushed: pushed.0 }),
            Report::Missed { next, effort } => {
                Kind::Missed(wire::MissedReport { next: next.0, effort: Some(effort.into()) })
            }
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
                let weights = if report.averaged { Weights::Averaged } else { Weights::Trained };
                Report::Evaluation { step: Step(report.step), weights, parts: parts.collect::<Result<_>>()? }
            }
            Kind::Pausing(pausing) => Report::Pausing { pushed: Step(pausing.pushed) },
            Kind::Missed(missed) => {
                Report::Missed { next: Step(missed.next), effort: present("effort", missed.effort)?.try_into()? }
            }
            Kind::Finished(finished) => Report::Finished { step: Step(finished.steps) },
        })
    }
}

impl From<StepReport> for wire::StepReport {
    fn from(report: StepReport) -> Self {
        wire::StepReport { verdict: Some(report.verdict.into()), effort: Some(report.effort.into()) }
    }
}

impl TryFrom<wire::StepReport> for StepReport {
    type Error = WireError;

    fn try_from(report: wire::StepReport) -> Result<Self> {
        Ok(StepReport { verdict: report.verdict.try_into()?, effort: present("effort", report.effort)?.try_into()? })
    }
}

impl From<Effort> for wire::Effort {
    fn from(effort: Effort) -> Self {
        let Effort { samples, bytes_pushed, bytes_pulled, times } = effort;
        let StepTimes { data, compute, push, wait, pull, load } = times;
        wire::Effort {
            samples,
            bytes_pushed,
            bytes_pulled,
            times: Some(wire::StepTimes { data, compute, push, wait, pull, load }),
        }
    }
}

impl TryFrom<wire::Effort> for Effort {
    type Error = WireError;

    fn try_from(effort: wire::Effort) -> Result<Self> {
        let wire::Effort { samples, bytes_pushed, bytes_pulled, times } = effort;
        let wire::StepTimes { data, compute, push, wait, pull, load } = present("times", times)?;
        // What is only shown is no reason to refuse the rest.
        let [data, compute, push, wait, pull, load] = [data, compute, push, wait, pull, load].map(shown);
        let times = StepTimes { data, compute, push, wait, pull, load };
        Ok(Effort { samples, bytes_pushed, bytes_pulled, times })
    }
}
