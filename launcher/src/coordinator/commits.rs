//! What is committed, where servers cannot find it out by themselves: a quorum's slices, or the order of single pushes.
//!
//! A push counts when every server has staged it. So a choice never names what a server does not have, and a worker that
//! dies in the middle of a push leaves nothing half done; nor does a server, if another holds its shard.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use convoy_proto::{
    config::{Config, Mode},
    fates::{Fate, Fates},
    ids::{Incarnation, ServerId, SliceId, Step, WorkerId},
    layout::Layout,
    messages::{PushHeader, PushId, Since, SliceHeader, Staged, Terms, Verdict},
    policy::{self, Policy, Tally},
    schedule::{CommitRate, Horizon},
    tree::SliceTree,
};

/// A push that cannot be what it says.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum CommitError {
    /// Servers find out by themselves what is committed.
    #[error("in this run servers need nobody to choose")]
    Needless,
    /// There is no such server.
    #[error("there is no server {0}")]
    UnknownServer(ServerId),
    /// Two servers have different pushes of one name.
    #[error("server {0} has another push {1} than the servers before it")]
    Disagreement(ServerId, PushId),
}

#[derive(Clone, Debug)]
struct Entry {
    header: PushHeader,
    servers: BTreeSet<ServerId>,
}

/// The pushes that are not decided, and the last that are.
#[derive(Clone, Debug)]
pub struct Commits {
    mode: Mode,
    policy: Arc<dyn Policy>,
    tree: SliceTree,
    /// The servers that are counted on, each from a commit on.
    servers: BTreeMap<ServerId, Since>,
    rate: CommitRate,
    open: Step,
    staged: BTreeMap<PushId, Entry>,
    fates: Fates,
    /// The last two steps' verdicts, of a quorum.
    closed: BTreeMap<Step, Verdict>,
    /// Slices that were left out of a quorum.
    left_out: u64,
}

impl Commits {
    /// Nothing is committed yet.
    pub fn new(config: &Config, horizon: Horizon) -> Commits {
        Commits {
            mode: config.mode,
            policy: policy::of(config.mode).into(),
            tree: SliceTree::new(if config.mode.is_dealt() { 1 } else { config.slices }),
            servers: (0..Layout::of(config).servers()).map(|rank| (ServerId(rank), Since::Beginning)).collect(),
            rate: CommitRate::new(config, horizon),
            open: Step(0),
            staged: BTreeMap::new(),
            fates: Fates::default(),
            closed: BTreeMap::new(),
            left_out: 0,
        }
    }

    /// Goes on after so many commits.
    pub fn resume(&mut self, commits: Step, left_out: u64) {
        (self.open, self.left_out) = (commits, left_out);
    }

    /// Counts on these servers, each from its commit on.
    pub fn count_on(&mut self, servers: BTreeMap<ServerId, Since>) {
        self.servers = servers;
    }

    /// The servers that have to stage a push.
    fn needed(&self, header: &PushHeader) -> impl Iterator<Item = ServerId> {
        // Where slices are dealt out, a server takes part in all that are in anybody's hand, or in none.
        let includes = |since: Since| since.includes(if self.mode.is_dealt() { Step(u64::MAX) } else { header.step });
        self.servers.iter().filter(move |(_, since)| includes(**since)).map(|(server, _)| *server)
    }

    fn is_complete(&self, entry: &Entry) -> bool {
        self.needed(&entry.header).all(|server| entry.servers.contains(&server))
    }

    /// The first step that nothing has been chosen for.
    pub fn open(&self) -> Step {
        self.open
    }

    /// How many slices quorums were made without.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Takes note that a server has staged a push.
    ///
    /// # Errors
    /// A push that does not belong; nothing is noted.
    pub fn add(&mut self, staged: Staged) -> Result<(), CommitError> {
        let (server, header) = (staged.server, staged.header);
        let id = header.id();
        if !self.mode.is_chosen() {
            return Err(CommitError::Needless);
        }
        if !self.servers.contains_key(&server) {
            return Err(CommitError::UnknownServer(server));
        }
        if self.fate(&header) != Fate::Open {
            return Ok(());
        }
        let entry = self.staged.entry(id).or_insert_with(|| Entry { header: header.clone(), servers: BTreeSet::new() });
        if (entry.header.step, &entry.header.slices) != (header.step, &header.slices) {
            return Err(CommitError::Disagreement(server, id));
        }
        entry.servers.insert(server);
        Ok(())
    }

    /// Commits what may be committed now, one at a time.
    pub fn settle(&mut self) -> Option<Verdict> {
        let verdict = self.choose()?;
        self.open = verdict.step.next();
        Some(verdict)
    }

    fn choose(&mut self) -> Option<Verdict> {
        let complete = self.staged.iter().filter(|(_, entry)| self.is_complete(entry));
        if self.mode.is_dealt() {
            let (id, header) = complete.map(|(id, entry)| (*id, entry.header.clone())).next()?;
            return Some(self.commit(id, &header));
        }
        let ours: Vec<_> = complete.filter(|(_, entry)| entry.header.step == self.open).collect();
        let mut headers: BTreeMap<SliceId, SliceHeader> = BTreeMap::new();
        for (_, entry) in &ours {
            headers.extend(entry.header.slices.iter().map(|header| (header.slice, *header)));
        }
        let tally = Tally { arrived: headers.len() as u32, slices: self.tree.slices() };
        if ours.is_empty() || !self.policy.may_commit(tally) {
            return None;
        }
        Some(self.close(&headers))
    }

    /// Commits one push.
    fn commit(&mut self, id: PushId, header: &PushHeader) -> Verdict {
        let staleness = self.open.0.saturating_sub(header.step.0);
        let learning_rate = self.rate.of(self.open) * self.policy.rate_factor(staleness);
        let terms = Terms { learning_rate, loss_scale: header.loss_scale };
        let verdict = Verdict::from_headers(self.open, self.tree, &header.slices, terms);
        let verdict = Verdict { push: Some(id), staleness, ..verdict };
        self.end(id, Fate::Decided(verdict.clone()));
        verdict
    }

    /// Closes the open step with the slices that are in.
    fn close(&mut self, headers: &BTreeMap<SliceId, SliceHeader>) -> Verdict {
        let missing = |slice| SliceHeader { slice, weight: 0.0, loss_sum: 0.0, finite: true };
        let all = self.tree.root().slices();
        let all: Vec<_> = all.map(|slice| headers.get(&slice).copied().unwrap_or_else(|| missing(slice))).collect();
        let terms = Terms { learning_rate: self.rate.of(self.open), loss_scale: 1.0 };
        let verdict = Verdict::from_headers(self.open, self.tree, &all, terms);
        self.left_out += u64::from(self.tree.slices()) - headers.len() as u64;
        let step = self.open;
        self.staged.retain(|_, entry| entry.header.step > step);
        self.closed.insert(step, verdict.clone());
        self.closed.retain(|closed, _| closed.next() >= step);
        verdict
    }

    /// What becomes of a push.
    pub fn fate(&self, header: &PushHeader) -> Fate {
        if !self.mode.is_dealt() {
            return match self.closed.get(&header.step) {
                Some(verdict) => Fate::Decided(verdict.clone()),
                None if header.step < self.open => Fate::Dropped,
                None => Fate::Open,
            };
        }
        self.fates.of(header.id())
    }

    /// A worker's process is gone: what it has pushed in part is dropped.
    pub fn lose(&mut self, worker: WorkerId, incarnation: Incarnation) {
        let its = |id: &PushId| id.worker == worker && id.incarnation == incarnation;
        let gone: Vec<_> = self.staged.keys().copied().filter(its).collect();
        for id in gone {
            self.end(id, Fate::Dropped);
        }
    }

    /// Drops a push that nobody was to make, unless it is over.
    pub fn refuse(&mut self, header: &PushHeader) {
        if self.fate(header) == Fate::Open {
            self.end(header.id(), Fate::Dropped);
        }
    }

    fn end(&mut self, id: PushId, fate: Fate) {
        self.staged.remove(&id);
        self.fates.end(id, fate);
    }

    /// Servers that a push waits for which others have staged, in words.
    pub fn awaited(&self) -> Vec<String> {
        let missing = |entry: &Entry| self.needed(&entry.header).find(|server| !entry.servers.contains(server));
        let awaited = self.staged.iter().filter_map(|(id, entry)| Some((id, missing(entry)?)));
        awaited.map(|(id, server)| format!("server {server} to stage push {id}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::{
        config::layers::Layers,
        ids::{Era, Generation, Member, Role},
    };

    use super::*;

    fn commits(mode: &str) -> Commits {
        let text = format!("workers = 4\nservers = 2\n{mode}");
        let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        Commits::new(&config, Horizon { steps: 10, steps_per_epoch: 5 })
    }

    fn staged(shard: u32, rank: u32, (sequence, step): (u64, u64), slice: u32) -> Staged {
        let member = Member { role: Role::Worker, rank, incarnation: Incarnation(u64::from(rank) + 1) };
        let slices = vec![SliceHeader { slice: SliceId(slice), weight: 2.0, loss_sum: 1.0, finite: true }];
        let (generation, era, step) = (Generation(1), Era(0), Step(step));
        let header = PushHeader { member, generation, era, step, sequence, slices, loss_scale: 1.0, dealt: None };
        Staged { server: ServerId(shard), era, header }
    }

    /// A word for each event: who staged what where, and what was committed then.
    fn play(commits: &mut Commits, events: &[(u32, u32, (u64, u64), u32)]) -> String {
        let mut lines = Vec::new();
        for (shard, rank, (sequence, step), slice) in events {
            commits.add(staged(*shard, *rank, (*sequence, *step), *slice)).unwrap();
            let made = std::iter::from_fn(|| commits.settle()).map(|verdict| {
                let slices: Vec<_> = verdict.slices.iter().map(ToString::to_string).collect();
                let push = verdict.push.map(|push| format!(" push {push} staleness {}", verdict.staleness));
                format!("commit {} [{}]{}", verdict.step, slices.join(" "), push.unwrap_or_default())
            });
            let made: Vec<_> = made.collect();
            lines.push(if made.is_empty() { "-".to_string() } else { made.join(", ") });
        }
        lines.join("\n")
    }

    /// Golden: three of four slices make a commit once both servers have them; the late fourth is left out.
    #[test]
    fn a_quorum() {
        let mut commits = commits("[consistency]\nquorum = 3");
        let events = [
            (0, 0, (0, 0), 0),
            (0, 1, (0, 0), 1),
            (0, 3, (0, 0), 3),
            (1, 3, (0, 0), 3),
            (1, 2, (0, 0), 2),
            (1, 1, (0, 0), 1),
            (1, 0, (0, 0), 0),
            (0, 2, (0, 0), 2),
        ];
        let golden = "-\n-\n-\n-\n-\n-\ncommit 0 [0 1 3]\n-";
        assert_eq!(play(&mut commits, &events), golden);
        assert_eq!((commits.open(), commits.left_out()), (Step(1), 1));
        let late = staged(0, 2, (0, 0), 2).header;
        assert!(matches!(commits.fate(&late), Fate::Decided(verdict) if verdict.slices.len() == 3));
    }

    /// Golden: each push is a commit when both servers have it, in that order; its staleness counts those between.
    #[test]
    fn single_pushes() {
        let mut commits = commits("mode = 'async'\n[consistency]\nstaleness_lr = true");
        let events = [
            (0, 0, (1, 0), 0),
            (1, 1, (2, 0), 0),
            (0, 1, (2, 0), 0),
            (1, 2, (3, 0), 0),
            (1, 0, (1, 0), 0),
            (0, 2, (3, 0), 0),
            (0, 1, (4, 1), 0),
            (1, 1, (4, 1), 0),
        ];
        let golden = "-\n-\ncommit 0 [0] push 2 of worker 1 staleness 0\n-\ncommit 1 [0] push 1 of worker 0 staleness 1\n\
            commit 2 [0] push 3 of worker 2 staleness 2\n-\ncommit 3 [0] push 4 of worker 1 staleness 2";
        assert_eq!(play(&mut commits, &events), golden);
        let Fate::Decided(verdict) = commits.fate(&staged(0, 2, (3, 0), 0).header) else { panic!("it is committed") };
        assert!((verdict.learning_rate - 0.0005).abs() < 1e-12, "half of the rate at a staleness of two");
    }

    #[test]
    fn a_death_drops_what_not_every_server_has() {
        let mut commits = commits("mode = 'async'");
        commits.add(staged(0, 1, (5, 0), 0)).unwrap();
        commits.lose(WorkerId(1), Incarnation(2));
        assert_eq!(commits.fate(&staged(0, 1, (5, 0), 0).header), Fate::Dropped);
        commits.add(staged(1, 1, (5, 0), 0)).unwrap();
        assert_eq!(commits.settle(), None);
    }

    #[test]
    fn a_server_is_counted_on_from_its_commit_on_and_not_when_it_is_gone() {
        let mut quorum = commits("[consistency]\nquorum = 1");
        let servers = |since| BTreeMap::from([(ServerId(0), Since::Beginning), (ServerId(1), since)]);
        quorum.count_on(servers(Since::Commit(Step(1))));
        assert_eq!(
            play(&mut quorum, &[(0, 0, (0, 0), 0), (0, 0, (1, 1), 0), (1, 0, (1, 1), 0)]),
            "commit 0 [0]\n-\ncommit 1 [0]"
        );
        let mut dealt = commits("mode = 'async'");
        dealt.count_on(servers(Since::Commit(Step(5))));
        assert_eq!(play(&mut dealt, &[(0, 0, (1, 0), 0)]), "-", "whatever parameters it was computed with");
        dealt.count_on(BTreeMap::from([(ServerId(0), Since::Beginning)]));
        assert_eq!(dealt.settle().and_then(|verdict| verdict.push).map(|push| push.sequence), Some(1));
    }

    #[test]
    fn what_does_not_belong_is_refused() {
        assert_eq!(super::tests::commits("").add(staged(0, 0, (0, 0), 0)), Err(CommitError::Needless));
        let mut commits = commits("mode = 'async'");
        assert_eq!(commits.add(staged(2, 0, (0, 0), 0)), Err(CommitError::UnknownServer(ServerId(2))));
        commits.add(staged(0, 0, (1, 0), 0)).unwrap();
        let other = commits.add(staged(1, 0, (1, 0), 1));
        assert!(matches!(other, Err(CommitError::Disagreement(ServerId(1), _))), "{other:?}");
    }
}
