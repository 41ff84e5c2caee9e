//! What the coordinator knows of each member.

use convoy_proto::{
    ids::{Member, Step},
    messages::{Effort, ServerView, Since, Vitals, WorkerOffer},
};
use serde::{Deserialize, Serialize};

use super::durations::Recent;

/// What the processes in one worker's place did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Samples they computed.
    pub samples: u64,
    /// Payload bytes they pushed.
    pub bytes_pushed: u64,
    /// Payload bytes they pulled.
    pub bytes_pulled: u64,
    /// Where their time went.
    pub seconds: Seconds,
    /// How often the place was taken anew.
    pub restarts: u64,
}

/// Where a worker's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "docs/summary.schema.json describes each field")]
pub struct Seconds {
    pub data: f64,
    pub compute: f64,
    pub push: f64,
    pub wait: f64,
    pub pull: f64,
    pub load: f64,
}

/// A worker that joined, and what it did.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerRecord {
    /// Who.
    pub member: Member,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// What it brought.
    pub offer: WorkerOffer,
    /// What it did, and who was in its place before.
    pub totals: Totals,
    /// The commit after the last that it reported.
    pub at: Step,
    /// Steps that were made without it.
    pub missed: u64,
    /// Whether its process is there.
    pub is_alive: bool,
    /// Whether another is about to take its place.
    pub is_awaited: bool,
    /// The first step it has not pushed, once it said that it pushes no other.
    pub(super) pushed: Option<Step>,
    /// How many steps it made, once it made its last.
    pub(super) finished: Option<Step>,
    /// When it was heard of last.
    pub heard_ms: u64,
    /// How long it had computed then what it was computing.
    pub computing_ms: u64,
    /// What its process uses.
    pub vitals: Option<Vitals>,
    /// Its last steps.
    pub recent: Recent,
    /// Whether this process has computed anything: its first step may take long, for it compiles kernels.
    pub(super) is_warm: bool,
}

/// A server that joined.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerRecord {
    /// Who.
    pub member: Member,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// Where workers reach it.
    pub address: String,
    /// Which commits it takes part in, and whether it has its shard, if that is not from the beginning.
    pub since: Since,
    pub(super) is_filled: bool,
    /// When it was heard of last.
    pub heard_ms: u64,
    /// What its process uses, and what it is at.
    pub vitals: Option<Vitals>,
}

impl From<&ServerRecord> for ServerView {
    fn from(server: &ServerRecord) -> Self {
        let ServerRecord { member, address, since, .. } = server;
        ServerView { address: address.clone(), incarnation: member.incarnation, since: *since }
    }
}

impl ServerRecord {
    /// Whether it has all of its shard, once training has begun.
    pub(super) fn holds(&self) -> bool {
        self.since == Since::Beginning || self.is_filled
    }
}

impl WorkerRecord {
    /// A worker that has done nothing yet.
    pub(super) fn new(member: Member, (pid, host): (u32, String), offer: WorkerOffer, now_ms: u64) -> WorkerRecord {
        WorkerRecord {
            member,
            pid,
            host,
            offer,
            totals: Totals::default(),
            at: Step(0),
            missed: 0,
            is_alive: true,
            is_awaited: false,
            pushed: None,
            finished: None,
            heard_ms: now_ms,
            computing_ms: 0,
            vitals: None,
            recent: Recent::default(),
            is_warm: false,
        }
    }

    /// The same in a place that others had before: what they did counts on.
    pub(super) fn after(self, before: Option<WorkerRecord>, earlier: Totals) -> WorkerRecord {
        match before {
            None => WorkerRecord { totals: earlier, ..self },
            Some(before) => WorkerRecord {
                totals: Totals { restarts: before.totals.restarts + 1, ..before.totals },
                at: before.at,
                missed: before.missed,
                ..self
            },
        }
    }

    /// The same, at a commit at least.
    pub(super) fn from(self, commit: Step) -> WorkerRecord {
        WorkerRecord { at: self.at.max(commit), ..self }
    }

    /// Adds up what it did for a step, after which it goes on with the step `next`.
    pub(super) fn add(&mut self, effort: &Effort, next: Step) {
        let totals = &mut self.totals;
        totals.samples += effort.samples;
        totals.bytes_pushed += effort.bytes_pushed;
        totals.bytes_pulled += effort.bytes_pulled;
        totals.seconds.data += effort.times.data;
        totals.seconds.compute += effort.times.compute;
        totals.seconds.push += effort.times.push;
        totals.seconds.wait += effort.times.wait;
        totals.seconds.pull += effort.times.pull;
        totals.seconds.load += effort.times.load;
        self.recent.note(&effort.times);
        self.is_warm |= effort.samples > 0;
        self.at = next;
    }
}
