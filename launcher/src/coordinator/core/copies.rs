//! Servers that hold the same shard: one may die, and another takes its place while training goes on.
//!
//! Who comes takes part from a commit on that is named in advance, so that every worker pushes to it from then on. Where
//! servers find out by themselves what is committed, that is one that nobody can have pushed to yet; the shard's other
//! copy sees to it that whoever does knows of the newcomer. Where slices are dealt out, none is dealt until all in hand are
//! committed.

use std::collections::BTreeMap;

use convoy_proto::{
    ids::{Member, ServerId, ShardId, Step},
    layout::Layout,
    messages::{Phase, Since, Verdict},
};

use super::{Cluster, Event};

/// How many commits ahead of the coordinator's news a server takes part, at first, and at most.
const AHEAD: u64 = 4;
const FAR_AHEAD: u64 = 1 << 16;

/// When servers that come are to take part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The commit that is known to be open.
    open: Step,
    ahead: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Plan { open: Step(0), ahead: AHEAD }
    }
}

impl Cluster {
    /// Which server holds which shard.
    pub fn layout(&self) -> Layout {
        Layout::of(&self.config)
    }

    /// Whether another server has all that this one has.
    pub fn has_copy(&self, server: ServerId) -> bool {
        let layout = self.layout();
        let mut others = layout.copies_of(layout.shard_of(server)).filter(|other| *other != server);
        let holds = |other: ServerId| self.servers[other.index()].as_ref().is_some_and(|record| record.holds());
        (Phase::Training..Phase::Ended).contains(&self.phase) && !self.is_broken && others.any(holds)
    }

    /// A server's process is gone; its place is free. If no other has its shard, the era is over.
    pub fn lose_server(&mut self, rank: u32) -> Option<Member> {
        let is_whole = self.has_copy(ServerId(rank));
        let member = self.servers.get_mut(rank as usize)?.take().map(|server| server.member);
        self.changes += 1;
        if !is_whole {
            self.is_broken = true;
            return member;
        }
        // Who was to take the shard from it takes it from another.
        let shard = self.layout().shard_of(ServerId(rank));
        for server in self.layout().copies_of(shard) {
            let record = self.servers[server.index()].as_mut().filter(|record| !record.holds());
            record.into_iter().for_each(|record| record.since = Since::Waits);
        }
        self.regroup();
        member
    }

    /// Who is counted on has changed: what was waited for may be there now.
    fn regroup(&mut self) {
        self.changes += 1;
        self.tell_engine();
        self.engine.settle();
        self.plan_copies();
    }

    /// Nobody takes a server's place any more.
    pub fn abandon_server(&mut self, rank: u32) {
        self.abandoned.insert(rank);
    }

    /// Whether all servers are there that are counted on.
    pub(super) fn has_servers(&self) -> bool {
        let is_there = |rank: u32| self.servers[rank as usize].is_some();
        let mut ranks = 0..self.layout().servers();
        let mut shards = (0..self.layout().shards()).map(ShardId);
        ranks.all(|rank| is_there(rank) || self.abandoned.contains(&rank))
            && shards.all(|shard| self.layout().copies_of(shard).any(|server| is_there(server.0)))
    }

    /// Has the engine count on the servers that there are.
    pub(super) fn tell_engine(&mut self) {
        let servers = self.servers.iter().flatten().map(|server| (ServerId(server.member.rank), server.since));
        let servers: BTreeMap<_, _> = servers.collect();
        self.engine.count_on(servers);
    }

    /// The verdict that a decision comes to without a server that is gone.
    pub fn settle_decision(&mut self) -> Option<Verdict> {
        self.engine.settle_decision()
    }

    /// Tells servers that wait from when on they take part.
    pub(super) fn plan_copies(&mut self) {
        let is_any = self.servers.iter().flatten().any(|server| server.since == Since::Waits);
        let is_dealt = self.config.mode.is_dealt();
        let commits = Step(self.engine.clock().commits());
        let open = self.engine.open().max(self.copying.open);
        let from = if is_dealt { self.engine.open() } else { Step(open.0.saturating_add(self.copying.ahead)) };
        let may_begin = is_any && self.phase == Phase::Training && !self.is_broken && from < commits;
        let is_ready = !is_dealt || self.engine.is_idle();
        self.engine.hold(may_begin && !is_ready);
        if !may_begin || !is_ready {
            return;
        }
        let waiting = self.servers.iter_mut().flatten().filter(|server| server.since == Since::Waits);
        waiting.for_each(|server| server.since = Since::Commit(from));
        self.changes += 1;
        self.tell_engine();
    }

    /// A server holds its shard, as another copy does.
    pub(super) fn copied(&mut self, member: Member) -> Vec<Event> {
        let Some(record) = self.servers[member.rank as usize].as_mut() else { return Vec::new() };
        let Since::Commit(since) = record.since else { return Vec::new() };
        record.is_filled = true;
        self.copying = Plan { ahead: AHEAD, ..self.copying };
        vec![Event::Copied(member, since)]
    }

    /// A server was told to take part from a commit on that came too soon: it is told another.
    pub(super) fn copied_too_late(&mut self, server: ServerId, commit: Step, open: Step) {
        let record = self.servers.get_mut(server.index()).and_then(Option::as_mut);
        let record = record.filter(|record| !record.holds() && record.since == Since::Commit(commit));
        let Some(record) = record else { return };
        record.since = Since::Waits;
        self.copying = Plan { open: self.copying.open.max(open), ahead: (self.copying.ahead * 2).min(FAR_AHEAD) };
        // Nobody is waited for that is not told another.
        self.regroup();
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::{
        config::{Config, layers::Layers},
        fates::Fate,
        ids::{Era, Role, ShardId, SliceId},
        messages::{JoinOffer, PushHeader, Report, ShardReport, SliceHeader, Staged},
    };

    use super::{
        super::tests::{offer, reference, step},
        *,
    };

    fn config(mode: &str) -> Config {
        let text = format!("workers = 2\nslices = 3\nname = 'r'\nreplicas = 1\n{mode}");
        Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap()
    }

    fn join(cluster: &mut Cluster, mode: &str, role: Role, rank: u32) -> Member {
        let offer = JoinOffer { config_fingerprint: config(mode).fingerprint(), ..offer(role, rank) };
        let incarnation = cluster.join(offer, 0).unwrap().0.incarnation;
        Member { role, rank, incarnation }
    }

    /// A run of one shard that two servers hold, and two workers.
    fn training(mode: &str) -> (Cluster, [Member; 2], [Member; 2]) {
        let mut cluster = Cluster::new(config(mode), reference());
        let servers = [0, 1].map(|rank| join(&mut cluster, mode, Role::Server, rank));
        let workers = [0, 1].map(|rank| join(&mut cluster, mode, Role::Worker, rank));
        cluster.report(workers[0], Era(0), Report::Initialised).unwrap();
        assert_eq!(cluster.phase(), Phase::Training);
        (cluster, servers, workers)
    }

    fn since(cluster: &Cluster, rank: usize) -> Since {
        cluster.view().servers[rank].since
    }

    #[test]
    fn who_comes_is_told_a_commit_ahead_and_a_later_one_if_that_is_too_soon() {
        let (mut cluster, [_, second], [worker, _]) = training("");
        cluster.report(worker, Era(0), step(0)).unwrap();
        let before = cluster.view();
        assert!(cluster.lose_server(0).is_some() && !cluster.is_broken());
        let after = cluster.view();
        assert!(after.generation > before.generation && after.era == before.era);
        assert_eq!(after.copies(ShardId(0), Step(1)), [ServerId(1)]);
        assert!(!cluster.has_copy(ServerId(1)), "it is the last one");
        let again = join(&mut cluster, "", Role::Server, 0);
        assert_eq!(since(&cluster, 0), Since::Commit(Step(5)));
        let late = ShardReport::NotCopied { server: ServerId(0), commit: Step(5), open: Step(1) };
        cluster.report_shard(second, Era(0), late.clone()).unwrap();
        assert_eq!(since(&cluster, 0), Since::Commit(Step(9)), "further ahead");
        cluster.report_shard(second, Era(0), late).unwrap();
        assert_eq!(since(&cluster, 0), Since::Commit(Step(9)), "once");
        assert!(!cluster.has_copy(ServerId(1)), "it is on its way");
        let events = cluster.report_shard(again, Era(0), ShardReport::Restored).unwrap();
        assert_eq!(events, [Event::Copied(again, Step(9))]);
        assert!(cluster.has_copy(ServerId(1)));
        cluster.lose_server(1);
        assert!(!cluster.is_broken());
        cluster.lose_server(0);
        assert!(cluster.is_broken(), "nobody has the shard any more");
        cluster.end_era();
        cluster.roll_back(super::super::Origin::default());
        join(&mut cluster, "", Role::Server, 1);
        assert_eq!((cluster.phase(), since(&cluster, 1)), (Phase::Gathering, Since::Beginning));
        cluster.abandon_server(0);
        cluster.gather();
        assert_eq!(cluster.phase(), Phase::Initialising, "one that nobody starts again is not waited for");
    }

    #[test]
    fn where_slices_are_dealt_out_who_comes_takes_part_when_none_is_in_hand() {
        use super::super::super::dealer::Deal;
        use convoy_proto::messages::Work;
        let mode = "mode = 'async'";
        let (mut cluster, _, [first, second]) = training(mode);
        assert!(matches!(cluster.deal(first, 0), Ok(Deal::Now(Work::Slice { .. }))));
        cluster.lose_server(1);
        join(&mut cluster, mode, Role::Server, 1);
        assert_eq!(since(&cluster, 1), Since::Waits);
        assert!(matches!(cluster.deal(second, 0), Ok(Deal::Wait(_))), "nothing is dealt");
        let before = cluster.view().generation;
        cluster.lose(first, false).unwrap();
        assert_eq!(since(&cluster, 1), Since::Commit(Step(0)), "who had it in hand is gone");
        assert!(cluster.view().generation > before);
        assert!(matches!(cluster.deal(second, 0), Ok(Deal::Now(Work::Slice { .. }))));
    }

    #[test]
    fn who_was_told_too_early_and_is_told_nothing_more_is_not_waited_for() {
        let mode = "consistency.quorum = 2";
        let (mut cluster, [_, second], [worker, _]) = training(mode);
        cluster.lose_server(0);
        join(&mut cluster, mode, Role::Server, 0);
        assert_eq!(since(&cluster, 0), Since::Commit(Step(4)));
        // So far on that another plan would be beyond the end.
        let late = ShardReport::NotCopied { server: ServerId(0), commit: Step(4), open: Step(7) };
        cluster.report_shard(second, Era(0), late).unwrap();
        assert_eq!(since(&cluster, 0), Since::Waits);
        for step in 0..6 {
            let slices =
                [0, 1].map(|slice| SliceHeader { slice: SliceId(slice), weight: 1.0, loss_sum: 1.0, finite: true });
            let header = PushHeader {
                member: worker,
                generation: cluster.view().generation,
                era: Era(0),
                step: Step(step),
                sequence: step,
                slices: slices.to_vec(),
                loss_scale: 1.0,
                dealt: None,
            };
            cluster.stage(second, Staged { server: ServerId(1), era: Era(0), header: header.clone() }).unwrap();
            assert!(matches!(cluster.engine().fate(&header), Fate::Decided(_)), "step {step}");
        }
    }

    #[test]
    fn too_near_the_end_nobody_takes_part_any_more() {
        let (mut cluster, _, workers) = training("");
        for number in 0..8 {
            workers.iter().for_each(|worker| drop(cluster.report(*worker, Era(0), step(number)).unwrap()));
        }
        cluster.lose_server(0);
        join(&mut cluster, "", Role::Server, 0);
        assert_eq!(since(&cluster, 0), Since::Waits);
    }
}
