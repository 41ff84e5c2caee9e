//! The runs that a dashboard shows, each read once however many look.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    runs::record::Record,
    table::object,
    watch::follow::{Follower, Seen},
};

/// What was read is new for so long.
const FRESH: Duration = Duration::from_millis(400);
/// Runs that are kept open at most; the one that nobody looked at for longest goes.
const OPEN: usize = 16;

/// A run as it was read last.
#[derive(Debug)]
struct Volume {
    follower: Follower,
    looked: Instant,
    seen: Arc<Seen>,
    /// As JSON.
    text: Arc<str>,
}

/// The runs below a root. Clones share what was read.
#[derive(Clone, Debug)]
pub struct Shelf {
    root: PathBuf,
    /// The run that the dashboard belongs to, if it belongs to one.
    own: Option<String>,
    open: Arc<Mutex<BTreeMap<String, Volume>>>,
}

impl Shelf {
    /// Of all runs below a root, one of which may be whose launcher shows them.
    pub fn new(root: &Path, own: Option<&str>) -> Shelf {
        Shelf { root: root.into(), own: own.map(String::from), open: Arc::default() }
    }

    /// All runs, the newest last, and which one is meant if none is named.
    pub fn list(&self, may_act: bool) -> Value {
        let runs = Record::all(&self.root.to_string_lossy());
        let newest = || runs.iter().rfind(|run| run.status == "running").or(runs.last()).map(|run| run.name.clone());
        let current = self.own.clone().or_else(newest);
        let rows: Vec<_> = runs.iter().map(|run| object(run.row())).collect();
        json!({ "runs": rows, "current": current, "may_act": may_act })
    }

    /// The directory of a run; only of one that is directly below the root.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
        Some(self.root.join(name)).filter(|path| is_name && !path.is_symlink() && path.join("config.toml").is_file())
    }

    /// What there is to see of a run, and the same as JSON; as it is now, or as it was a moment ago.
    pub fn look(&self, name: &str, is_urgent: bool) -> Option<(Arc<Seen>, Arc<str>)> {
        let path = self.path(name)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(volume) = open.get_mut(name) {
            if is_urgent || volume.looked.elapsed() > FRESH {
                volume.read();
            }
            return Some((volume.seen.clone(), volume.text.clone()));
        }
        if open.len() >= OPEN
            && let Some(oldest) = open.iter().min_by_key(|(_, volume)| volume.looked).map(|(name, _)| name.clone())
        {
            open.remove(&oldest);
        }
        let volume = Volume::open(&path);
        let read = (volume.seen.clone(), volume.text.clone());
        open.insert(name.into(), volume);
        Some(read)
    }

    /// The runs that train now: the dashboard's own, or all.
    pub fn live(&self) -> Vec<Arc<Seen>> {
        let names: Vec<String> = match &self.own {
            Some(own) => vec![own.clone()],
            None => {
                let runs = Record::all(&self.root.to_string_lossy());
                runs.into_iter()
                    .filter(|run| matches!(run.status.as_str(), "running" | "starting"))
                    .map(|run| run.name)
                    .collect()
            }
        };
        names.iter().filter_map(|name| self.look(name, false)).map(|(seen, _)| seen).collect()
    }
}

impl Volume {
    fn open(path: &Path) -> Volume {
        let mut follower = Follower::new(path);
        let seen = Arc::new(follower.look());
        Volume { follower, looked: Instant::now(), text: seen.document().to_string().into(), seen }
    }

    fn read(&mut self) {
        self.seen = Arc::new(self.follower.look());
        self.text = self.seen.document().to_string().into();
        self.looked = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::RunDir;

    #[test]
    fn only_runs_below_the_root_are_shown() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join("runs");
        let text = runs.to_str().unwrap();
        let one = RunDir::create(text, "one", "", None).unwrap();
        one.replace_json("summary.json", &json!({ "status": "running" })).unwrap();
        RunDir::create(text, "two", "", None).unwrap();
        std::fs::write(root.path().join("config.toml"), "").unwrap();
        let shelf = Shelf::new(&runs, None);
        assert_eq!(shelf.list(false)["current"], "one");
        assert_eq!(shelf.list(false)["runs"].as_array().map(Vec::len), Some(2));
        for name in ["", "..", ".", "../runs/one", "one/", "three", "latest", "latest/../one", "one\0"] {
            assert!(shelf.look(name, false).is_none(), "{name}");
        }
        let (seen, document) = shelf.look("one", true).unwrap();
        assert!(seen.is_live && document.contains("\"live\":true"), "{document}");
        assert_eq!(shelf.live().len(), 1);
        let own = Shelf::new(&runs, Some("two"));
        assert_eq!((own.list(true)["current"].as_str(), own.live().len()), (Some("two"), 1));
        for at in 0..OPEN + 4 {
            let name = format!("n{at}");
            RunDir::create(text, &name, "", None).unwrap();
            assert!(shelf.look(&name, false).is_some());
        }
        assert_eq!(shelf.open.lock().unwrap().len(), OPEN);
    }
}
