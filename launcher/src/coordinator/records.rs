//! What the coordinator knows of each member.

use convoy_proto::{
    ids::{Member, Step},
    messages::{Effort, StepTimes, WorkerOffer},
};

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
    /// Samples it computed.
    pub samples: u64,
    /// Payload bytes it pushed.
    pub bytes_pushed: u64,
    /// Payload bytes it pulled.
    pub bytes_pulled: u64,
    /// Where its time went, in all.
    pub times: StepTimes,
    /// The commit after the last that it reported.
    pub at: Step,
    /// Steps that were made without it.
    pub missed: u64,
    /// How often its place was taken anew.
    pub restarts: u64,
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
}

/// A server that joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRecord {
    /// Who.
    pub member: Member,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// Where workers reach it.
    pub address: String,
    /// When it was heard of last.
    pub heard_ms: u64,
}

impl WorkerRecord {
    /// A worker that has done nothing yet.
    pub(super) fn new(member: Member, (pid, host): (u32, String), offer: WorkerOffer, now_ms: u64) -> WorkerRecord {
        WorkerRecord {
            member,
            pid,
            host,
            offer,
            samples: 0,
            bytes_pushed: 0,
            bytes_pulled: 0,
            times: StepTimes::default(),
            at: Step(0),
            missed: 0,
            restarts: 0,
            is_alive: true,
            is_awaited: false,
            pushed: None,
            finished: None,
            heard_ms: now_ms,
        }
    }

    /// The same in the place of one that is gone: what that did counts on.
    pub(super) fn after(self, before: Option<WorkerRecord>) -> WorkerRecord {
        let Some(before) = before else { return self };
        WorkerRecord {
            samples: before.samples,
            bytes_pushed: before.bytes_pushed,
            bytes_pulled: before.bytes_pulled,
            times: before.times,
            at: before.at,
            missed: before.missed,
            restarts: before.restarts + 1,
            ..self
        }
    }

    /// Adds up what it did for a step, after which it goes on with the step `next`.
    pub(super) fn add(&mut self, effort: &Effort, next: Step) {
        self.samples += effort.samples;
        self.bytes_pushed += effort.bytes_pushed;
        self.bytes_pulled += effort.bytes_pulled;
        self.times.data += effort.times.data;
        self.times.compute += effort.times.compute;
        self.times.exchange += effort.times.exchange;
        self.times.load += effort.times.load;
        self.at = next;
    }
}
