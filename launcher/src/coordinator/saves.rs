//! Checkpoints in the making: which commits are kept, whose parts are written, and what was dealt out by then.

use std::collections::{BTreeMap, BTreeSet};

use convoy_proto::{
    clock::Clock,
    config::Config,
    ids::{ShardId, Step},
    messages::{Part, Saved},
};

use super::dealer::Cursor;

/// A checkpoint whose parts are all written: only its manifest is missing.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedSet {
    /// The commit that starts from it.
    pub commit: Step,
    /// The files, by their first block.
    pub parts: Vec<Part>,
    /// The loss scale then.
    pub loss_scale: f64,
    /// Clean steps in a row, which the loss scale goes by.
    pub clean: u64,
    /// How long the slowest part took.
    pub seconds: f64,
    /// Where the coordinator stood; nothing if it went by without a note, where it alone knows.
    pub standing: Option<Standing>,
}

/// What the coordinator knows of a commit that servers do not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Which slices were committed, where they are dealt out.
    pub cursor: Cursor,
    /// How many slices quorums were made without.
    pub left_out: u64,
}

/// The checkpoints in the making.
#[derive(Clone, Debug)]
pub struct Saves {
    shards: u32,
    clock: Clock,
    every: u64,
    /// Whether what was committed is known here only.
    is_chosen: bool,
    /// A commit that is kept beside those that are due.
    wanted: Option<Step>,
    parts: BTreeMap<Step, BTreeMap<ShardId, Saved>>,
    standings: BTreeMap<Step, Standing>,
    /// The newest commit of which all parts are written.
    saved: Step,
    /// Commits of which there will be no checkpoint, or no other, whatever is still told of them.
    over: BTreeSet<Step>,
}

impl Saves {
    /// None yet, in a run of so many steps.
    pub fn new(config: &Config, clock: Clock) -> Saves {
        Saves {
            shards: config.servers,
            clock,
            every: config.checkpoint.every.steps(),
            is_chosen: config.mode.is_chosen(),
            wanted: None,
            parts: BTreeMap::new(),
            standings: BTreeMap::new(),
            saved: Step(0),
            over: BTreeSet::new(),
        }
    }

    /// Whether a checkpoint needs the parameters that a commit starts from.
    pub fn is_kept(&self, commit: Step) -> bool {
        self.clock.is_due(commit, self.every) || self.wanted == Some(commit)
    }

    /// The commit that was asked for.
    pub fn wanted(&self) -> Option<Step> {
        self.wanted
    }

    /// The newest commit of which all parts are written.
    pub fn saved(&self) -> Step {
        self.saved
    }

    /// Asks for a commit; false if it is kept anyway.
    pub fn want(&mut self, commit: Step) -> bool {
        let is_new = !self.is_kept(commit);
        if is_new {
            self.wanted = Some(commit);
        }
        is_new
    }

    /// Notes where the coordinator stands when a commit that is kept is the next.
    pub fn note(&mut self, commit: Step, standing: Standing) {
        self.standings.insert(commit, standing);
    }

    /// Takes in a part; gives the checkpoint once all are there.
    pub fn add(&mut self, shard: ShardId, saved: Saved) -> Option<SavedSet> {
        let commit = saved.commit;
        if self.over.contains(&commit) {
            return None;
        }
        let parts = self.parts.entry(commit).or_default();
        parts.insert(shard, saved);
        if parts.len() < self.shards as usize {
            return None;
        }
        let parts = self.parts.remove(&commit)?;
        // Those before it will not be complete any more, or were.
        self.parts.retain(|other, _| *other > commit);
        let standing = self.standings.remove(&commit).or((!self.is_chosen).then(Standing::default));
        self.standings.retain(|other, _| *other > commit);
        self.over.retain(|other| *other > commit);
        self.over.insert(commit);
        // Nor will what was asked for before it.
        self.wanted = self.wanted.filter(|wanted| *wanted > commit);
        self.saved = self.saved.max(commit);
        let (first, seconds) = (parts.values().next()?.clone(), parts.values().map(|part| part.seconds));
        let seconds = seconds.fold(0.0, f64::max);
        let mut files: Vec<_> = parts.into_values().filter_map(|saved| saved.part).collect();
        files.sort_by_key(|part| part.first_block);
        let Saved { loss_scale, clean, .. } = first;
        Some(SavedSet { commit, parts: files, loss_scale, clean, seconds, standing })
    }

    /// A part will not be written: neither will the checkpoint.
    pub fn give_up(&mut self, commit: Step) {
        self.parts.remove(&commit);
        self.standings.remove(&commit);
        self.over.insert(commit);
        self.wanted = self.wanted.filter(|wanted| *wanted != commit);
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::config::layers::Layers;

    use super::*;

    fn saves(every: u64) -> Saves {
        let text = format!("servers = 2\n[checkpoint]\nevery = {every}");
        let config = Layers::new().toml("test", &text).unwrap().raw().unwrap().resolve(1).unwrap();
        Saves::new(&config, Clock::new(&config, 100))
    }

    fn saved(commit: u64, first_block: u64) -> Saved {
        let part = Part { file: format!("f{first_block}"), first_block, blocks: 1, bytes: 9, sha256: vec![0; 32] };
        let part = Some(part).filter(|_| first_block < 9);
        Saved { commit: Step(commit), part, loss_scale: 1.0, clean: 2, seconds: first_block as f64 }
    }

    #[test]
    fn a_checkpoint_is_complete_with_its_last_part() {
        let mut saves = saves(10);
        assert!(saves.is_kept(Step(20)) && !saves.is_kept(Step(25)) && !saves.is_kept(Step(0)));
        assert_eq!(saves.add(ShardId(1), saved(10, 4)), None);
        assert_eq!(saves.add(ShardId(1), saved(20, 4)), None);
        let set = saves.add(ShardId(0), saved(20, 0)).unwrap();
        let files: Vec<_> = set.parts.iter().map(|part| part.file.as_str()).collect();
        assert_eq!((set.commit, files, set.seconds), (Step(20), vec!["f0", "f4"], 4.0));
        assert_eq!(saves.add(ShardId(0), saved(10, 0)), None, "an older one is of no use");
        let set = [(0, 9), (1, 0)].map(|(shard, first)| saves.add(ShardId(shard), saved(30, first)));
        assert_eq!(set[1].as_ref().map(|set| set.parts.len()), Some(1), "a shard without blocks has no file");
        assert!(saves.want(Step(37)));
        let _ = [0, 1].map(|shard| saves.add(ShardId(shard), saved(40, u64::from(shard))));
        assert_eq!(saves.wanted(), None, "what a later one has overtaken is not waited for");
    }

    #[test]
    fn one_may_be_asked_for_and_given_up() {
        let mut saves = saves(0);
        assert!(saves.want(Step(7)) && saves.is_kept(Step(7)) && !saves.want(Step(7)));
        saves.note(Step(7), Standing { left_out: 3, ..Standing::default() });
        saves.give_up(Step(7));
        assert_eq!((saves.wanted(), saves.is_kept(Step(7))), (None, false));
        let late = [0, 1].map(|shard| saves.add(ShardId(shard), saved(7, u64::from(shard))));
        assert_eq!(late, [None, None], "what was given up stays so");
        assert!(saves.want(Step(9)));
        saves.note(Step(9), Standing { left_out: 4, ..Standing::default() });
        saves.add(ShardId(0), saved(9, 0));
        let set = saves.add(ShardId(1), saved(9, 4)).unwrap();
        assert_eq!((set.standing.map(|standing| standing.left_out), saves.wanted()), (Some(4), None));
    }
}
