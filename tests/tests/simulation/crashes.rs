//! Servers that die, and the checkpoints that the cluster goes back to.

use std::collections::BTreeSet;

use convoy_launcher::coordinator::core::Origin;
use convoy_proto::{
    ids::{Era, Role, Step},
    messages::{Phase, Report, Saved, ShardReport},
};
use convoy_server::core::{kept::Snapshot, shard::Shard};

use crate::{SLICES, STEPS, model::Message, model::weight, workers::Hand, world::World};

impl World {
    /// A snapshot is on disk, or will never be.
    pub fn save(&mut self, shard: usize, era: Era, snapshot: Snapshot) {
        let commit = snapshot.commit;
        let open = self.shards[shard].open_step();
        let report = if self.draw(6) == 0 {
            ShardReport::NotSaved { commit, open, problem: Some("the disk is full".into()) }
        } else {
            let (loss_scale, clean) = (snapshot.loss_scale.get(), snapshot.loss_scale.clean());
            self.disk.insert((commit, era, shard), snapshot);
            ShardReport::Saved(Saved { commit, part: None, loss_scale, clean, seconds: 0.0 })
        };
        let server = self.servers[&(shard as u32)];
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

    /// A server dies, and another takes its place.
    pub fn crash(&mut self) {
        let rank = self.draw(2) as u32;
        self.crashes += 1;
        self.cluster.lose_server(rank).unwrap();
        self.begin_era();
        self.join(Role::Server, rank);
        assert_eq!(self.cluster.phase(), Phase::Initialising);
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
        self.mail.extend((0..2).map(|shard| Message::Restore(shard, era)));
    }

    /// A server takes up an era, from the checkpoint that it begins with.
    pub fn restore(&mut self, shard: usize, era: Era) {
        if era != self.cluster.era() || self.shards[shard].era() == era {
            return;
        }
        let view = self.cluster.view();
        let Some(place) = view.restore else {
            self.shards[shard] = self.first_shard(shard);
            if self.shards.iter().all(|shard| shard.era() == era) {
                let initialiser = self.members[&view.initialiser.0];
                let events = self.cluster.report(initialiser, era, Report::Initialised).unwrap();
                self.note(events);
            }
            return;
        };
        let commits = self.begins.last().unwrap().1;
        let snapshot = self.disk[&(commits, Era(place.parse().unwrap()), shard)].clone();
        let core: Shard = self.new_shard(shard);
        core.restore(snapshot).unwrap();
        self.shards[shard] = core;
        let events = self.cluster.report_shard(self.servers[&(shard as u32)], era, ShardReport::Restored).unwrap();
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
