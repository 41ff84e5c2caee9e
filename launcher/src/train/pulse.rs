//! What a run tells of itself while it trains: status.json each second, a line in metrics.jsonl every few.
//!
//! Files are written by a thread of its own. While it is at one, what comes meanwhile is left out: the next is newer.

use std::{
    sync::mpsc::{SyncSender, sync_channel},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::{Session, restarts::Place};
use crate::{
    run_dir::Replacer,
    summary::Summary,
    watch::{
        live::{self, Fault, Faults, Now},
        rates::{Done, Rates},
    },
};

/// How often the status is written.
const EVERY: Duration = Duration::from_millis(900);
/// Of how many of them a line is kept.
const KEPT: u64 = 2;

/// What is told, and when it was told last.
#[derive(Debug)]
pub struct Pulse {
    begun: Instant,
    last: Option<Instant>,
    count: u64,
    rates: Rates,
    faults: Faults,
    writer: SyncSender<Value>,
}

/// Seconds since 1970.
pub fn time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| (since.as_secs_f64() * 1e3).round() / 1e3)
}

impl Pulse {
    /// Nothing is told yet.
    pub fn new(run: Replacer) -> Pulse {
        let (writer, documents) = sync_channel::<Value>(1);
        std::thread::spawn(move || {
            while let Ok(document) = documents.recv() {
                // Whoever looks sees an older one, and how old it is.
                if let Err(problem) = run.replace_json(live::FILE, &document) {
                    tracing::debug!("cannot write {}: {problem}", live::FILE);
                }
            }
        });
        let (begun, rates, faults) = (Instant::now(), Rates::default(), Faults::new());
        Pulse { begun, last: None, count: 0, rates, faults, writer }
    }

    /// Somebody died, or hangs.
    pub fn fault(&mut self, place: Place, what: &str) {
        self.faults.insert(place, Fault { what: what.into(), time: time() });
        // Told at the next look.
        self.last = None;
    }
}

impl Session {
    /// Tells where the run stands, if that is due.
    pub(super) fn pulse(&mut self) {
        if self.watched.pulse.last.is_some_and(|last| last.elapsed() < EVERY) {
            return;
        }
        self.watched.pulse.last = Some(Instant::now());
        self.watched.pulse.count += 1;
        let (status, line) = self.status();
        // The writer is behind: the next one is newer.
        let _ = self.watched.pulse.writer.try_send(status);
        if self.watched.pulse.count.is_multiple_of(KEPT) && self.began.is_some() {
            self.metric(line);
        }
    }

    /// The status, and what of it is kept.
    fn status(&mut self) -> (Value, Value) {
        let now_ms = self.service.now_ms();
        // What takes a while is made of a copy: members wait for the cluster.
        let cluster = self.service.cluster().clone();
        let rank_samples = cluster.workers().iter().map(|worker| worker.as_ref().map_or(0, |w| w.totals.samples));
        let done = Done {
            at: self.watched.pulse.begun.elapsed().as_secs_f64(),
            steps: cluster.steps(),
            samples: self.notes.samples,
            of_workers: rank_samples.collect(),
        };
        self.watched.pulse.rates.note(done);
        let now = Now {
            cluster: &cluster,
            rates: &self.watched.pulse.rates,
            faults: &self.watched.pulse.faults,
            now_ms,
            time: time(),
            total_steps: self.prepared.horizon.steps,
        };
        let summary = Summary::new(&self.prepared.config, &cluster, &self.notes);
        let status = live::document(&summary, &now);
        let line = kept(&status, now.mean_step());
        (status, line)
    }
}

/// Of a status, sums over all members.
fn kept(status: &Value, mean_step: Option<[f64; 6]>) -> Value {
    let rows = |of: &str| status[of].as_array().map(Vec::as_slice).unwrap_or_default().to_vec();
    let (workers, servers) = (rows("workers"), rows("servers"));
    let sum = |rows: &[Value], key: &str| rows.iter().filter_map(|row| row[key].as_f64()).sum::<f64>();
    let gpus: Vec<f64> = workers.iter().filter_map(|worker| worker["gpu"]["utilisation"].as_f64()).collect();
    json!({
        "event": "pulse",
        "step": status["steps"],
        "samples_per_second": status["samples_per_second_now"],
        "step_seconds": live::by_phase(mean_step),
        "bytes_pushed": sum(&workers, "bytes_pushed"),
        "bytes_pulled": sum(&workers, "bytes_pulled"),
        "worker_cores": sum(&workers, "cores"),
        "worker_memory_bytes": sum(&workers, "memory_bytes"),
        "server_cores": sum(&servers, "cores"),
        "server_memory_bytes": sum(&servers, "memory_bytes"),
        "server_work_seconds": sum(&servers, "work_seconds"),
        "open_pushes": sum(&servers, "open_pushes"),
        "gpu_utilisation": (!gpus.is_empty()).then(|| gpus.iter().sum::<f64>() / gpus.len() as f64),
    })
}
