//! `/metrics`: what runs are at, as Prometheus reads it.
//!
//! Base units, `_total` on what only grows, and few labels: the run, role and rank, shard, phase and direction; never a step
//! or a tensor, of which there is no end. Names are part of the contract (docs/operations.md); dashboards and alerts in
//! configs/grafana go by them.

use std::{collections::BTreeMap, sync::Arc};

use prometheus::{
    Encoder, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};
use serde_json::Value;

use super::{follow::Seen, story::Story};
use crate::coordinator::durations::PHASES;

/// The content type.
pub const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of staleness that are counted.
const STALENESS: [u64; 8] = [0, 1, 2, 4, 8, 16, 32, 63];

type Labels<'a> = Vec<(&'a str, String)>;

/// What there is to tell, by name.
#[derive(Debug, Default)]
struct Families(BTreeMap<&'static str, MetricFamily>);

/// The text of some runs.
pub fn text(runs: &[Arc<Seen>]) -> Vec<u8> {
    let mut families = Families::default();
    families.gauge("convoy_build_info", "1, of this version", vec![("version", env!("CARGO_PKG_VERSION").into())], 1.0);
    runs.iter().for_each(|run| families.run(run));
    let families: Vec<MetricFamily> = families.0.into_values().collect();
    let mut text = Vec::new();
    // Writing to memory cannot fail, and no family is empty.
    let _ = TextEncoder::new().encode(&families, &mut text);
    text
}

impl Families {
    fn add(&mut self, (name, help): (&'static str, &str), kind: MetricType, labels: Labels<'_>, mut metric: Metric) {
        let label = |(name, value): (&str, String)| {
            let mut label = LabelPair::default();
            label.set_name(name.into());
            label.set_value(value);
            label
        };
        metric.set_label(labels.into_iter().map(label).collect());
        let family = self.0.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.into());
            family.set_help(help.into());
            family.set_field_type(kind);
            family
        });
        family.mut_metric().push(metric);
    }

    fn gauge(&mut self, name: &'static str, help: &str, labels: Labels<'_>, value: impl Into<Option<f64>>) {
        let Some(value) = value.into() else { return };
        let (mut gauge, mut metric) = (Gauge::default(), Metric::default());
        gauge.set_value(value);
        metric.set_gauge(gauge);
        self.add((name, help), MetricType::GAUGE, labels, metric);
    }

    fn counter(&mut self, name: &'static str, help: &str, labels: Labels<'_>, value: impl Into<Option<f64>>) {
        let Some(value) = value.into() else { return };
        let (mut counter, mut metric) = (Counter::default(), Metric::default());
        counter.set_value(value);
        metric.set_counter(counter);
        self.add((name, help), MetricType::COUNTER, labels, metric);
    }

    /// Counts by upper bound, the last of which is of all that is more.
    fn histogram(&mut self, (name, help): (&'static str, &str), labels: Labels<'_>, counts: &[(f64, u64)], sum: f64) {
        let mut total = 0;
        let bucket = |(bound, count): &(f64, u64)| {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(total);
            bucket
        };
        // The last one goes without saying.
        let mut buckets: Vec<Bucket> = counts.iter().map(bucket).collect();
        buckets.retain(|bucket| bucket.upper_bound().is_finite());
        let (mut histogram, mut metric) = (Histogram::default(), Metric::default());
        histogram.set_bucket(buckets);
        histogram.set_sample_count(total);
        histogram.set_sample_sum(sum);
        metric.set_histogram(histogram);
        self.add((name, help), MetricType::HISTOGRAM, labels, metric);
    }

    fn run(&mut self, seen: &Seen) {
        let (status, story) = (&seen.status, &seen.story);
        let name = || vec![("run", seen.name.clone())];
        self.gauge(
            "convoy_run_live",
            "Whether a launcher is at work on the run",
            name(),
            f64::from(u8::from(seen.is_live)),
        );
        self.training(status, story, name);
        self.trouble(story, name);
        self.durations(status, name);
        self.staleness(story, name());
        for row in rows(status, "workers").filter(|row| row["retired"] != true) {
            self.worker((row, story), name());
        }
        for row in rows(status, "servers") {
            self.server((row, story), name());
        }
        for (direction, bytes) in [("push", story.counts.bytes_pushed), ("pull", story.counts.bytes_pulled)] {
            let labels = [name(), vec![("direction", direction.into())]].concat();
            self.counter("convoy_network_bytes_total", "Payload between workers and servers", labels, bytes);
        }
    }

    fn training<'a>(&mut self, status: &Value, story: &Story, run: impl Fn() -> Labels<'a>) {
        let last = |curve: &super::curve::Curve| curve.last().map(|(_, value)| value);
        let counts = &story.counts;
        self.counter("convoy_steps_total", "Steps that were made, some of them again", run(), counts.steps as f64);
        self.gauge("convoy_steps_planned", "Steps that the run will have", run(), status["total_steps"].as_f64());
        self.counter("convoy_samples_total", "Training samples in them", run(), counts.samples as f64);
        self.gauge("convoy_step", "Steps that the parameters have seen", run(), status["steps"].as_f64());
        // What was no number is none here.
        let not_finite = (story.step > 0 && !story.is_finite).then_some(f64::NAN);
        let loss = not_finite.or(story.loss.last().map(|(_, loss)| loss));
        self.gauge("convoy_loss", "Mean training loss of the last step", run(), loss);
        self.gauge("convoy_learning_rate", "Learning rate of the last step", run(), last(&story.learning_rate));
        self.gauge(
            "convoy_gradient_norm",
            "Norm of the last gradient, where it is known",
            run(),
            last(&story.gradient_norm),
        );
        self.gauge("convoy_evaluation_loss", "Mean loss on held-out data", run(), status["eval"]["loss"].as_f64());
        let accuracy = status["eval"]["accuracy"].as_f64();
        self.gauge("convoy_evaluation_accuracy_ratio", "Share of right answers on held-out data", run(), accuracy);
        let alive = rows(status, "workers").filter(|row| row["alive"] != false).count();
        self.gauge("convoy_workers_alive", "Worker processes that are there", run(), alive as f64);
        let slow = rows(status, "workers").filter(|row| row["straggler"] == true).count();
        self.gauge("convoy_workers_straggling", "Worker processes that keep the others waiting", run(), slow as f64);
    }

    fn trouble<'a>(&mut self, story: &Story, run: impl Fn() -> Labels<'a>) {
        let counts = &story.counts;
        for (name, help, count) in [
            ("convoy_faults_total", "Processes that died or hung", counts.faults),
            ("convoy_rollbacks_total", "Times the run went back to a checkpoint", counts.rollbacks),
            ("convoy_skipped_steps_total", "Steps skipped, be it for a loss scale", counts.skipped),
            ("convoy_not_finite_steps_total", "Steps skipped because something was not finite", counts.not_finite),
            ("convoy_checkpoints_total", "Checkpoints written", counts.checkpoints),
            ("convoy_failed_checkpoints_total", "Checkpoints that could not be written", counts.failed_checkpoints),
        ] {
            self.counter(name, help, run(), count as f64);
        }
        if let Some(last) = story.checkpoints.back() {
            let help = "When the last checkpoint was written";
            self.gauge("convoy_last_checkpoint_timestamp_seconds", help, run(), last.time);
            let help = "How long the last checkpoint took to write";
            self.gauge("convoy_last_checkpoint_duration_seconds", help, run(), last.seconds);
        }
    }

    fn durations<'a>(&mut self, status: &Value, run: impl Fn() -> Labels<'a>) {
        let durations = &status["durations"];
        let bounds: Vec<f64> = numbers(&durations["bounds"]).chain([f64::INFINITY]).collect();
        for phase in PHASES {
            let of = &durations["phases"][phase];
            let counts: Vec<u64> = of["counts"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            if counts.len() == bounds.len() {
                let counts: Vec<_> = bounds.iter().copied().zip(counts).collect();
                let labels = [run(), vec![("phase", phase.into())]].concat();
                let about = ("convoy_step_duration_seconds", "Where workers' steps took their time");
                self.histogram(about, labels, &counts, of["sum"].as_f64().unwrap_or(0.0));
            }
        }
    }

    fn staleness(&mut self, story: &Story, run: Labels<'_>) {
        let (mut counts, mut sum, mut from) = (Vec::new(), 0.0, 0);
        for bound in STALENESS {
            counts.push((bound as f64, story.staleness.range(from..=bound).map(|(_, count)| count).sum()));
            from = bound + 1;
        }
        counts.push((f64::INFINITY, story.staleness.range(from..).map(|(_, count)| count).sum()));
        story.staleness.iter().for_each(|(staleness, count)| sum += (staleness * count) as f64);
        let about =
            ("convoy_gradient_staleness_steps", "Steps by the commits since the oldest of their parameters was pulled");
        self.histogram(about, run, &counts, sum);
    }

    fn worker(&mut self, (row, story): (&Value, &Story), run: Labels<'_>) {
        let rank = || [run.clone(), vec![("rank", row["rank"].to_string())]].concat();
        let flag = |key: &str| row[key].as_bool().map(|is| f64::from(u8::from(is)));
        let age = row["heartbeat_age_seconds"].as_f64();
        self.gauge("convoy_worker_heartbeat_age_seconds", "Since the worker was heard of", rank(), age);
        self.gauge("convoy_worker_alive", "Whether the worker's process is there", rank(), flag("alive"));
        self.gauge("convoy_worker_straggler", "Whether the others wait for the worker", rank(), flag("straggler"));
        self.gauge("convoy_worker_lag_steps", "Steps behind the furthest worker", rank(), row["lag"].as_f64());
        let rate = row["samples_per_second"].as_f64();
        self.gauge("convoy_worker_samples_per_second", "What the worker computed of late", rank(), rate);
        let wait = row["step_seconds"]["wait"].as_f64();
        self.gauge("convoy_barrier_wait_seconds", "What of a recent step the worker waited", rank(), wait);
        self.process((row, story), ("worker", &run));
        let gpu = &row["gpu"];
        self.gauge(
            "convoy_gpu_utilisation_ratio",
            "Share of time the device computed",
            rank(),
            gpu["utilisation"].as_f64(),
        );
        let used = gpu["memory_used_bytes"].as_f64();
        self.gauge("convoy_gpu_memory_used_bytes", "Memory in use on the device, by whomever", rank(), used);
        self.gauge("convoy_gpu_memory_bytes", "Memory of the device", rank(), gpu["memory_bytes"].as_f64());
    }

    fn server(&mut self, (row, story): (&Value, &Story), run: Labels<'_>) {
        let labels =
            || [run.clone(), vec![("rank", row["rank"].to_string()), ("shard", row["shard"].to_string())]].concat();
        let age = row["heartbeat_age_seconds"].as_f64();
        self.gauge("convoy_server_heartbeat_age_seconds", "Since the server was heard of", labels(), age);
        self.gauge("convoy_server_open_pushes", "Pushes that are arriving", labels(), row["open_pushes"].as_f64());
        let work = row["work_seconds"].as_f64();
        self.counter("convoy_server_work_seconds_total", "Core seconds of sums and updates", labels(), work);
        self.process((row, story), ("server", &run));
    }

    fn process(&mut self, (row, story): (&Value, &Story), (role, run): (&str, &Labels<'_>)) {
        let labels = || [run.clone(), vec![("role", role.into()), ("rank", row["rank"].to_string())]].concat();
        let restarts = story.counts.restarts.get(&format!("{role} {}", row["rank"])).copied().unwrap_or(0);
        let help = "Times a process was started again in a place";
        self.counter("convoy_restarts_total", help, labels(), restarts as f64);
        self.gauge("convoy_process_cores", "Cores that the process keeps busy", labels(), row["cores"].as_f64());
        let memory = row["memory_bytes"].as_f64();
        self.gauge("convoy_process_resident_memory_bytes", "Memory of the process", labels(), memory);
    }
}

fn rows<'a>(status: &'a Value, of: &str) -> impl Iterator<Item = &'a Value> {
    status[of].as_array().into_iter().flatten()
}

fn numbers(of: &Value) -> impl Iterator<Item = f64> {
    of.as_array().into_iter().flatten().filter_map(Value::as_f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_is_told_in_base_units() {
        let mut story = Story::default();
        for (step, staleness) in [(1, 0), (2, 3), (3, 40), (4, 90)] {
            let event = json!({
                "event": "step", "step": step, "loss": 0.5, "lr": 0.1, "staleness": staleness, "samples": 64,
            });
            story.add(&event);
        }
        story.add(&json!({ "event": "pulse", "time": 1.0, "bytes_pushed": 111, "bytes_pulled": 50 }));
        story.add(&json!({ "event": "restart", "member": "worker 0" }));
        let counts = [1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
        let status = json!({
            "steps": 4, "samples": 256, "final_loss": 0.5, "faults": 1,
            "workers": [
                { "rank": 0, "alive": true, "straggler": true, "bytes_pushed": 100, "bytes_pulled": 50, "restarts": 2,
                  "cores": 0.5, "gpu": null, "step_seconds": { "wait": 0.25 } },
                { "rank": 1, "alive": false, "bytes_pushed": 11 },
            ],
            "servers": [{ "rank": 0, "shard": 0, "open_pushes": 2, "work_seconds": 1.5, "memory_bytes": 7 }],
            "durations": {
                "bounds": crate::coordinator::durations::BOUNDS,
                "phases": { "compute": { "counts": counts, "sum": 20.5 } },
            },
        });
        let seen = Arc::new(Seen { name: "r \"1\"".into(), is_live: true, status, story });
        let text = String::from_utf8(text(&[seen])).unwrap();
        for line in [
            "# TYPE convoy_samples_total counter",
            "convoy_samples_total{run=\"r \\\"1\\\"\"} 256",
            "convoy_network_bytes_total{direction=\"push\",run=\"r \\\"1\\\"\"} 111",
            "convoy_restarts_total{run=\"r \\\"1\\\"\",role=\"worker\",rank=\"0\"} 1",
            "convoy_loss{run=\"r \\\"1\\\"\"} 0.5",
            "convoy_workers_alive{run=\"r \\\"1\\\"\"} 1",
            "convoy_worker_straggler{rank=\"0\",run=\"r \\\"1\\\"\"} 1",
            "convoy_process_cores{rank=\"0\",role=\"worker\",run=\"r \\\"1\\\"\"} 0.5",
            "convoy_step_duration_seconds_bucket{phase=\"compute\",run=\"r \\\"1\\\"\",le=\"0.0025\"} 3",
            "convoy_step_duration_seconds_bucket{phase=\"compute\",run=\"r \\\"1\\\"\",le=\"+Inf\"} 6",
            "convoy_step_duration_seconds_sum{phase=\"compute\",run=\"r \\\"1\\\"\"} 20.5",
            "convoy_gradient_staleness_steps_bucket{run=\"r \\\"1\\\"\",le=\"4\"} 2",
            "convoy_gradient_staleness_steps_bucket{run=\"r \\\"1\\\"\",le=\"63\"} 3",
            "convoy_gradient_staleness_steps_count{run=\"r \\\"1\\\"\"} 4",
            "convoy_server_work_seconds_total{rank=\"0\",shard=\"0\",run=\"r \\\"1\\\"\"} 1.5",
        ] {
            let sorted = |line: &str| {
                // Labels come in the order in which they were given.
                let (name, rest) = line.split_once('{').unwrap_or((line, ""));
                let (labels, value) = rest.rsplit_once('}').unwrap_or(("", rest));
                let mut labels: Vec<_> = labels.split(',').map(String::from).collect();
                labels.sort();
                (name.to_string(), labels, value.to_string())
            };
            assert!(text.lines().any(|there| sorted(there) == sorted(line)), "{line}:\n{text}");
        }
        assert!(!text.contains("gpu"), "what nobody knows is left out");
        let mut series: Vec<_> = text.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
        let all = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), all, "each series is told once");
    }
}
