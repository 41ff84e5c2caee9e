//! `launcher show`: one run, from what it left behind.

use std::fmt::Write;

use serde_json::{Value, json};

use super::record::Record;
use crate::{
    args::{Places, ShowRunArgs},
    cli,
    outcome::Failure,
    table::{Row, cell_text, table},
};

/// Lines of the timeline, the last.
const EVENTS: usize = 20;
/// What a summary counts when something went wrong, and what that is called.
const TROUBLE: [(&str, &str); 9] = [
    ("faults", "faults"),
    ("restarts", "restarts"),
    ("rollbacks", "roll-backs"),
    ("takeovers", "take-overs"),
    ("resumes", "resumes"),
    ("skipped_steps", "skipped steps"),
    ("dropped_slices", "dropped slices"),
    ("lost_updates", "lost updates"),
    ("failed_checkpoints", "failed checkpoints"),
];

/// Prints what a run is, came to, and went through.
///
/// # Errors
/// There is no such run.
pub fn show(args: &ShowRunArgs, places: &Places) -> Result<(), Failure> {
    let run = Record::find(places.root(), places.meant(&args.run)?)?;
    if args.json {
        let mut summary = run.summary.clone();
        if let Value::Object(summary) = &mut summary {
            summary.insert("status".into(), run.status.as_str().into());
        }
        return cli::say(json!(summary));
    }
    cli::print(described(&run, &run.events()))
}

fn described(run: &Record, events: &[Value]) -> String {
    let text = |path: &[&str]| cell_text(&run.field(path));
    let mut lines = vec![format!("{}: {}", run.path.display(), standing(run, events))];
    if let Some(error) = run.summary["error"].as_str() {
        lines.push(format!("  {error}"));
    }
    if run.summary.is_object() {
        lines.push(format!(
            "  {} on {}, mode {}, seed {}, batch {} in {} slices, {} parameters",
            text(&["task"]),
            text(&["data"]),
            text(&["mode"]),
            text(&["seed"]),
            text(&["batch_size"]),
            text(&["slices"]),
            text(&["parameters"])
        ));
        lines.push(format!(
            "  {} steps, {} epochs, {} samples in {} s, {} samples/s",
            text(&["steps"]),
            text(&["epochs"]),
            text(&["samples"]),
            text(&["wall_seconds"]),
            text(&["samples_per_second"])
        ));
        let scores = [("loss", "eval"), ("accuracy", "eval"), ("perplexity", "eval")];
        let scores = scores.iter().filter(|(name, of)| run.summary[*of][*name].is_number());
        let scores: Vec<_> = scores.map(|(name, of)| format!("{name} {}", text(&[*of, *name]))).collect();
        if !scores.is_empty() {
            lines.push(format!("  held-out {}", scores.join("  ")));
        }
        let trouble = TROUBLE.iter().filter(|(key, _)| run.summary[*key].as_u64().is_some_and(|count| count > 0));
        let trouble: Vec<_> = trouble.map(|(key, name)| format!("{} {name}", text(&[*key]))).collect();
        if !trouble.is_empty() {
            lines.push(format!("  {}", trouble.join(", ")));
        }
        lines.push(match &run.summary["exact"] {
            Value::Bool(true) => format!("  exact, parameters {}", text(&["params_sha256"])),
            why => format!("  not exact: {}", cell_text(why)),
        });
    }
    let mut text = lines.join("\n") + "\n";
    for (of, rows) in [("workers", members(run, "workers")), ("servers", members(run, "servers"))] {
        if !rows.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{of}\n{}", table(&rows));
        }
    }
    let timeline = timeline(events);
    if !timeline.is_empty() {
        let _ = write!(text, "\nwhat happened\n{}\n", timeline.join("\n"));
    }
    text
}

/// Where it stands, and what can be done.
fn standing(run: &Record, events: &[Value]) -> String {
    let last = events.iter().rev().find_map(|event| event["step"].as_u64());
    match (run.status.as_str(), last) {
        ("lost", last) => {
            let at = last.map_or("before its first step".into(), |step| format!("after step {step}"));
            format!("lost {at}: its launcher is gone without a word. `launcher resume {}` goes on with it", run.name)
        }
        ("unreadable", _) => {
            format!("its {} is no summary: the disk, or somebody, changed it", run.path.join("summary.json").display())
        }
        ("running", Some(step)) => format!("running, step {step}"),
        ("stopped", _) => format!("stopped. `launcher resume {}` goes on with it", run.name),
        (status, _) => {
            let code = run.summary["exit_code"].as_u64().map(|code| format!(", exit code {code}"));
            format!("{status}{}", code.unwrap_or_default())
        }
    }
}

fn members(run: &Record, of: &str) -> Vec<Row> {
    let mib = |member: &Value, key: &str| member[key].as_f64().map(|bytes| bytes / f64::from(1 << 20));
    let row = |member: &Value| match of {
        "workers" => {
            let mut row: Row = ["rank", "host", "device", "slices", "samples", "restarts"]
                .map(|key| (key, member[key].clone()))
                .into();
            row.push(("mib_pushed", mib(member, "bytes_pushed").into()));
            row.push(("mib_pulled", mib(member, "bytes_pulled").into()));
            let seconds = &member["seconds"];
            for (name, key) in [
                ("data_s", "data"),
                ("compute_s", "compute"),
                ("push_s", "push"),
                ("wait_s", "wait"),
                ("pull_s", "pull"),
            ] {
                row.push((name, seconds[key].clone()));
            }
            row
        }
        _ => ["rank", "shard", "address", "blocks", "restarts"].map(|key| (key, member[key].clone())).into(),
    };
    run.summary[of].as_array().into_iter().flatten().map(row).collect()
}

/// What happened beside steps and evaluations, with the step that was made last.
fn timeline(events: &[Value]) -> Vec<String> {
    let (mut lines, mut step) = (Vec::new(), 0);
    for event in events {
        let kind = event["event"].as_str().unwrap_or_default();
        if kind == "step" {
            step = event["step"].as_u64().unwrap_or(step);
        }
        if matches!(kind, "step" | "eval" | "phase" | "pulse" | "") {
            continue;
        }
        let said = event.as_object().into_iter().flatten();
        let said =
            said.filter(|(key, value)| !matches!(key.as_str(), "event" | "era" | "step" | "time") && !value.is_null());
        let said: Vec<_> = said.map(|(key, value)| format!("{key} {}", cell_text(value))).collect();
        lines.push(format!("  step {step}: {kind}  {}", said.join(", ")).trim_end().to_string());
    }
    lines.split_off(lines.len().saturating_sub(EVENTS))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn run(status: &str, summary: Value) -> Record {
        let (path, name) = ("runs/r".into(), "r".into());
        Record { path, name, begun: SystemTime::UNIX_EPOCH, summary, status: status.into() }
    }

    #[test]
    fn a_run_that_was_killed_still_tells_what_happened() {
        let events = [
            json!({ "event": "joined", "member": "worker 1", "era": 0 }),
            json!({ "event": "step", "step": 7, "loss": 1.0 }),
            json!({ "event": "lost", "member": "worker 1", "era": 0 }),
        ];
        let summary = json!({
            "task": "mlp", "data": "digits", "faults": 1, "exact": "slices moved", "eval": { "loss": 0.25, "accuracy": 0.5 },
            "workers": [{ "rank": 0, "host": "h", "bytes_pushed": 2 << 20, "seconds": { "compute": 1.5 } }],
        });
        let text = described(&run("lost", summary), &events);
        for words in [
            "runs/r: lost after step 7: its launcher is gone without a word. `launcher resume r`",
            "mlp on digits",
            "held-out loss 0.2500  accuracy 0.5000",
            "1 faults",
            "not exact: slices moved",
            "rank  host",
            "step 0: joined  member worker 1",
            "step 7: lost  member worker 1",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let text = described(&run("lost", Value::Null), &[]);
        assert!(text.starts_with("runs/r: lost before its first step"), "{text}");
        let done = run("done", json!({ "exit_code": 0, "exact": true, "params_sha256": "ab" }));
        let text = described(&done, &events);
        assert!(text.starts_with("runs/r: done, exit code 0\n") && text.contains("exact, parameters ab"), "{text}");
    }
}
