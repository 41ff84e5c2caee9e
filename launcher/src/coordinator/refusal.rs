//! Why the coordinator does not admit a member, or does not listen to it. A refusal changes nothing.

use convoy_proto::ids::{Era, Member, NodeId, Role};

use super::{commits::CommitError, decision::DecisionError};

/// Why a member is not admitted or not listened to.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum Refusal {
    /// Something that must be the same on both sides is not.
    #[error("{member}: its {what} is {theirs}, the cluster's is {ours}")]
    Different {
        /// Who.
        member: String,
        /// What differs.
        what: &'static str,
        /// The member's.
        theirs: String,
        /// The cluster's.
        ours: String,
    },
    /// A rank that the run does not have.
    #[error("there is no place for {role} {rank}: the run has {places}, counted from 0")]
    NoPlace {
        /// The role.
        role: Role,
        /// The rank.
        rank: u32,
        /// How many places the role has.
        places: u32,
    },
    /// A rank that somebody has.
    #[error("{0} is there already")]
    Taken(String),
    /// A caller that is not a current member.
    #[error("{0} is not a current member")]
    Stranger(Member),
    /// A machine that has not joined, or was lost.
    #[error("node {0} is not a node of this run, or not any more")]
    UnknownNode(NodeId),
    /// Another number of workers than there can be, or not now.
    #[error("{0}")]
    Scale(String),
    /// It belongs to another era.
    #[error("era {theirs} is over, this is era {ours}")]
    Era {
        /// The cluster's.
        ours: Era,
        /// The caller's.
        theirs: Era,
    },
    /// A report that does not fit where the cluster stands.
    #[error("{member} reports {what}, which is not its to report now")]
    OutOfPlace {
        /// Who.
        member: Member,
        /// What.
        what: &'static str,
    },
    /// A part of a decision that does not belong.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// A push that does not belong.
    #[error(transparent)]
    Commit(#[from] CommitError),
}
