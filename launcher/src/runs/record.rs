//! What one run left behind.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::Value;

use crate::{outcome::Failure, run_dir, table::Row};

/// A run.
#[derive(Debug)]
pub struct Record {
    /// Where it is.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// When it was begun, or gone on with.
    pub begun: SystemTime,
    /// Its summary.json; null if there is none yet.
    pub summary: Value,
    /// Where it stands: what its summary says, or `lost` if that is no longer true.
    pub status: String,
}

impl Record {
    /// Reads a run.
    pub fn read(path: &Path) -> Record {
        let name = path.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_string()));
        let text = fs::read_to_string(path.join("summary.json")).unwrap_or_default();
        let summary: Value = serde_json::from_str(&text).unwrap_or_default();
        let is_broken = !text.trim().is_empty() && !summary.is_object();
        let status = match summary["status"].as_str() {
            _ if is_broken => "unreadable",
            Some("running") | None if !run_dir::is_held(path) => "lost",
            Some(status) => status,
            None => "starting",
        };
        let begun = fs::metadata(path.join("config.toml")).and_then(|there| there.modified());
        Record {
            path: path.into(),
            name: name.unwrap_or_else(|| path.display().to_string()),
            begun: begun.unwrap_or(SystemTime::UNIX_EPOCH),
            status: status.into(),
            summary,
        }
    }

    /// A run by its name below `root`, or its directory.
    ///
    /// # Errors
    /// There is none.
    pub fn find(root: &str, run: &str) -> Result<Record, Failure> {
        run_dir::find(root, run).map(|path| Record::read(&path))
    }

    /// All runs below a root, the newest last.
    pub fn all(root: &str) -> Vec<Record> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let is_run = |path: &PathBuf| !path.is_symlink() && path.join("config.toml").is_file();
        let mut runs: Vec<Record> =
            entries.map(|entry| entry.path()).filter(is_run).map(|path| Record::read(&path)).collect();
        runs.sort_by(|one, other| (one.begun, &one.name).cmp(&(other.begun, &other.name)));
        runs
    }

    /// What happened, in order. A line that was torn is left out.
    pub fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path.join("metrics.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Its configuration, by key.
    pub fn configuration(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.path.join("config.toml")).unwrap_or_default();
        let mut keys = BTreeMap::new();
        for (key, value) in text.parse::<toml::Table>().unwrap_or_default() {
            match value {
                toml::Value::Table(section) => {
                    keys.extend(section.into_iter().map(|(name, value)| (format!("{key}.{name}"), value.to_string())));
                }
                value => drop(keys.insert(key, value.to_string())),
            }
        }
        keys
    }

    /// A number or text of its summary, as far as it is there.
    pub fn field(&self, path: &[&str]) -> Value {
        path.iter().fold(&self.summary, |value, key| &value[*key]).clone()
    }

    /// What it came to.
    pub fn row(&self) -> Row {
        vec![
            ("name", self.name.as_str().into()),
            ("status", self.status.as_str().into()),
            ("task", self.field(&["task"])),
            ("mode", self.field(&["mode"])),
            ("workers", self.summary["workers"].as_array().map(Vec::len).into()),
            ("steps", self.field(&["steps"])),
            ("loss", self.field(&["eval", "loss"])),
            ("accuracy", self.field(&["eval", "accuracy"])),
            ("samples_per_second", self.field(&["samples_per_second"])),
            ("seconds", self.field(&["wall_seconds"])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::run_dir::RunDir;

    #[test]
    fn a_run_is_running_for_as_long_as_somebody_is_at_it() {
        let root = tempfile::tempdir().unwrap();
        let root_text = root.path().to_str().unwrap();
        let mut run = RunDir::create(root_text, "one", "seed = 1\n[optimizer]\nlr = 0.5\n", None).unwrap();
        assert_eq!(Record::find(root_text, "one").unwrap().status, "starting");
        run.replace_json("summary.json", &json!({ "status": "running", "eval": { "loss": 2.5 } })).unwrap();
        run.metric(&json!({ "event": "step", "step": 1 })).unwrap();
        let read = Record::find(root_text, "latest").unwrap();
        assert_eq!((read.name.as_str(), read.status.as_str()), ("one", "running"));
        assert_eq!((read.field(&["eval", "loss"]), read.field(&["no", "such"])), (2.5.into(), Value::Null));
        assert_eq!(read.events().len(), 1);
        assert_eq!(
            read.configuration(),
            [("optimizer.lr", "0.5"), ("seed", "1")].map(|(k, v)| (k.into(), v.into())).into()
        );
        drop(run);
        // As after kill -9.
        assert_eq!(Record::find(root_text, "one").unwrap().status, "lost");
        let run = RunDir::create(root_text, "two", "", None).unwrap();
        run.replace_json("summary.json", &json!({ "status": "done" })).unwrap();
        let names: Vec<_> = Record::all(root_text).into_iter().map(|run| (run.name, run.status)).collect();
        assert_eq!(names, [("one", "lost"), ("two", "done")].map(|(n, s)| (n.to_string(), s.to_string())));
    }
}
