//! Reads what a run writes, as it comes: its metrics.jsonl, its status.json, and how it ended.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    lines::{Come, Lines},
    live,
    story::Story,
};
use crate::{run_dir, runs::record::Record};

/// A run, read so far.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    lines: Lines,
    story: Story,
}

/// What there is to see of a run.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Whether a launcher is at work on it.
    pub is_live: bool,
    /// summary.json's fields, and, while it trains, what only matters now.
    pub status: Value,
    /// What happened.
    pub story: Story,
}

impl Seen {
    /// As one document.
    pub fn document(&self) -> Value {
        json!({ "name": self.name, "live": self.is_live, "status": self.status, "story": self.story })
    }
}

impl Follower {
    /// Nothing of a run is read yet.
    pub fn new(path: &Path) -> Follower {
        // `latest` may soon be another.
        let path = path.canonicalize().unwrap_or_else(|_| path.into());
        Follower { lines: Lines::new(&path, 0), path, story: Story::default() }
    }

    /// Reads what has come since.
    pub fn look(&mut self) -> Seen {
        // Looked at first, so that what is written until then is read below.
        let is_live = run_dir::is_held(&self.path);
        self.read_metrics();
        let (name, status) = status(&self.path, is_live);
        Seen { name, is_live, status, story: self.story.clone() }
    }

    fn read_metrics(&mut self) {
        let story = &mut self.story;
        self.lines.read(|come| match come {
            Come::Anew => *story = Story::default(),
            Come::Event(event) => story.add(&event),
        });
    }
}

/// A run's name, and where it stands: what its launcher wrote last, with the summary's word on how it ended.
fn status(path: &Path, is_live: bool) -> (String, Value) {
    let record = Record::read(path);
    let written = fs::read(path.join(live::FILE)).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let summary = Some(record.summary).filter(Value::is_object).unwrap_or_else(|| json!({}));
    let is_ended = summary["exit_code"].is_u64();
    let mut status = match written.filter(Value::is_object) {
        // A summary is older, unless it is the last one.
        Some(written) if is_live || !is_ended => written,
        // Rows keep what was known of members at the last.
        Some(written) => laid_over(written, &summary),
        None => summary,
    };
    status["status"] = record.status.into();
    if !is_live {
        quiet(&mut status);
    }
    (record.name, status)
}

/// Of a run at which nobody is at work, nothing is said of what goes on.
fn quiet(status: &mut Value) {
    let of_now = ["phase", "eta_seconds", "steps_per_second_now", "samples_per_second_now"];
    let of_rows = ["alive", "awaited", "heartbeat_age_seconds", "samples_per_second", "cores", "open_pushes"];
    let forget = |of: &mut Value, keys: &[&str]| {
        let there = of.as_object_mut().into_iter().flatten();
        there.filter(|(key, _)| keys.contains(&key.as_str())).for_each(|(_, value)| *value = Value::Null);
    };
    forget(status, &of_now);
    for rows in ["workers", "servers"] {
        let rows = status.get_mut(rows).and_then(Value::as_array_mut);
        rows.into_iter().flatten().for_each(|row| forget(row, &of_rows));
    }
}

/// Replaces what is in the fields of an object; of lists that are as long, row by row.
fn laid_over(mut below: Value, above: &Value) -> Value {
    for (key, value) in above.as_object().into_iter().flatten() {
        let is_row = |row: &Value| row.is_object();
        match (below[key].as_array_mut(), value.as_array()) {
            (Some(rows), Some(newer)) if rows.len() == newer.len() && rows.iter().all(is_row) => {
                for (row, newer) in rows.iter_mut().zip(newer) {
                    *row = laid_over(row.take(), newer);
                }
            }
            _ => below[key] = value.clone(),
        }
    }
    below
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::RunDir;

    #[test]
    fn a_run_is_read_as_it_grows() {
        let root = tempfile::tempdir().unwrap();
        let mut run = RunDir::create(root.path().to_str().unwrap(), "one", "", None).unwrap();
        run.metric(&json!({ "event": "step", "step": 1, "loss": 2.0 })).unwrap();
        let mut follower = Follower::new(&root.path().join("latest"));
        let seen = follower.look();
        assert!(seen.is_live && seen.name == "one" && seen.status["status"] == "starting", "{seen:?}");
        run.replace_json("summary.json", &json!({ "status": "running", "workers": [] })).unwrap();
        run.replace_json(
            live::FILE,
            &json!({ "status": "running", "phase": "training", "workers": [{ "rank": 0, "lag": 2 }] }),
        )
        .unwrap();
        run.metric(&json!({ "event": "step", "step": 2, "loss": 1.0 })).unwrap();
        let seen = follower.look();
        assert_eq!((seen.story.step, &seen.status["workers"][0]["lag"]), (2, &json!(2)));
        let summary = json!({ "status": "failed", "exit_code": 4, "workers": [{ "rank": 0, "samples": 7 }] });
        run.replace_json("summary.json", &summary).unwrap();
        drop(run);
        let seen = follower.look();
        assert_eq!((seen.is_live, &seen.status["status"]), (false, &json!("failed")));
        assert_eq!(seen.status["workers"][0], json!({ "rank": 0, "lag": 2, "samples": 7 }));
        assert_eq!(seen.document()["story"]["loss"], json!([[1.0, 2.0], [2.0, 1.0]]));
        // As after kill -9: what was written last is newer than the summary.
        std::fs::write(root.path().join("one/summary.json"), "{\"status\":\"running\",\"steps\":0}").unwrap();
        std::fs::write(root.path().join("one/status.json"), "{\"status\":\"running\",\"steps\":7}").unwrap();
        let seen = follower.look();
        assert_eq!((&seen.status["status"], &seen.status["steps"]), (&json!("lost"), &json!(7)));
        for torn in ["[]", "7", "{", ""] {
            std::fs::write(root.path().join("one/status.json"), torn).unwrap();
            std::fs::write(root.path().join("one/summary.json"), torn).unwrap();
            let word = if torn.is_empty() { "lost" } else { "unreadable" };
            assert_eq!(follower.look().status, json!({ "status": word }), "{torn}");
        }
    }
}
