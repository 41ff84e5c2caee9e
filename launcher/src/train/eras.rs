//! A server is gone, or a checkpoint is not what it seemed: the run goes back to the newest checkpoint that is whole, in
//! place, under a new era. Workers stay, with their devices and data; a synchronous run ends in the same bits.

use std::{path::Path, time::Instant};

use convoy_proto::ids::{Member, Role, ServerId};
use serde_json::json;

use super::{
    Session,
    ending::with_log,
    losses::{again, workers},
};
use crate::{
    checkpoints::{self, Cut, Found},
    coordinator::{
        core::{Event, Origin},
        saves::Standing,
    },
    outcome::Failure,
    summary::Notes,
};

impl From<&Found> for Origin {
    fn from(found: &Found) -> Self {
        let Cut { cursor, dropped_slices, .. } = found.cut.clone();
        Origin {
            restore: Some(found.name.clone()),
            commits: convoy_proto::ids::Step(found.manifest.commits),
            standing: Standing { cursor, left_out: dropped_slices },
        }
    }
}

impl Session {
    /// Whether the run can go on without a server: another has its shard, or one takes its place after a while.
    /// Before training has begun, only if it was killed: what it dies of by itself, another would die of, too.
    pub(super) fn may_replace_server(&self, rank: u32, is_killed: bool) -> bool {
        let (has_begun, has_copy, layout) = {
            let cluster = self.service.cluster();
            (cluster.has_begun(), cluster.has_copy(ServerId(rank)), cluster.layout())
        };
        // One server that holds the shard is enough.
        let mut copies = layout.copies_of(layout.shard_of(ServerId(rank)));
        let may_any = copies.any(|server| self.restarts.may((Role::Server, server.0)));
        has_copy || (has_begun || is_killed) && self.stopping.is_none() && may_any
    }

    /// Goes on without a server: at once if another has its shard, and else from the newest checkpoint, when another is in
    /// its place.
    pub(super) fn lose_server(&mut self, rank: u32, (what, log): (&str, &Path)) -> Result<(), Failure> {
        self.fault((Role::Server, rank), what);
        self.starting.remove(&(Role::Server, rank));
        let is_needed = !self.service.cluster().has_copy(ServerId(rank));
        let next = self.plan_restart((Role::Server, rank), is_needed);
        let told = with_log(&format!("{what}{}", again(next)), log);
        self.go_on_without_server(rank, next.is_some(), &told)
    }

    /// What becomes of a run without a server, in whose place another is awaited or not.
    pub(super) fn go_on_without_server(&mut self, rank: u32, is_awaited: bool, told: &str) -> Result<(), Failure> {
        let since = Instant::now();
        let (lost, is_broken) = {
            let mut cluster = self.service.cluster();
            let lost = cluster.lose_server(rank);
            if !is_awaited {
                cluster.abandon_server(rank);
            }
            (lost, cluster.is_broken())
        };
        self.service.publish();
        if let Some(member) = lost {
            self.metric(json!({ "event": "lost", "member": member.to_string() }));
        }
        if !is_broken {
            self.notes.takeovers += 1;
            self.progress.say(&format!("{told}\nanother server has its shard, and training goes on"));
            self.struck.get_or_insert((Role::Server, since));
            self.save_summary();
            return Ok(());
        }
        self.progress.say(told);
        self.begin_era()?;
        self.struck = Some((Role::Server, since));
        Ok(())
    }

    /// A server could not take the checkpoint: it counts as none from now on.
    pub(super) fn not_restored(&mut self, member: Member, problem: &str) -> Result<(), Failure> {
        self.fault((member.role, member.rank), &format!("{member}: {problem}"));
        self.progress.say(&format!("{member}: {problem}"));
        let restore = self.service.cluster().view().restore;
        self.bad_checkpoints.extend(restore);
        self.begin_era()
    }

    /// Goes back to the newest checkpoint that is whole, or to the beginning.
    pub(super) fn begin_era(&mut self) -> Result<(), Failure> {
        // What happened before comes first.
        while let Ok(event) = self.events.try_recv() {
            self.follow(event)?;
        }
        let before = self.service.cluster().engine().open();
        // Members are told at once that the era is over: to look at checkpoints may take a while.
        let old_events = self.service.end_era(&self.events);
        for _ in 0..old_events {
            // They are of steps that are made again. What a person asks for is not.
            if let Ok(Event::Scale(workers)) = self.events.try_recv() {
                self.scale_to = Some(workers);
            }
        }
        let model = checkpoints::model_hash(&self.prepared.manifest);
        // None is completed any more once it is decided where the run goes on.
        self.settle_saves();
        let taken = tokio::task::block_in_place(|| self.checkpoints.take(&model, &self.bad_checkpoints));
        // What cannot be read now may be whole: nothing is begun anew because of that.
        let again = format!("`launcher resume {}` goes on when it can be read", self.run_dir.path().display());
        let (found, passed_over) =
            taken.map_err(|problem| Failure::Environment(format!("cannot go back: {problem}; {again}")))?;
        let is_elsewhere = self.prepared.config.checkpoint.to.is_some();
        let is_empty = found.is_none() && passed_over.is_empty() && self.bad_checkpoints.is_empty();
        if is_empty && is_elsewhere && self.saving.newest.is_some() {
            let place = self.checkpoints.place().root();
            return Err(Failure::Environment(format!(
                "cannot go back: {place} is empty, but held checkpoints; {again}"
            )));
        }
        for why in passed_over {
            self.metric(json!({ "event": "passed_over", "problem": why }));
            self.progress.say(&format!("passed over a checkpoint: {why}"));
        }
        let origin = found.as_ref().map_or_else(Origin::default, Origin::from);
        self.restored_bytes = found.as_ref().map_or(0, |found| found.manifest.bytes());
        let (commits, newest) = (origin.commits, origin.restore.is_some().then_some(origin.commits));
        let begun = self.service.roll_back(origin);
        self.take_up(found.map(|found| found.cut));
        let undone = before.0.saturating_sub(commits.0);
        if self.prepared.config.mode.inexact().is_some() {
            self.notes.lost_updates += undone;
        }
        self.notes.rollbacks += 1;
        let step = self.service.cluster().engine().clock().steps_after(commits);
        self.saving.begin_anew(commits, newest);
        (self.ended, self.last_change, self.skips_in_a_row) = (None, Instant::now(), 0);
        self.metric(json!({ "event": "rollback", "step": step, "undone": undone }));
        let alive = self.service.cluster().alive();
        self.progress.say(&match undone {
            0 => format!("{} go on from step {step}", workers(alive)),
            undone => format!("{} go back to step {step}; {undone} commits are made again", workers(alive)),
        });
        self.save_summary();
        begun.map_or(Ok(()), |event| self.follow(event))
    }

    /// Counts on from where the run stood; what happened to processes, and the best parameters, stay known.
    fn take_up(&mut self, cut: Option<Cut>) {
        let now = std::mem::take(&mut self.notes);
        let (then, review) = match cut {
            Some(cut) => (cut.notes, cut.review),
            None => (Notes::default(), super::review::Review::new(self.prepared.config.patience)),
        };
        self.notes = Notes {
            samples: then.samples,
            final_loss: then.final_loss,
            eval: then.eval,
            ema_eval: then.ema_eval,
            committed: then.committed,
            skipped: then.skipped,
            ..now
        };
        self.review = review.after(self.review);
    }
}
