//! `status.json`: where a run stands now, for whoever looks from outside.
//!
//! It is the summary as it would be now, and beside it what only matters while the run goes on: whose heart beats, who is
//! slow, who died last. Everything that shows a run reads this file and metrics.jsonl, and asks no process anything.

use std::collections::BTreeMap;

use convoy_proto::{
    ids::{Role, Step, WorkerId},
    messages::Vitals,
};
use serde_json::{Map, Value, json};

use super::rates::Rates;
use crate::{
    coordinator::{
        core::Cluster,
        durations::{BOUNDS, PHASES},
        records::{ServerRecord, WorkerRecord},
    },
    summary::Summary,
};

/// The file.
pub const FILE: &str = "status.json";

/// Who died or hung last, in a place or in all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fault {
    /// What happened.
    pub what: String,
    /// When, in seconds since 1970.
    pub time: f64,
}

/// The last faults, by role and rank.
pub type Faults = BTreeMap<(Role, u32), Fault>;

/// What the status is made of, beside the summary.
#[derive(Debug)]
pub struct Now<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// How quickly it goes.
    pub rates: &'a Rates,
    /// The last fault of each place.
    pub faults: &'a Faults,
    /// Milliseconds on the cluster's clock.
    pub now_ms: u64,
    /// Seconds since 1970.
    pub time: f64,
    /// The run's length.
    pub total_steps: u64,
}

/// The status.
pub fn document(summary: &Summary, now: &Now<'_>) -> Value {
    let mut status = json!(summary);
    let furthest = now.alive().map(|worker| worker.at).max().unwrap_or_default();
    let workers = now.cluster.workers().iter().flatten().map(|worker| now.worker(worker, furthest));
    let servers = now.cluster.servers().iter().flatten().map(|server| now.server(server));
    merge(&mut status["workers"], workers);
    merge(&mut status["servers"], servers);
    let rate = now.rates.steps().filter(|rate| *rate > 0.0);
    let left = now.total_steps.saturating_sub(now.cluster.steps());
    let last = now.faults.values().max_by(|one, other| one.time.total_cmp(&other.time));
    let also = json!({
        "time": now.time,
        "phase": format!("{:?}", now.cluster.phase()).to_lowercase(),
        "era": now.cluster.era().0,
        "total_steps": now.total_steps,
        "eta_seconds": rate.map(|rate| left as f64 / rate),
        "steps_per_second_now": now.rates.steps(),
        "samples_per_second_now": now.rates.samples(),
        "step_seconds": by_phase(now.mean_step()),
        "last_fault": last.map(|fault| fault.what.as_str()),
        "last_fault_time": last.map(|fault| fault.time),
        "durations": { "bounds": BOUNDS, "phases": durations(now.cluster) },
    });
    extend(&mut status, also);
    status
}

/// Adds what is known now to rows that are of the same members in the same order.
fn merge(rows: &mut Value, now: impl Iterator<Item = Value>) {
    rows.as_array_mut().into_iter().flatten().zip(now).for_each(|(row, now)| extend(row, now));
}

fn extend(value: &mut Value, with: Value) {
    if let (Some(value), Value::Object(with)) = (value.as_object_mut(), with) {
        value.extend(with);
    }
}

/// Seconds by the names of phases.
pub fn by_phase(seconds: Option<[f64; 6]>) -> Value {
    let named = |seconds: [f64; 6]| PHASES.iter().zip(seconds).map(|(name, s)| (name.to_string(), json!(s)));
    seconds.map_or(Value::Null, |seconds| Value::Object(named(seconds).collect::<Map<_, _>>()))
}

fn durations(cluster: &Cluster) -> Value {
    let histograms = cluster.durations().0.iter();
    Value::Object(PHASES.iter().zip(histograms).map(|(name, counted)| (name.to_string(), json!(counted))).collect())
}

fn vitals(vitals: Option<Vitals>) -> Value {
    let Some(Vitals { cores, memory_bytes, gpu, shard }) = vitals else { return json!({}) };
    let gpu = gpu.map(|gpu| {
        json!({
            "utilisation": gpu.utilisation, "memory_used_bytes": gpu.memory_used_bytes, "memory_bytes": gpu.memory_bytes,
        })
    });
    let mut told = json!({ "cores": cores, "memory_bytes": memory_bytes, "gpu": gpu });
    if let Some(shard) = shard {
        extend(&mut told, json!({ "open_pushes": shard.open_pushes, "work_seconds": shard.work_seconds }));
    }
    told
}

impl Now<'_> {
    fn alive(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.cluster.workers().iter().flatten().filter(|worker| worker.is_alive)
    }

    /// The mean step of the workers that are alive, by phase.
    pub fn mean_step(&self) -> Option<[f64; 6]> {
        let means: Vec<_> = self.alive().filter_map(|worker| worker.recent.means()).collect();
        let mean = |at: usize| means.iter().map(|phases| phases[at]).sum::<f64>() / means.len() as f64;
        (!means.is_empty()).then(|| std::array::from_fn(mean))
    }

    fn age(&self, heard_ms: u64) -> f64 {
        self.now_ms.saturating_sub(heard_ms) as f64 / 1e3
    }

    fn fault(&self, place: (Role, u32)) -> Option<&str> {
        self.faults.get(&place).map(|fault| fault.what.as_str())
    }

    fn worker(&self, worker: &WorkerRecord, furthest: Step) -> Value {
        let (rank, engine) = (worker.member.rank, self.cluster.engine());
        let step = |at| engine.clock().steps_after(at);
        let mut row = json!({
            "alive": worker.is_alive,
            "awaited": worker.is_awaited,
            "retired": !worker.is_alive && !worker.is_awaited && rank >= self.cluster.wanted(),
            "step": step(worker.at),
            "lag": step(furthest).saturating_sub(step(worker.at)),
            "missed": worker.missed,
            "straggler": worker.is_alive && engine.is_straggler(WorkerId(rank)),
            "last_fault": self.fault((Role::Worker, rank)),
            "heartbeat_age_seconds": self.age(worker.heard_ms),
            "samples_per_second": self.rates.of_worker(rank as usize),
            "step_seconds": by_phase(worker.recent.means()),
            "step_seconds_p50": worker.recent.quantile(0.5),
            "step_seconds_p99": worker.recent.quantile(0.99),
        });
        extend(&mut row, vitals(worker.vitals));
        row
    }

    fn server(&self, server: &ServerRecord) -> Value {
        let mut row = json!({
            "host": server.host,
            "last_fault": self.fault((Role::Server, server.member.rank)),
            "heartbeat_age_seconds": self.age(server.heard_ms),
        });
        extend(&mut row, vitals(server.vitals));
        row
    }
}
