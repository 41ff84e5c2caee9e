//! Servers that hold the same shard: who leads, who comes, and what one takes from another.

use convoy_proto::{
    ids::{Role, ServerId, ShardId, Step},
    messages::{ClusterView, Phase, ShardReport, Since, Weights},
};
use convoy_server::core::{
    kept::{Formed, Snapshot},
    shard::Shard,
    versions::Lookup,
};

use crate::{
    SOME_DAY,
    model::{At, Message},
    world::World,
};

impl World {
    /// The servers that lead, by shard.
    pub fn leaders(&self) -> Vec<u32> {
        let view = self.cluster.view();
        let shards = (0..self.layout().shards()).map(ShardId);
        shards.map(|shard| view.copies(shard, SOME_DAY).first().expect("the parameters are whole").0).collect()
    }

    /// The shards that lead.
    pub fn leading(&self) -> impl Iterator<Item = &Shard> {
        self.leaders().into_iter().map(|rank| &self.cores[&rank])
    }

    /// The newest step that all servers have, or will have, that take part.
    pub fn common_step(&self) -> Step {
        let view = self.cluster.view();
        let steps = (0..self.layout().servers()).map(ServerId).filter_map(|server| {
            let there = view.server(server)?;
            match (self.cores.get(&server.0), there.since) {
                (_, Since::Waits) => None,
                (None, Since::Commit(commit)) => Some(commit),
                (core, _) => core.map(Shard::open_step),
            }
        });
        steps.min().expect("somebody takes part")
    }

    pub fn parameters(&self) -> Vec<f32> {
        let newest = |shard: &Shard| -> Vec<f32> {
            let version = |block| match shard.version(block, shard.open_step(), Weights::Trained).unwrap() {
                Lookup::Ready(version) => version,
                other => panic!("{other:?}"),
            };
            shard.all_blocks().flat_map(|block| version(block).to_vec()).collect()
        };
        for core in self.cores.values() {
            let leader = self.leading().find(|leader| leader.id() == core.id()).unwrap();
            assert_eq!(newest(core), newest(leader), "copies of shard {} are the same", core.id());
        }
        self.leading().flat_map(newest).collect()
    }

    /// Whether a process is there and holds a shard of an era.
    pub fn is_current(&self, (server, era): At) -> bool {
        let is_there = self.servers.get(&server.rank) == Some(&server);
        is_there && self.cores.get(&server.rank).is_some_and(|core| core.era() == era)
    }

    /// A commit was kept: for a checkpoint, which the server that leads writes, or for another server.
    pub fn formed(&mut self, (server, era): At, formed: Formed) {
        let snapshot = Snapshot::clone(&formed.snapshot);
        if formed.is_copied {
            self.ready.insert((server, snapshot.commit), snapshot.clone());
        }
        let leads = self.cluster.view().leads(ServerId(server.rank));
        if formed.is_saved && leads {
            self.mail.push(Message::Save((server, era), snapshot));
        } else if formed.is_saved {
            self.reserve.insert(server.rank, (era, snapshot));
        }
    }

    /// Who leads now writes what the one before it has left.
    pub fn take_over_reserve(&mut self) {
        let view = self.cluster.view();
        for rank in self.leaders() {
            let Some((era, snapshot)) = self.reserve.remove(&rank) else { continue };
            if era == view.era && snapshot.commit > view.saved {
                self.mail.push(Message::Save((self.servers[&rank], era), snapshot));
            }
        }
    }

    /// A server that leads keeps what others are to take from it.
    pub fn heed(&mut self, rank: u32, view: &ClusterView) {
        let (layout, at) = (self.layout(), (self.servers[&rank], view.era));
        if !view.leads(ServerId(rank)) || !self.is_current(at) {
            return;
        }
        for other in layout.copies_of(layout.shard_of(ServerId(rank))).filter(|other| other.0 != rank) {
            let Some(there) = view.server(other) else { continue };
            let Since::Commit(commit) = there.since else { continue };
            let its = self.servers.get(&other.0).filter(|member| member.incarnation == there.incarnation);
            let Some(member) = its.copied().filter(|member| self.asked.insert((at.0, *member, commit))) else {
                continue;
            };
            match self.cores[&rank].copy_at(commit, view.generation) {
                Ok(outcome) => self.follow(at, outcome),
                Err(open) => {
                    let server = ServerId(member.rank);
                    let report = ShardReport::NotCopied { server, commit, open };
                    let events = self.cluster.report_shard(at.0, at.1, report).unwrap();
                    self.note(events);
                }
            }
        }
    }

    /// A process takes the place of a server that died.
    pub fn come_back(&mut self) {
        let free = self.free_places();
        if !free.is_empty() && self.cluster.phase() == Phase::Training {
            let rank = free[self.draw(free.len() as u64) as usize];
            self.join(Role::Server, rank);
        }
    }

    /// Servers take their shards, if they are told when and another has it ready.
    pub fn fill(&mut self) {
        let view = self.cluster.view();
        let empty: Vec<u32> = self.servers.keys().copied().filter(|rank| !self.cores.contains_key(rank)).collect();
        for rank in empty {
            let Since::Commit(commit) = view.servers[rank as usize].since else { continue };
            let copies = view.copies(self.layout().shard_of(ServerId(rank)), commit);
            let Some(source) = copies.into_iter().find(|copy| copy.0 != rank) else { continue };
            let Some(snapshot) = self.ready.remove(&(self.servers[&source.0], commit)) else { continue };
            let core = self.new_shard(rank);
            core.restore(snapshot).unwrap();
            self.cores.insert(rank, core);
            self.copies += 1;
            let events = self.cluster.report_shard(self.servers[&rank], view.era, ShardReport::Restored).unwrap();
            self.note(events);
        }
    }
}
