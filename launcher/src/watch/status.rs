//! `launcher status`: where a run stands now, from another terminal, or where it stood at the end.

use std::fmt::Write;

use serde_json::{Value, json};

use super::follow::{Follower, Seen};
use crate::{
    args::{Places, StatusArgs},
    cli,
    outcome::Failure,
    run_dir,
    table::{Row, cell_text, table},
    train::pulse::time,
};

/// Lines of what happened.
const EVENTS: usize = 8;

/// Prints where a run stands.
///
/// # Errors
/// There is no such run.
pub fn status(args: &StatusArgs, places: &Places) -> Result<(), Failure> {
    let seen = Follower::new(&run_dir::find(places.root(), places.meant(&args.run)?)?).look();
    if args.json {
        let mut status = seen.status;
        if let Value::Object(status) = &mut status {
            status.insert("live".into(), seen.is_live.into());
        }
        return cli::say(json!(status));
    }
    cli::print(described(&seen, time()))
}

fn described(seen: &Seen, now: f64) -> String {
    let status = &seen.status;
    let mut text = format!("{}: {}\n", seen.name, standing(seen, now));
    for (of, rows) in [("workers", workers(status)), ("servers", servers(status))] {
        if !rows.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{of}\n{}", table(&rows));
        }
    }
    let lines = &seen.story.timeline;
    if !lines.is_empty() {
        text += "\nwhat happened\n";
    }
    for line in lines.iter().skip(lines.len().saturating_sub(EVENTS)) {
        let ago = line.time.map(|time| format!("{} ago, ", span(now - time))).unwrap_or_default();
        let _ = writeln!(text, "  {ago}step {}: {}", line.step, line.text);
    }
    text
}

/// What goes on, in a line or two.
pub fn standing(seen: &Seen, now: f64) -> String {
    let status = &seen.status;
    let number = |key: &str| status[key].as_f64();
    let mut told = vec![cell_text(&status["status"])];
    match (status["total_steps"].as_u64(), number("steps")) {
        (Some(total), _) => {
            told.push(format!("step {} of {total}", seen.story.step.max(number("steps").unwrap_or(0.0) as u64)))
        }
        (None, Some(steps)) => told.push(format!("{steps} steps")),
        _ => {}
    }
    told.extend(seen.story.loss.last().map(|(_, loss)| format!("loss {loss:.4}")));
    if let Some(accuracy) = status["eval"]["accuracy"].as_f64() {
        told.push(format!("held-out accuracy {accuracy:.4}"));
    }
    let rate = if seen.is_live { number("samples_per_second_now") } else { None };
    told.extend(rate.or_else(|| number("samples_per_second")).map(|rate| format!("{rate:.0} samples/s")));
    if seen.is_live {
        told.extend(number("eta_seconds").map(|eta| format!("{} left", span(eta))));
        let age = number("time").map(|time| now - time).filter(|age| *age > 5.0);
        told.extend(age.map(|age| format!("its launcher was heard of {} ago", span(age))));
    }
    let mut text = told.join(", ");
    if matches!(status["status"].as_str(), Some("lost" | "stopped")) {
        text += &format!("\n  `launcher resume {}` goes on with it", seen.name);
    }
    if let Some(error) = status["error"].as_str() {
        text += &format!("\n  {error}");
    } else if let Some(fault) = status["last_fault"].as_str() {
        let ago = number("last_fault_time").map(|time| format!(" ({} ago)", span(now - time))).unwrap_or_default();
        text += &format!("\n  last fault: {fault}{ago}");
    }
    text
}

/// Seconds as people say them.
pub fn span(seconds: f64) -> String {
    match seconds.max(0.0).round() as u64 {
        s if s < 120 => format!("{s} s"),
        s if s < 7_200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h {:02} min", s / 3_600, s % 3_600 / 60),
        s => format!("{} days", s / 86_400),
    }
}

/// A word on a worker that a person should look at.
pub fn marks(row: &Value) -> String {
    let mut marks = Vec::new();
    match (row["alive"].as_bool(), row["awaited"].as_bool(), row["retired"].as_bool()) {
        (Some(false), Some(true), _) => marks.push("starts again"),
        (_, _, Some(true)) => marks.push("let go"),
        (Some(false), ..) => marks.push("gone"),
        _ => {}
    }
    if row["straggler"] == true {
        marks.push("straggler");
    }
    if row["last_fault"].is_string() {
        marks.push("had a fault");
    }
    marks.join(", ")
}

fn milliseconds(row: &Value, key: &str) -> Value {
    row["step_seconds"][key].as_f64().map(|seconds| seconds * 1e3).into()
}

fn mib(row: &Value, key: &str) -> Value {
    row[key].as_f64().map(|bytes| (bytes / f64::from(1 << 20)).round()).into()
}

fn workers(status: &Value) -> Vec<Row> {
    let row = |row: &Value| -> Row {
        let mut cells: Row = ["rank", "host", "device", "step", "lag"].map(|key| (key, row[key].clone())).into();
        let phases = [
            ("data_ms", "data"),
            ("compute_ms", "compute"),
            ("push_ms", "push"),
            ("wait_ms", "wait"),
            ("pull_ms", "pull"),
        ];
        cells.extend(phases.map(|(name, phase)| (name, milliseconds(row, phase))));
        cells.push(("samples_s", row["samples_per_second"].clone()));
        cells.push(("cores", row["cores"].clone()));
        cells.push(("mib", mib(row, "memory_bytes")));
        cells.push(("heard_s", row["heartbeat_age_seconds"].clone()));
        cells.push(("restarts", row["restarts"].clone()));
        cells.push(("note", marks(row).into()));
        cells
    };
    status["workers"].as_array().into_iter().flatten().map(row).collect()
}

fn servers(status: &Value) -> Vec<Row> {
    let row = |row: &Value| -> Row {
        let mut cells: Row = ["rank", "shard", "address", "blocks", "open_pushes", "work_seconds", "cores"]
            .map(|key| (key, row[key].clone()))
            .into();
        cells.push(("mib", mib(row, "memory_bytes")));
        cells.push(("heard_s", row["heartbeat_age_seconds"].clone()));
        cells.push(("restarts", row["restarts"].clone()));
        cells.push(("note", marks(row).into()));
        cells
    };
    status["servers"].as_array().into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::story::Story;

    #[test]
    fn a_run_says_how_it_goes_and_who_is_slow() {
        let mut story = Story::default();
        story.add(&json!({ "event": "step", "step": 40, "loss": 0.5 }));
        story.add(&json!({ "event": "fault", "member": "worker 1", "what": "worker 1 was killed", "time": 990.0 }));
        let status = json!({
            "status": "running", "steps": 39, "total_steps": 100, "eta_seconds": 90.4, "samples_per_second_now": 640.2,
            "time": 999.0, "last_fault": "worker 1 was killed", "last_fault_time": 990.0, "eval": { "accuracy": 0.75 },
            "workers": [
                { "rank": 0, "host": "h", "device": "cpu", "alive": true, "straggler": true, "lag": 0,
                  "step_seconds": { "compute": 0.0205 } },
                { "rank": 1, "host": "h", "device": "cpu", "alive": false, "awaited": true, "last_fault": "worker 1 was killed" },
            ],
        });
        let seen = Seen { name: "r".into(), is_live: true, status, story };
        let text = described(&seen, 1_000.0);
        for words in [
            "r: running, step 40 of 100, loss 0.5000, held-out accuracy 0.7500, 640 samples/s, 90 s left\n",
            "  last fault: worker 1 was killed (10 s ago)\n",
            "straggler",
            "starts again, had a fault",
            "20.50",
            "  10 s ago, step 40: worker 1 was killed\n",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(described(&seen, 1_060.0).contains("its launcher was heard of 61 s ago"));
        assert_eq!(
            [0.4, 119.0, 300.0, 8_000.0, 400_000.0].map(span),
            ["0 s", "119 s", "5 min", "2 h 13 min", "4 days"]
        );
    }
}
