//! What servers report of checkpoints.

use super::{Result, WireError, present, wrong};
use crate::{
    ids::{Era, Member, ServerId, Step},
    loss_scale::LossScale,
    messages::{Part, Saved, ShardReport},
    wire::{self, report_shard_request::Kind},
};

impl ShardReport {
    /// The request that hands it in.
    pub fn into_request(self, member: Member, era: Era) -> wire::ReportShardRequest {
        let kind = match self {
            ShardReport::Restored => Kind::Restored(wire::Restored {}),
            ShardReport::NotRestored(problem) => Kind::NotRestored(problem),
            ShardReport::Saved(saved) => Kind::Saved(saved.into()),
            ShardReport::NotSaved { commit, open, problem } => {
                let problem = problem.unwrap_or_default();
                Kind::NotSaved(wire::NotSaved { commit: commit.0, problem, open: open.0 })
            }
            ShardReport::NotCopied { server, commit, open } => {
                Kind::NotCopied(wire::NotCopied { server: server.0, commit: commit.0, open: open.0 })
            }
        };
        wire::ReportShardRequest { member: Some(member.into()), era: era.0, kind: Some(kind) }
    }
}

impl TryFrom<Option<Kind>> for ShardReport {
    type Error = WireError;

    fn try_from(kind: Option<Kind>) -> Result<Self> {
        Ok(match present("kind", kind)? {
            Kind::Restored(wire::Restored {}) => ShardReport::Restored,
            Kind::NotRestored(problem) => ShardReport::NotRestored(problem),
            Kind::Saved(saved) => ShardReport::Saved(saved.try_into()?),
            Kind::NotSaved(wire::NotSaved { commit, problem, open }) => ShardReport::NotSaved {
                commit: Step(commit),
                open: Step(open),
                problem: Some(problem).filter(|problem| !problem.is_empty()),
            },
            Kind::NotCopied(wire::NotCopied { server, commit, open }) => {
                ShardReport::NotCopied { server: ServerId(server), commit: Step(commit), open: Step(open) }
            }
        })
    }
}

impl From<Saved> for wire::Saved {
    fn from(saved: Saved) -> Self {
        let part = saved.part.map(|part| wire::CheckpointPart {
            file: part.file,
            first_block: part.first_block,
            blocks: part.blocks,
            bytes: part.bytes,
            sha256: part.sha256.into(),
        });
        let Saved { commit, loss_scale, clean, seconds, .. } = saved;
        wire::Saved { commit: commit.0, part, loss_scale, clean, seconds }
    }
}

impl TryFrom<wire::Saved> for Saved {
    type Error = WireError;

    fn try_from(saved: wire::Saved) -> Result<Self> {
        if !LossScale::fits(saved.loss_scale) {
            return Err(wrong("loss_scale", format!("is {}", saved.loss_scale)));
        }
        Ok(Saved {
            commit: Step(saved.commit),
            part: saved.part.map(TryInto::try_into).transpose()?,
            loss_scale: saved.loss_scale,
            clean: saved.clean,
            seconds: super::weight("seconds", saved.seconds)?,
        })
    }
}

impl TryFrom<wire::CheckpointPart> for Part {
    type Error = WireError;

    fn try_from(part: wire::CheckpointPart) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if part.file.is_empty() || part.file.starts_with('.') || !part.file.chars().all(plain) {
            return Err(wrong("file", format!("{:?} is no name of a file", part.file)));
        }
        if part.sha256.len() != 32 {
            return Err(wrong("sha256", format!("has {} bytes", part.sha256.len())));
        }
        if part.blocks == 0 || part.first_block.checked_add(part.blocks).is_none() {
            return Err(wrong("blocks", format!("is {}", part.blocks)));
        }
        Ok(Part {
            file: part.file,
            first_block: part.first_block,
            blocks: part.blocks,
            bytes: part.bytes,
            sha256: part.sha256.into(),
        })
    }
}
