//! Servers that die, and the checkpoints that the cluster goes back to.

use std::collections::BTreeSet;

use convoy_launcher::coordinator::core::Origin;
use convoy_proto::{
    ids::{Era, Role, ServerId, Step},
    messages::{Phase, Report, Saved, ShardReport, Since},
};
use convoy_server::core::kept::Snapshot;

use crate::{
    SLICES, STEPS,
    model::{At, Message, weight},
    workers::Hand,
    world::World,
};

impl World {
    /// A snapshot is on disk, or will never be.
    pub fn save(&mut self, (server, era): At, snapshot: Snapshot) {
        let commit = snapshot.commit;
        let (open, shard) = (self.cores[&server.rank].open_step(), self.cores[&server.rank].id());
        let report = if self.draw(6) == 0 {
            ShardReport::NotSaved { commit, open, problem: Some("the disk is full".into()) }
        } else {
            let (loss_scale, clean) = (snapshot.loss_scale.get(), snapshot.loss_scale.clean());
            self.disk.insert((commit, era, shard), snapshot);
            ShardReport::Saved(Saved { commit, part: None, loss_scale, clean, seconds: 0.0 })
        };
        let events = self.cluster.report_shard(server, era, report).unwrap();
        self.note(events);
    }

    /// Checkpoints whose parts are on disk are whole when the coordinator has told of the steps before them.
    pub fn complete(&mut self) {
        let told = self.cluster.engine().commits();
        for set in self.written.extract_if(.., |set| set.commit <= told) {
            let restore = Some(self.cluster.era().0.to_string());
            let origin = Origin { restore, commits: set.commit, standing: set.standing.expect("a standing") };
            self.checkpoints.insert(set.commit, origin);
        }
    }

    /// A server dies: another has its shard, or the run goes back to a checkpoint.
    pub fn crash(&mut self) {
        let ranks: Vec<u32> = self.servers.keys().copied().collect();
        let rank = ranks[self.draw(ranks.len() as u64) as usize];
        let has_copy = self.cluster.has_copy(ServerId(rank));
        self.crashes += 1;
        self.servers.remove(&rank);
        self.cores.remove(&rank);
        self.cluster.lose_server(rank).unwrap();
        assert_eq!(self.cluster.is_broken(), !has_copy);
        if has_copy {
            self.takeovers += 1;
            self.take_over_reserve();
        } else {
            self.begin_era();
        }
    }

    /// Servers' places that nobody has.
    pub fn free_places(&self) -> Vec<u32> {
        (0..self.layout().servers()).filter(|rank| !self.servers.contains_key(rank)).collect()
    }

    /// Back to the newest checkpoint, under a new era.
    pub fn begin_era(&mut self) {
        self.written.clear();
        let origin = self.checkpoints.values().next_back().cloned().unwrap_or_default();
        let commits = origin.commits;
        self.cluster.end_era();
        let event = self.cluster.roll_back(origin);
        let era = self.cluster.era();
        self.note(event.into_iter().collect());
        self.begins.push((era, commits));
        self.log.retain(|step, _| *step < commits);
        let step = self.cluster.engine().clock().steps_after(commits);
        self.told.retain(|told| *told <= step);
        self.scores.retain(|(scored, _)| *scored < step);
        self.hands.values_mut().for_each(|hand| *hand = Hand::at(commits));
        self.free_places().into_iter().for_each(|rank| self.join(Role::Server, rank));
        assert_eq!(self.cluster.phase(), Phase::Initialising);
        self.mail.extend(self.servers.keys().map(|rank| Message::Restore(*rank, era)));
    }

    /// A server takes up an era, from the checkpoint that it begins with.
    pub fn restore(&mut self, rank: u32, era: Era) {
        let is_there = self.cores.get(&rank).is_some_and(|core| core.era() == era);
        if era != self.cluster.era() || is_there || !self.servers.contains_key(&rank) {
            return;
        }
        let view = self.cluster.view();
        if view.servers[rank as usize].since != Since::Beginning {
            // It came later, and takes its shard from another.
            return;
        }
        let Some(place) = view.restore else {
            let core = self.first_shard(rank);
            self.cores.insert(rank, core);
            let has_core = |rank: &u32| self.cores.get(rank).is_some_and(|core| core.era() == era);
            if self.servers.keys().all(has_core) {
                let initialiser = self.members[&view.initialiser.0];
                let events = self.cluster.report(initialiser, era, Report::Initialised).unwrap();
                self.note(events);
            }
            return;
        };
        let commits = self.begins.last().unwrap().1;
        let core = self.new_shard(rank);
        core.restore(self.disk[&(commits, Era(place.parse().unwrap()), core.id())].clone()).unwrap();
        self.cores.insert(rank, core);
        let events = self.cluster.report_shard(self.servers[&rank], era, ShardReport::Restored).unwrap();
        self.note(events);
    }

    /// What the commits that count used of the data: `(step, slice)`, each once.
    pub fn check_used(&self) {
        let is_void = |era: Era, commit: Step| self.begins.iter().any(|(later, from)| *later > era && *from <= commit);
        let counted = self.used.iter().filter(|(era, used)| !is_void(*era, used.commit));
        let mut commits = BTreeSet::new();
        let mut places = BTreeSet::new();
        for (_, used) in counted {
            assert!(commits.insert(used.commit), "commit {} counts twice", used.commit);
            for slice in &used.slices {
                assert!(places.insert((used.step, slice.0)), "slice {slice} of step {} is used twice", used.step);
            }
        }
        assert_eq!(commits.len(), self.log.len(), "every commit is in the ledger");
        if !self.config.mode.is_chosen() || self.config.mode.is_dealt() {
            let all = (0..STEPS).flat_map(|step| (0..SLICES).map(move |slice| (step, slice)));
            let due: BTreeSet<_> = all.filter(|place| weight(*place) > 0.0).collect();
            assert_eq!(places, due, "every slice is used once");
        }
    }
}
