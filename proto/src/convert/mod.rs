//! The one place where wire types become domain types and back.
//!
//! Everything a peer sends is checked here for form: enums are known, counts fit, numbers are in range. Whether it
//! is *allowed* (the right step, block, owner) is for the cores to say. An error names the field. Here is what both
//! services share; the rest is by service.

use crate::{
    ids::{Incarnation, Member, Role, SliceId, Step, WorkerId},
    loss_scale::LossScale,
    manifest::{Manifest, TensorRole},
    messages::{Action, PushId, Verdict},
    wire,
};

mod control;
mod data;
mod nodes;
mod shards;
mod vitals;

pub use nodes::fit_log;

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

fn lease(heartbeat_ms: u32, lease_ms: u32) -> Result<()> {
    if heartbeat_ms == 0 || lease_ms <= heartbeat_ms {
        return Err(wrong("lease_ms", format!("{lease_ms} is no lease")));
    }
    Ok(())
}

fn finite(field: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() { Ok(value) } else { Err(wrong(field, format!("is {value}"))) }
}

fn weight(field: &'static str, value: f64) -> Result<f64> {
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(wrong(field, format!("is {value}"))) }
}

/// A number that is only shown to people: what is none is 0.
fn shown(value: f64) -> f64 {
    if value.is_finite() && value >= 0.0 { value } else { 0.0 }
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
                TensorRole::Buffer => wire::TensorRole::Buffer,
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
                Ok(wire::TensorRole::Buffer) => Ok((tensor.name, tensor.shape, TensorRole::Buffer)),
                _ => Err(wrong("manifest.role", format!("{} of `{}` is unknown", tensor.role, tensor.name))),
            })
            .collect();
        Manifest::new(tensors?).map_err(|error| wrong("manifest", error.to_string()))
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
            loss_scale: verdict.loss_scale,
            trust: verdict.trust,
            push: verdict.push.map(Into::into),
            staleness: verdict.staleness,
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
        if !LossScale::fits(verdict.loss_scale) {
            return Err(wrong("verdict.loss_scale", format!("is {}", verdict.loss_scale)));
        }
        Ok(Verdict {
            step: Step(verdict.step),
            action,
            weight: weight("verdict.weight", verdict.weight)?,
            loss_sum: verdict.loss_sum,
            clip: finite("verdict.clip", verdict.clip)?,
            learning_rate: finite("verdict.learning_rate", verdict.learning_rate)?,
            gradient_norm: verdict.gradient_norm,
            slices: verdict.slices.into_iter().map(SliceId).collect(),
            loss_scale: verdict.loss_scale,
            trust: verdict.trust.into_iter().map(|ratio| finite("verdict.trust", ratio)).collect::<Result<_>>()?,
            push: verdict.push.map(Into::into),
            staleness: verdict.staleness,
        })
    }
}

impl From<PushId> for wire::PushId {
    fn from(id: PushId) -> Self {
        wire::PushId { worker: id.worker.0, incarnation: id.incarnation.0, sequence: id.sequence }
    }
}

impl From<wire::PushId> for PushId {
    fn from(id: wire::PushId) -> Self {
        let (worker, incarnation) = (WorkerId(id.worker), Incarnation(id.incarnation));
        PushId { worker, incarnation, sequence: id.sequence }
    }
}

#[cfg(test)]
mod tests;
