//! Faults on purpose: signals to this run's own processes, from outside them, and checkpoints that find the disk full or
//! are torn. What follows is left to the code that handles the real ones.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, Instant},
};

use convoy_proto::{
    blocks::BlockMap,
    chaos::{Chaos, Fault, Kind},
    ids::{Role, ShardId, Step},
    process::host_name,
};
use convoy_server::checkpoint::{self, CheckpointError, part};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::Session;

/// A stopped worker goes on after so many leases.
const LEASES_STOPPED: u32 = 2;

/// The faults that are still to come.
#[derive(Debug)]
pub(super) struct Turmoil {
    chaos: Option<Chaos>,
    /// Those that came already, by their number; in other launchers, too.
    fired: BTreeSet<u64>,
    /// The next one that comes at random, and when.
    random: Option<(Instant, Fault)>,
    /// Processes that are stopped, and when they go on.
    stopped: Vec<(Instant, Pid)>,
}

impl Turmoil {
    /// What is left of a plan.
    pub fn new(chaos: Option<Chaos>, fired: BTreeSet<u64>) -> Turmoil {
        Turmoil { chaos, fired, random: None, stopped: Vec::new() }
    }

    /// The number of the next that comes at random.
    fn nth(&self) -> u64 {
        self.fired.last().map_or(0, |last| last + 1)
    }

    /// Training goes on: from now on, time counts.
    pub fn begin(&mut self, now: Instant) {
        let next = self.chaos.as_ref().and_then(|chaos| chaos.at_random(self.nth()));
        self.random = next.map(|(fault, wait)| (now + wait, fault));
    }

    /// When something is to be done.
    pub fn next(&self) -> Option<Instant> {
        let random = self.random.iter().map(|(at, _)| *at);
        random.chain(self.stopped.iter().map(|(at, _)| *at)).min()
    }

    /// Faults that come at a step, with their numbers; each comes once.
    fn at_step(&mut self, step: u64) -> Vec<(u64, Fault)> {
        let faults = self.chaos.iter().flat_map(|chaos| (0..).zip(chaos.faults.clone()));
        let due = faults.filter(|(nth, fault)| fault.step.is_some_and(|at| at <= step) && !self.fired.contains(nth));
        let due: Vec<_> = due.collect();
        self.fired.extend(due.iter().map(|(nth, _)| *nth));
        due
    }

    /// The fault that comes at random and is due, with its number.
    fn at_random(&mut self, now: Instant) -> Option<(u64, Fault)> {
        let (_, fault) = self.random.take_if(|(at, _)| *at <= now)?;
        let nth = self.nth();
        self.fired.insert(nth);
        self.begin(now);
        Some((nth, fault))
    }

    fn take_stopped(&mut self, now: Instant) -> Vec<Pid> {
        let (due, rest) = std::mem::take(&mut self.stopped).into_iter().partition(|(at, _)| *at <= now);
        self.stopped = rest;
        let due: Vec<(Instant, Pid)> = due;
        due.into_iter().map(|(_, pid)| pid).collect()
    }
}

impl Session {
    /// Strikes whom a step's faults are for.
    pub(super) fn chaos_at_step(&mut self, step: u64) {
        for (nth, fault) in self.turmoil.at_step(step) {
            self.fire(nth, fault);
        }
    }

    /// Does what is due by time.
    pub(super) fn chaos_due(&mut self) {
        let now = Instant::now();
        for pid in self.turmoil.take_stopped(now) {
            // It may have been killed meanwhile.
            let _ = kill(pid, Signal::SIGCONT);
        }
        if let Some((nth, fault)) = self.turmoil.at_random(now) {
            self.fire(nth, fault);
        }
    }

    fn fire(&mut self, nth: u64, fault: Fault) {
        let done = match fault.kind {
            Kind::KillWorker => self.signal(nth, fault, (Role::Worker, Signal::SIGKILL)),
            Kind::StopWorker => self.signal(nth, fault, (Role::Worker, Signal::SIGSTOP)),
            Kind::KillServer => self.signal(nth, fault, (Role::Server, Signal::SIGKILL)),
            Kind::DiskFull => self.fill_disk(),
            Kind::TornCheckpoint => self.tear_checkpoint(),
        };
        let (did, line) = match &done {
            Ok(whom) => (true, format!("chaos: {fault}, {whom}")),
            Err(why) => (false, format!("chaos: no {fault}, {why}")),
        };
        self.progress.say(&line);
        self.metric(json!({ "event": "chaos", "nth": nth, "fault": fault.to_string(), "done": did }));
    }

    /// Sends a signal to a process; says to whom.
    fn signal(&mut self, nth: u64, fault: Fault, (role, signal): (Role, Signal)) -> Result<String, String> {
        let here = host_name();
        let places: Vec<(u32, u32)> = {
            let cluster = self.service.cluster();
            let workers = cluster.workers().iter().flatten().filter(|worker| worker.is_alive && worker.host == here);
            let servers = cluster.servers().iter().flatten().filter(|server| server.host == here);
            match role {
                Role::Worker => workers.map(|worker| (worker.member.rank, worker.pid)).collect(),
                _ => servers.map(|server| (server.member.rank, server.pid)).collect(),
            }
        };
        let chosen = match fault.rank {
            Some(rank) => places.iter().find(|(there, _)| *there == rank),
            None => {
                let at = self.turmoil.chaos.as_ref().map_or(0, |chaos| chaos.victim(nth, places.len()));
                places.get(at)
            }
        };
        let (rank, pid) = chosen.copied().ok_or("nobody is there to strike")?;
        let pid = Pid::from_raw(i32::try_from(pid).map_err(|_| "it has no process")?);
        kill(pid, signal).map_err(|problem| format!("{role} {rank}: {problem}"))?;
        if signal == Signal::SIGSTOP {
            let lease = Duration::from_millis(self.prepared.config.timeouts.lease_ms.into());
            self.turmoil.stopped.push((Instant::now() + lease * LEASES_STOPPED, pid));
        }
        Ok(format!("{role} {rank} (process {pid})"))
    }

    /// Sees to it that the first server's part of the next checkpoint finds the disk full.
    fn fill_disk(&mut self) -> Result<String, String> {
        if self.prepared.config.checkpoint.every.steps() == 0 {
            self.save_soon(None);
        }
        let (next, clock, era) = {
            let cluster = self.service.cluster();
            let (clock, open) = (cluster.engine().clock(), cluster.engine().open());
            let next = (open.0 + 1..=clock.commits()).map(Step).find(|commit| cluster.is_kept(*commit));
            (next.ok_or("no checkpoint is to come")?, clock, cluster.era())
        };
        let map = BlockMap::new(&self.prepared.manifest, self.prepared.config.servers);
        let shard = (0..map.shards()).map(ShardId).find(|shard| map.of_shard(*shard).len() > 0);
        let shard = shard.ok_or("no server has a block")?;
        let copies = self.service.cluster().view().copies(shard, next);
        let writer = copies.first().copied().ok_or("no server has the shard")?;
        let mut blocks = map.of_shard(shard);
        let first = blocks.next().ok_or("no server has a block")?.id;
        let last = blocks.last().map_or(first, |block| block.id);
        let file = part::file_name(first, last, (era, writer));
        let staged = self.checkpoints.place().staged(&checkpoint::name_of(clock, next), &file);
        full(&staged.map_err(|problem| problem.to_string())?).map_err(|problem| problem.to_string())?;
        Ok(format!("the checkpoint of step {}", clock.steps_after(next)))
    }

    /// Cuts the newest checkpoint's manifest short.
    fn tear_checkpoint(&mut self) -> Result<String, String> {
        let newest = self.saving.newest.ok_or("there is no checkpoint")?;
        let clock = self.service.cluster().engine().clock();
        let name = checkpoint::name_of(clock, newest);
        let (checkpoints, torn) = (self.checkpoints.clone(), name.clone());
        let tear = move || -> Result<(), CheckpointError> {
            let manifest = checkpoint::open(checkpoints.place(), &torn)?.to_text();
            checkpoints.place().seal(
                &torn,
                checkpoint::MANIFEST,
                &manifest[..manifest.floor_char_boundary(manifest.len() / 2)],
            )
        };
        tokio::task::block_in_place(tear).map_err(|problem| problem.to_string())?;
        Ok(self.checkpoints.of(&name))
    }
}

/// Makes a file that is on a device that is always full.
#[cfg(unix)]
fn full(file: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink("/dev/full", file)
}

#[cfg(not(unix))]
fn full(_file: &Path) -> std::io::Result<()> {
    Err(std::io::Error::other("there is no such device here"))
}
