//! What happened in a run, from the lines of its metrics.jsonl, in bounded memory.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::Value;

use super::curve::Curve;
use crate::{coordinator::durations::PHASES, table::cell_text};

/// Lines of the timeline that are kept, and checkpoints.
const KEPT: usize = 200;
/// Stalenesses that are counted each by itself; what is more counts as this.
const STALEST: u64 = 64;

/// The story so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Story {
    /// By step: the loss, the learning rate, and the norm of the gradient where it is known.
    pub loss: Curve,
    /// See above.
    pub learning_rate: Curve,
    /// See above.
    pub gradient_norm: Curve,
    /// By step: samples a second over the last seconds, and bytes a second through connections and shared memory.
    pub samples_per_second: Curve,
    /// See above.
    pub bytes_per_second: Curve,
    /// By step: cores kept busy by workers and by servers, and the share of time in which GPUs computed.
    pub worker_cores: Curve,
    /// See above.
    pub server_cores: Curve,
    /// See above.
    pub gpu_utilisation: Curve,
    /// By step and phase: the mean seconds of a worker's step.
    pub step_seconds: BTreeMap<&'static str, Curve>,
    /// Steps by the largest staleness of their gradients.
    pub staleness: BTreeMap<u64, u64>,
    /// By step: scores of the held-out data, by the weights.
    pub evaluation: Scores,
    /// The same by their average.
    pub average: Scores,
    /// Checkpoints, the last ones.
    pub checkpoints: VecDeque<Checkpoint>,
    /// What happened beside, the last of it.
    pub timeline: VecDeque<Happened>,
    /// What only grows.
    pub counts: Counts,
    /// The last step, and whether its loss was a number.
    pub step: u64,
    /// See above.
    pub is_finite: bool,
    /// When bytes were counted last, and how many of each there were.
    #[serde(skip)]
    bytes: Option<(f64, [f64; 2])>,
}

/// Scores of the held-out data, by step.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Scores {
    /// Mean loss.
    pub loss: Curve,
    /// Share of right answers.
    pub accuracy: Curve,
}

/// What has happened so often, or was so much, over all launchers of the run: it only grows, also where steps are undone.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Steps that were made, some of them again.
    pub steps: u64,
    /// Training samples in them.
    pub samples: u64,
    /// Steps that were skipped.
    pub skipped: u64,
    /// Those of them that no loss scale was to blame for.
    pub not_finite: u64,
    /// Processes that died or hung.
    pub faults: u64,
    /// Times the run went back to a checkpoint.
    pub rollbacks: u64,
    /// Checkpoints that were written.
    pub checkpoints: u64,
    /// Checkpoints that could not be written.
    pub failed_checkpoints: u64,
    /// By role and rank: how often a process was started again.
    pub restarts: BTreeMap<String, u64>,
    /// Payload that was pushed.
    pub bytes_pushed: f64,
    /// Payload that was pulled.
    pub bytes_pulled: f64,
}

/// A checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Checkpoint {
    /// The step that it was made after.
    pub step: u64,
    /// How long it took to write.
    pub seconds: Option<f64>,
    /// Its size.
    pub bytes: Option<u64>,
    /// When, in seconds since 1970.
    pub time: Option<f64>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Happened {
    /// When, in seconds since 1970.
    pub time: Option<f64>,
    /// After which step.
    pub step: u64,
    /// What kind of event.
    pub kind: String,
    /// What it says.
    pub text: String,
    /// Whether it is trouble.
    pub is_trouble: bool,
}

impl Story {
    /// Takes in a line.
    pub fn add(&mut self, event: &Value) {
        match event["event"].as_str().unwrap_or_default() {
            "step" => self.step(event),
            "eval" => self.evaluation(event),
            "pulse" => self.pulse(event),
            "phase" | "" => {}
            kind => self.happened(kind, event),
        }
    }

    fn step(&mut self, event: &Value) {
        let Some(step) = event["step"].as_u64() else { return };
        if step <= self.step {
            // It was undone, and is made again.
            for scores in [&mut self.evaluation, &mut self.average] {
                scores.loss.cut(step as f64);
                scores.accuracy.cut(step as f64);
            }
        }
        (self.step, self.is_finite) = (step, event["loss"].is_number());
        for (key, curve) in
            [("loss", &mut self.loss), ("lr", &mut self.learning_rate), ("gradient_norm", &mut self.gradient_norm)]
        {
            event[key].as_f64().into_iter().for_each(|value| curve.add(step as f64, value));
        }
        let staleness = event["staleness"].as_u64().unwrap_or(0).min(STALEST);
        *self.staleness.entry(staleness).or_default() += 1;
        let is_skipped = event["action"].as_str().is_some_and(|action| action != "apply");
        self.counts.steps += 1;
        self.counts.samples += event["samples"].as_u64().unwrap_or(0);
        self.counts.skipped += u64::from(is_skipped);
        self.counts.not_finite += u64::from(is_skipped && event["loss_scale"].as_f64() == Some(1.0));
    }

    fn evaluation(&mut self, event: &Value) {
        let Some(step) = event["step"].as_f64() else { return };
        let scores = if event["of"] == "ema" { &mut self.average } else { &mut self.evaluation };
        event["loss"].as_f64().into_iter().for_each(|loss| scores.loss.add(step, loss));
        event["accuracy"].as_f64().into_iter().for_each(|share| scores.accuracy.add(step, share));
    }

    fn pulse(&mut self, event: &Value) {
        let step = event["step"].as_f64().unwrap_or(self.step as f64);
        for (key, curve) in [
            ("samples_per_second", &mut self.samples_per_second),
            ("worker_cores", &mut self.worker_cores),
            ("server_cores", &mut self.server_cores),
            ("gpu_utilisation", &mut self.gpu_utilisation),
        ] {
            event[key].as_f64().into_iter().for_each(|value| curve.add(step, value));
        }
        for phase in PHASES {
            if let Some(seconds) = event["step_seconds"][phase].as_f64() {
                self.step_seconds.entry(phase).or_default().add(step, seconds);
            }
        }
        let bytes = ["bytes_pushed", "bytes_pulled"].map(|key| event[key].as_f64().unwrap_or(0.0));
        let Some(time) = event["time"].as_f64() else { return };
        let (then, before) = self.bytes.replace((time, bytes)).unwrap_or((time, [0.0; 2]));
        // What a launcher before this one had counted beyond its last checkpoint is not counted again.
        let more: [f64; 2] = std::array::from_fn(|at| (bytes[at] - before[at]).max(0.0));
        self.counts.bytes_pushed += more[0];
        self.counts.bytes_pulled += more[1];
        if time > then {
            self.bytes_per_second.add(step, more.iter().sum::<f64>() / (time - then));
        }
    }

    fn happened(&mut self, kind: &str, event: &Value) {
        let counts = &mut self.counts;
        match kind {
            "fault" => counts.faults += 1,
            "rollback" => counts.rollbacks += 1,
            "checkpoint" => counts.checkpoints += 1,
            "checkpoint_failed" => counts.failed_checkpoints += 1,
            "restart" => {
                let member = event["member"].as_str().unwrap_or_default();
                *counts.restarts.entry(member.into()).or_default() += 1;
            }
            _ => {}
        }
        if kind == "checkpoint" {
            keep(
                &mut self.checkpoints,
                Checkpoint {
                    step: event["step"].as_u64().unwrap_or(self.step),
                    seconds: event["seconds"].as_f64(),
                    bytes: event["bytes"].as_u64(),
                    time: event["time"].as_f64(),
                },
            );
        }
        let step = if kind == "rollback" { event["step"].as_u64().unwrap_or(self.step) } else { self.step };
        let (time, text, is_trouble) = (event["time"].as_f64(), said(event), is_trouble(kind));
        keep(&mut self.timeline, Happened { time, step, kind: kind.into(), text, is_trouble });
    }
}

fn keep<T>(kept: &mut VecDeque<T>, next: T) {
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back(next);
}

/// Whether a person should look.
fn is_trouble(kind: &str) -> bool {
    matches!(
        kind,
        "fault"
            | "lost"
            | "straggler"
            | "rollback"
            | "node_lost"
            | "session_ended"
            | "checkpoint_failed"
            | "passed_over"
            | "chaos"
    )
}

/// An event in words.
pub fn said(event: &Value) -> String {
    let number = |key: &str| event[key].as_f64();
    match (event["event"].as_str().unwrap_or_default(), event["member"].as_str(), event["what"].as_str()) {
        ("joined", Some(member), _) => format!("{member} joined"),
        ("lost", Some(member), _) => format!("{member} is gone"),
        ("restart", Some(member), _) => format!("{member} is started again"),
        ("fault" | "resume", _, Some(what)) => what.into(),
        ("restart_decided", Some(member), _) => match (number("delay_seconds"), event["not_because"].as_str()) {
            (Some(delay), _) => {
                format!("{member} starts again in {delay:.1} s (restart {})", cell_text(&event["number"]))
            }
            (None, why) => format!("{member} does not start again: {}", why.unwrap_or("nobody says why")),
        },
        ("straggler", ..) => format!(
            "worker {} is slow: {:.0} ms a step, the others {:.0} ms",
            cell_text(&event["worker"]),
            number("seconds").unwrap_or(0.0) * 1e3,
            number("usual").unwrap_or(0.0) * 1e3
        ),
        ("recovered", ..) => {
            format!("over the loss of a {} in {:.2} s", cell_text(&event["of"]), number("seconds").unwrap_or(0.0))
        }
        ("checkpoint", ..) => format!(
            "checkpoint of step {}, {:.1} MiB in {:.2} s",
            cell_text(&event["step"]),
            number("bytes").unwrap_or(0.0) / f64::from(1 << 20),
            number("seconds").unwrap_or(0.0)
        ),
        ("rollback", ..) => format!("back to step {}", cell_text(&event["step"])),
        ("scale", ..) => {
            format!("{} workers in place of {}", cell_text(&event["workers"]), cell_text(&event["before"]))
        }
        _ => {
            let said = event.as_object().into_iter().flatten();
            let is_told = |(key, value): &(&String, &Value)| {
                !matches!(key.as_str(), "event" | "era" | "step" | "time") && !value.is_null()
            };
            let said: Vec<_> = said.filter(is_told).map(|(key, value)| format!("{key} {}", cell_text(value))).collect();
            said.join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_become_a_story() {
        let mut story = Story::default();
        let step =
            |step: u64, loss: f64| json!({ "event": "step", "step": step, "loss": loss, "lr": 0.1, "staleness": step });
        let pulse = |step: u64, time: f64, bytes: u64| {
            json!({ "event": "pulse", "step": step, "time": time, "samples_per_second": 50.0, "bytes_pushed": bytes,
                    "bytes_pulled": bytes, "step_seconds": { "compute": 0.5, "wait": 0.25 } })
        };
        for event in [
            json!({ "event": "phase", "phase": "training" }),
            step(1, 3.0),
            pulse(1, 10.0, 100),
            json!({ "event": "eval", "of": "weights", "step": 1, "loss": 2.5, "accuracy": 0.5, "time": 11.0 }),
            step(2, 2.0),
            json!({ "event": "fault", "member": "worker 1", "what": "worker 1 was killed", "time": 11.5 }),
            json!({ "event": "eval", "of": "weights", "step": 2, "loss": 9.0 }),
            json!({ "event": "checkpoint", "step": 2, "seconds": 0.5, "bytes": 1 << 20, "time": 12.0 }),
            json!({ "event": "rollback", "step": 1, "undone": 1 }),
            step(2, 1.0),
            pulse(2, 12.0, 300),
            json!({ "event": "straggler", "worker": 3, "seconds": 0.06, "usual": 0.01, "lag": null }),
            json!({ "no": "event" }),
        ] {
            story.add(&event);
        }
        let curve = |curve: &Curve| curve.points().collect::<Vec<_>>();
        assert_eq!(curve(&story.loss), [(1.0, 3.0), (2.0, 1.0)]);
        assert_eq!(curve(&story.bytes_per_second), [(2.0, 200.0)]);
        assert_eq!(curve(&story.step_seconds["compute"]), [(1.0, 0.5), (2.0, 0.5)]);
        assert_eq!(
            (curve(&story.evaluation.loss), curve(&story.evaluation.accuracy)),
            (vec![(1.0, 2.5)], vec![(1.0, 0.5)])
        );
        let Counts { steps, faults, rollbacks, checkpoints, bytes_pushed, .. } = story.counts;
        assert_eq!((steps, faults, rollbacks, checkpoints, bytes_pushed), (3, 1, 1, 1, 300.0));
        assert_eq!(story.staleness, [(1, 1), (2, 2)].into());
        assert_eq!(story.checkpoints.len(), 1);
        let told: Vec<_> = story.timeline.iter().map(|line| (line.step, line.text.as_str(), line.is_trouble)).collect();
        assert_eq!(
            told,
            [
                (2, "worker 1 was killed", true),
                (2, "checkpoint of step 2, 1.0 MiB in 0.50 s", false),
                (1, "back to step 1", true),
                (2, "worker 3 is slow: 60 ms a step, the others 10 ms", true),
            ]
        );
    }
}
