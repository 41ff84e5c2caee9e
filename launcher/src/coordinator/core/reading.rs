//! What can be asked of the cluster beside its view: who is silent, who is waited for, how workers compute.

use std::collections::BTreeMap;

use convoy_proto::{
    ids::{Member, Role, WorkerId},
    messages::Phase,
};

use super::Cluster;

/// A worker that computes for less than this many leases is not taken to hang, however quick the others are.
const HANG_LEASES: u64 = 3;

impl Cluster {
    /// Members that have not been heard of for a lease, and for how long.
    pub fn silent(&self, now_ms: u64) -> Vec<(Member, u64)> {
        let alive = self.workers.iter().flatten().filter(|worker| worker.is_alive);
        let workers = alive.map(|worker| (worker.member, worker.heard_ms));
        let servers = self.servers.iter().flatten().map(|server| (server.member, server.heard_ms));
        let lease = u64::from(self.config.timeouts.lease_ms);
        let silence = workers.chain(servers).map(|(member, heard)| (member, now_ms.saturating_sub(heard)));
        silence.filter(|(_, silence)| *silence > lease).collect()
    }

    /// A worker that beats, but computes for much longer than a step takes, and how long that is, and how long it may take.
    pub fn hung(&self) -> Option<(Member, u64, u64)> {
        let floor = u64::from(self.config.timeouts.lease_ms) * HANG_LEASES;
        let usual = self.engine.deadlines().limit_ms()?;
        let warm = self.workers.iter().flatten().filter(|worker| worker.is_alive && worker.is_warm);
        let mut limits = warm.map(|worker| {
            let slices = self.slices_in_hand(WorkerId(worker.member.rank)) as u64;
            (worker.member, worker.computing_ms, floor.max(usual * slices))
        });
        limits.find(|(_, computing, limit)| computing > limit)
    }

    /// Who keeps the cluster from going on, in words.
    pub fn awaited(&self) -> String {
        let missing = |records: Vec<bool>, role: Role| {
            let ranks = records.into_iter().enumerate().filter(|(_, there)| !there).map(|(rank, _)| rank.to_string());
            let ranks: Vec<_> = ranks.collect();
            if ranks.is_empty() { None } else { Some(format!("{role} {}", ranks.join(", "))) }
        };
        let who: Vec<_> = match self.phase {
            Phase::Gathering => [
                missing(
                    (0..).zip(&self.servers).map(|(rank, s)| s.is_some() || self.abandoned.contains(&rank)).collect(),
                    Role::Server,
                ),
                missing(self.workers.iter().map(Option::is_some).collect(), Role::Worker),
            ]
            .into_iter()
            .flatten()
            .collect(),
            Phase::Initialising if self.origin.restore.is_some() => {
                let is_there = |(rank, server): (u32, &Option<_>)| server.is_none() || self.restored.contains(&rank);
                missing((0..).zip(&self.servers).map(is_there).collect(), Role::Server).into_iter().collect()
            }
            Phase::Initialising => vec![format!("worker {} to initialise", self.initialiser())],
            _ => {
                let mut who = self.engine.awaited();
                let (commits, clock) = (self.engine.commits(), self.engine.clock());
                let behind = self.workers.iter().flatten().filter(|worker| worker.is_alive && worker.at < commits);
                if !self.config.mode.is_dealt() {
                    who.extend(behind.map(|w| format!("{} at step {}", w.member, clock.steps_after(w.at))));
                }
                let awaited = self.workers.iter().flatten().filter(|worker| worker.is_awaited);
                who.extend(awaited.map(|worker| format!("worker {} to start again", worker.member.rank)));
                if who.is_empty() {
                    who.push(format!("every worker, all at step {}", self.steps()));
                }
                who
            }
        };
        who.join("; ")
    }

    /// By backend and class, how workers compute: one entry if all can compute the same bits.
    pub fn numeric_classes(&self) -> BTreeMap<String, Vec<u32>> {
        let mut classes: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for worker in self.workers.iter().flatten() {
            classes.entry(worker.offer.numeric_class.clone()).or_default().push(worker.member.rank);
        }
        classes
    }
}
