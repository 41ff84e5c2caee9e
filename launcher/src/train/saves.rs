//! Checkpoints on the way: when they are due, and the manifest that completes each.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use convoy_proto::{config::Every, ids::Step, messages::Phase};
use convoy_server::checkpoint::{self, CheckpointManifest, manifest::FORMAT};
use serde_json::json;

use super::{
    Session, TICK,
    keeper::{Completion, Done, Job},
    signals::Signals,
};
use crate::{
    checkpoints::{self, Cut},
    coordinator::{core::SaveEvent, saves::SavedSet},
    outcome::Failure,
};

/// How far ahead of the coordinator's news a commit is asked for at first, in steps.
const AHEAD: u64 = 2;
/// How long the end of a run waits for where checkpoints are kept.
const TIDY_WITHIN: Duration = Duration::from_secs(30);
/// How far at most.
const FAR_AHEAD: u64 = 1 << 16;

/// What the launcher knows of checkpoints in the making.
#[derive(Debug)]
pub(super) struct Saving {
    /// Where the run stood at commits that are kept.
    cuts: BTreeMap<Step, Cut>,
    /// Checkpoints that lack nothing but their manifest.
    written: Vec<SavedSet>,
    /// How many commits have been looked at.
    pub(super) seen: Step,
    /// When one was asked for last.
    asked: Instant,
    ahead: u64,
    /// The newest checkpoint, and the last commit of which there is none.
    pub(super) newest: Option<Step>,
    failed: Option<Step>,
}

impl Saving {
    /// Nothing yet, after so many commits; `newest` is a checkpoint that there is.
    pub fn new(commits: Step, newest: Option<Step>) -> Saving {
        Saving {
            cuts: BTreeMap::new(),
            written: Vec::new(),
            seen: commits,
            asked: Instant::now(),
            ahead: AHEAD,
            newest,
            failed: None,
        }
    }

    /// Another era goes on after so many commits; `newest` is a checkpoint that there is.
    pub fn begin_anew(&mut self, commits: Step, newest: Option<Step>) {
        *self = Saving { ahead: self.ahead, ..Saving::new(commits, newest) };
    }
}

impl Session {
    /// Where the run stands.
    fn cut(&self) -> Cut {
        let cluster = self.service.cluster();
        let workers = cluster.workers().iter().flatten().map(|worker| (worker.member.rank, worker.totals));
        let mut notes = self.notes.clone();
        // What is no number cannot be written.
        for score in [&mut notes.eval, &mut notes.ema_eval] {
            *score = score.filter(|score| score.loss.is_finite());
        }
        Cut { notes, review: self.review, workers: workers.collect(), ..Cut::default() }
    }

    /// Takes note of where the run stands after so many commits, if a checkpoint needs it.
    pub(super) fn note_cut(&mut self, commits: Step) {
        self.saving.seen = commits;
        if self.service.cluster().is_kept(commits) {
            let cut = self.cut();
            self.saving.cuts.insert(commits, cut);
        }
        self.complete_saves();
    }

    /// Asks for a checkpoint if one is due by time.
    pub(super) fn check_saves(&mut self) {
        let Every::Millis(ms) = self.prepared.config.checkpoint.every else { return };
        if self.saving.asked.elapsed() >= Duration::from_millis(ms) {
            self.save_soon(None);
        }
    }

    /// Asks for a checkpoint soon, after the commit that is open somewhere, or that the coordinator knows of.
    pub(super) fn save_soon(&mut self, open: Option<Step>) {
        self.saving.asked = Instant::now();
        let commit = {
            let cluster = self.service.cluster();
            let (engine, clock) = (cluster.engine(), cluster.engine().clock());
            let open = engine.open().max(open.unwrap_or(Step(0))).0;
            let commit = open.saturating_add(self.saving.ahead * clock.commits_a_step());
            let commit = commit.next_multiple_of(clock.commits_a_step());
            let is_wanted = cluster.phase() == Phase::Training && engine.saves().wanted().is_none();
            // What the end is will be saved then.
            Some(Step(commit)).filter(|commit| is_wanted && commit.0 < clock.commits())
        };
        if let Some(commit) = commit {
            self.service.save_at(commit);
        }
    }

    /// Follows what becomes of a checkpoint.
    pub(super) fn follow_save(&mut self, event: SaveEvent) {
        match event {
            SaveEvent::Written(set) => {
                self.saving.written.push(set);
                self.complete_saves();
            }
            SaveEvent::TooLate(commit, open) => {
                if self.ended.is_some() || self.stopping.is_some() {
                    self.saving.failed = Some(commit);
                    return;
                }
                self.saving.ahead = (self.saving.ahead * 2).min(FAR_AHEAD);
                self.save_soon(Some(open));
            }
            SaveEvent::Failed(member, commit, problem) => self.save_failed(commit, &format!("{member}: {problem}")),
        }
    }

    fn save_failed(&mut self, commit: Step, problem: &str) {
        let clock = self.service.cluster().engine().clock();
        let step = clock.steps_after(commit);
        // If too much waits already, what is left of it goes at the end.
        let _ = self.keeper.ask(Job::Discard(checkpoint::name_of(clock, commit)));
        self.progress.say(&format!("no checkpoint of step {step}, training goes on: {problem}"));
        self.metric(json!({ "event": "checkpoint_failed", "step": step, "problem": problem }));
        self.notes.failed_checkpoints += 1;
        self.saving.failed = Some(commit);
    }

    /// Completes checkpoints whose commits have been looked at.
    fn complete_saves(&mut self) {
        let is_seen = |set: &SavedSet| set.commit <= self.saving.seen;
        let (seen, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.saving.written).into_iter().partition(is_seen);
        self.saving.written = rest;
        for set in seen {
            let cut = self.saving.cuts.remove(&set.commit);
            let cut = cut.unwrap_or_else(|| self.cut());
            self.saving.cuts.retain(|commit, _| *commit > set.commit);
            self.complete(set, cut);
        }
    }

    fn complete(&mut self, set: SavedSet, cut: Cut) {
        let SavedSet { commit, parts, loss_scale, clean, seconds, standing } = set;
        let (clock, era) = {
            let cluster = self.service.cluster();
            (cluster.engine().clock(), cluster.era())
        };
        let Some(standing) = standing else {
            return self.save_failed(commit, "it was asked for too late to know what it holds");
        };
        let cut = Cut { cursor: standing.cursor, dropped_slices: standing.left_out, ..cut };
        let config = &self.prepared.config;
        let manifest = CheckpointManifest {
            format: FORMAT,
            run: config.name.clone(),
            model: checkpoints::model_hash(&self.prepared.manifest),
            step: clock.steps_after(commit),
            commits: commit.0,
            era: era.0,
            loss_scale,
            clean_steps: clean,
            files: parts.into_iter().map(Into::into).collect(),
            progress: json!(cut),
        };
        let best = if config.keep_best { self.review.best().map(|best| best.step) } else { None };
        let keep = (config.checkpoint.keep_last, best);
        let name = checkpoint::name_of(clock, commit);
        let completion = Completion { commit, name, manifest, keep, seconds };
        if !self.keeper.ask(Job::Complete(Box::new(completion))) {
            self.save_failed(commit, "earlier ones are still on their way");
        }
    }

    /// Takes note of what has come of a checkpoint at its place.
    pub(super) fn kept(&mut self, done: Done) {
        let Done::Completed(completion, written) = done else { return };
        let Completion { commit, name, manifest, seconds, .. } = *completion;
        if let Err(problem) = written {
            if Some(commit) < self.saving.newest {
                // A newer one was whole before it, and with that it was one too many.
                return tracing::debug!("the checkpoint of commit {commit} came too late: {problem}");
            }
            return self.save_failed(commit, &problem);
        }
        self.bad_checkpoints.remove(&name);
        self.saving.newest = self.saving.newest.max(Some(commit));
        self.notes.checkpoints += 1;
        self.metric(
            json!({ "event": "checkpoint", "step": manifest.step, "seconds": seconds, "bytes": manifest.bytes() }),
        );
    }

    /// Waits for what checkpoints on their way still ask of their place.
    pub(super) fn settle_saves(&mut self) {
        while !self.keeper.is_idle() {
            let done = tokio::task::block_in_place(|| self.keeper.drain());
            done.into_iter().for_each(|done| self.kept(done));
        }
    }

    /// The same at the end of a run, but not for ever; then removes what will not be complete.
    pub(super) async fn tidy_saves(&mut self) {
        let deadline = tokio::time::Instant::now() + TIDY_WITHIN;
        while !self.keeper.is_idle() {
            match tokio::time::timeout_at(deadline, self.keeper.next()).await {
                Ok(done) => self.kept(done),
                Err(_) => return tracing::warn!("{} does not answer in time", self.checkpoints.place().root()),
            }
        }
        let checkpoints = self.checkpoints.clone();
        let tidied = tokio::task::spawn_blocking(move || checkpoints.tidy());
        match tokio::time::timeout_at(deadline, tidied).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(problem))) => tracing::warn!("what was begun of checkpoints stays: {problem}"),
            _ => tracing::warn!("what was begun of checkpoints stays"),
        }
    }

    /// Sees to a checkpoint of the end, and waits for it, but not for ever; false if a new era begins instead.
    pub(super) async fn save_end(&mut self, end: Step, signals: &mut Signals) -> Result<bool, Failure> {
        let era = self.service.cluster().era();
        if self.stopping.is_some() {
            self.service.save_at(end);
        }
        let is_awaited = self.service.cluster().is_kept(end);
        self.saving.seen = self.saving.seen.max(end);
        let deadline = Instant::now() + Duration::from_millis(self.prepared.config.timeouts.stop_ms.into());
        let mut tick = tokio::time::interval(TICK);
        loop {
            self.complete_saves();
            let is_over = self.saving.newest >= Some(end) || self.saving.failed == Some(end);
            if is_over || !is_awaited || Instant::now() > deadline {
                return Ok(true);
            }
            tokio::select! {
                biased;
                request = signals.next() => self.request(request)?,
                Some(event) = self.events.recv() => self.follow(event)?,
                done = self.keeper.next() => self.kept(done),
                Some(exit) = self.children.next_exit() => self.child_ended(exit, signals).await?,
                Some(event) = self.node_events.recv() => Box::pin(self.heed_node(event, signals)).await?,
                _ = tick.tick() => {
                    Box::pin(self.check_nodes(signals)).await?;
                    self.check_leases(signals).await?;
                }
            }
            if self.service.cluster().era() != era {
                return Ok(false);
            }
        }
    }
}
