//! What every member knows of the cluster.

use std::collections::BTreeSet;

use crate::{
    ids::{Era, Generation, Incarnation, ServerId, ShardId, SliceId, Step, WorkerId},
    layout::Layout,
};

/// Where the cluster stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Members are still joining.
    Gathering,
    /// One worker sets the parameters of step 0, or servers take them from a checkpoint.
    Initialising,
    /// Steps are made.
    Training,
    /// Finish the steps that all have pushed, start no other.
    Stopping,
    /// Training is over.
    Ended,
}

/// Which commits a server takes part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Since {
    /// Those of the whole era.
    #[default]
    Beginning,
    /// This one and those after it. It takes its shard as it is then from another copy.
    Commit(Step),
    /// None yet: it came later, and waits to be told.
    Waits,
}

impl Since {
    /// Whether that includes a commit.
    pub fn includes(self, commit: Step) -> bool {
        match self {
            Since::Beginning => true,
            Since::Commit(since) => since <= commit,
            Since::Waits => false,
        }
    }
}

/// A server's place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerView {
    /// Where workers reach the process there; empty if nobody is there.
    pub address: String,
    /// Which process that is.
    pub incarnation: Incarnation,
    /// Which commits it takes part in.
    pub since: Since,
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
    /// How many shards there are.
    pub shards: u32,
    /// The servers.
    pub servers: Vec<ServerView>,
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
    /// The checkpoint that this era starts from; without one, a worker sets the initial parameters.
    pub restore: Option<String>,
    /// A commit that shards are to keep for a checkpoint, beside those that are due anyway.
    pub save_at: Option<Step>,
    /// The newest commit of which every shard's part of a checkpoint is written.
    pub saved: Step,
}

impl ClusterView {
    /// The slices that a worker owns.
    pub fn owned_by(&self, worker: WorkerId) -> BTreeSet<SliceId> {
        owned(&self.owners, worker)
    }

    /// Which server holds which shard.
    pub fn layout(&self) -> Layout {
        Layout::new(self.shards, (self.servers.len() as u32).checked_div(self.shards).unwrap_or(1))
    }

    /// A server's place, if a process is there.
    pub fn server(&self, server: ServerId) -> Option<&ServerView> {
        self.servers.get(server.index()).filter(|there| !there.address.is_empty())
    }

    /// The servers that hold a shard and take part in a commit, the one that leads first: that which was there first.
    pub fn copies(&self, shard: ShardId, commit: Step) -> Vec<ServerId> {
        let mut copies: Vec<_> = self
            .layout()
            .copies_of(shard)
            .filter_map(|server| Some((self.server(server)?.since, server)))
            .filter(|(since, _)| since.includes(commit))
            .collect();
        copies.sort_unstable();
        copies.into_iter().map(|(_, server)| server).collect()
    }

    /// Whether a server is the one of its shard's that writes checkpoints.
    pub fn leads(&self, server: ServerId) -> bool {
        self.copies(self.layout().shard_of(server), Step(u64::MAX)).first() == Some(&server)
    }
}

/// The slices that a worker owns, of owners by slice.
pub fn owned(owners: &[WorkerId], worker: WorkerId) -> BTreeSet<SliceId> {
    (0..).map(SliceId).zip(owners).filter(|(_, owner)| **owner == worker).map(|(slice, _)| slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(servers: &[Option<Since>]) -> ClusterView {
        let server = |since: &Option<Since>| {
            since.map_or_else(ServerView::default, |since| ServerView {
                address: "a".into(),
                since,
                ..Default::default()
            })
        };
        ClusterView {
            phase: Phase::Training,
            generation: Generation(1),
            era: Era(0),
            shards: 2,
            servers: servers.iter().map(server).collect(),
            owners: Vec::new(),
            initialiser: WorkerId(0),
            incarnations: Vec::new(),
            stop_at: None,
            reviewed: Step(0),
            restore: None,
            save_at: None,
            saved: Step(0),
        }
    }

    #[test]
    fn who_was_there_first_leads_and_who_came_later_takes_part_from_its_commit_on() {
        let first = Some(Since::Beginning);
        let all = view(&[first; 4]);
        assert_eq!(all.copies(ShardId(1), Step(0)), [ServerId(1), ServerId(3)]);
        assert!(all.leads(ServerId(0)) && !all.leads(ServerId(2)));
        let late = view(&[Some(Since::Commit(Step(5))), None, first, first]);
        assert_eq!(late.copies(ShardId(0), Step(4)), [ServerId(2)]);
        assert_eq!(late.copies(ShardId(0), Step(5)), [ServerId(2), ServerId(0)]);
        assert_eq!(late.copies(ShardId(1), Step(5)), [ServerId(3)]);
        assert!(late.leads(ServerId(2)) && !late.leads(ServerId(0)) && !late.leads(ServerId(1)));
        let waits = view(&[Some(Since::Waits), first, None, first]);
        assert_eq!(waits.copies(ShardId(0), Step(u64::MAX)), []);
    }
}
