//! The directory that a run leaves behind.

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use convoy_server::accounts::{self, LEDGER};
use serde::Serialize;

use crate::outcome::Failure;

/// Holds what checkpoint of another run this one begins with, where it does.
const BEGINS_WITH: &str = "begins-with";
/// How often a run that somebody is at is looked at again.
const LOOKS: usize = 5;

/// A run's directory.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    metrics: File,
}

impl RunDir {
    /// Creates the directory of a new run below `root` and points `latest` to it. A run that begins with another's
    /// checkpoint is given it by path or URL: it is noted before there is a run to go on with.
    ///
    /// # Errors
    /// A run of this name exists, or the directory cannot be written.
    pub fn create(root: &str, name: &str, config: &str, begins_with: Option<&str>) -> Result<RunDir, Failure> {
        let root = Path::new(root);
        let path = root.join(name);
        let cannot = |what: &Path, problem: io::Error| {
            Failure::Environment(format!(
                "cannot write {}: {problem}; choose another place with --run-dir",
                what.display()
            ))
        };
        fs::create_dir_all(root).map_err(|problem| cannot(root, problem))?;
        match fs::create_dir(&path) {
            Err(problem) if problem.kind() == io::ErrorKind::AlreadyExists && is_begun(&path) => {}
            Err(problem) if problem.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Failure::Usage(format!(
                    "the run {} exists; choose another --name, or go on with it: launcher resume {name}",
                    path.display()
                )));
            }
            made => made.map_err(|problem| cannot(&path, problem))?,
        }
        fs::create_dir_all(path.join("logs")).map_err(|problem| cannot(&path, problem))?;
        let metrics = File::create(path.join("metrics.jsonl")).map_err(|problem| cannot(&path, problem))?;
        hold(&metrics, &path)?;
        let run = RunDir { path, metrics };
        let files = begins_with.map(|from| (BEGINS_WITH, from)).into_iter().chain([("config.toml", config)]);
        for (file, contents) in files {
            run.replace(file, contents.as_bytes(), true).map_err(|problem| cannot(&run.path, problem))?;
        }
        point_latest(root, name);
        Ok(run)
    }

    /// Opens the directory of a run to go on with it, configured anew.
    ///
    /// # Errors
    /// Another launcher is at it, or the directory cannot be written.
    pub fn reopen(path: &Path, config: &str) -> Result<RunDir, Failure> {
        let cannot = |problem: io::Error| Failure::Environment(format!("cannot write {}: {problem}", path.display()));
        let open = File::options().create(true).read(true).append(true).open(path.join("metrics.jsonl"));
        let metrics = open.map_err(cannot)?;
        hold(&metrics, path)?;
        accounts::end_line(&metrics).map_err(cannot)?;
        fs::create_dir_all(path.join("logs")).map_err(cannot)?;
        let run = RunDir { path: path.into(), metrics };
        run.replace("config.toml", config.as_bytes(), true).map_err(cannot)?;
        if let (Some(root), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) {
            point_latest(root, name);
        }
        Ok(run)
    }

    /// The checkpoint of another run that it begins with.
    pub fn begins_with(&self) -> Option<String> {
        fs::read_to_string(self.path.join(BEGINS_WITH)).ok()
    }

    /// The numbers of the faults on purpose that came already.
    pub fn fired(&self) -> BTreeSet<u64> {
        let text = fs::read_to_string(self.path.join("metrics.jsonl")).unwrap_or_default();
        let events = text.lines().filter(|line| line.contains("\"chaos\""));
        let events = events.filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        events.filter(|event| event["event"] == "chaos").filter_map(|event| event["nth"].as_u64()).collect()
    }

    /// The last era that left a trace.
    pub fn last_era(&self) -> u64 {
        let lines = ["metrics.jsonl", LEDGER].into_iter().flat_map(|name| last_lines(&self.path.join(name), 2));
        let eras = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok()?["era"].as_u64());
        eras.max().unwrap_or(0)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The log of a process.
    pub fn log(&self, process: &str) -> PathBuf {
        self.path.join("logs").join(format!("{process}.log"))
    }

    /// Appends a line to metrics.jsonl.
    ///
    /// # Errors
    /// The disk's.
    pub fn metric(&mut self, event: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.metrics.write_all(&line)
    }

    /// Replaces a JSON file as a whole: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// The disk's.
    pub fn replace_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.replacer().replace_json(name, value)
    }

    /// The same, of a file that is to outlive the machine.
    ///
    /// # Errors
    /// The disk's.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.replace(name, &text_of(value)?, true)
    }

    /// What replaces files of it, for another thread.
    pub fn replacer(&self) -> Replacer {
        Replacer(self.path.clone())
    }

    fn replace(&self, name: &str, contents: &[u8], lasts: bool) -> io::Result<()> {
        self.replacer().replace(name, contents, lasts)
    }
}

/// Replaces files of a run as a whole.
#[derive(Clone, Debug)]
pub struct Replacer(PathBuf);

impl Replacer {
    /// Of a directory below a run's.
    pub fn of(path: &Path) -> Replacer {
        Replacer(path.into())
    }

    /// A text file.
    ///
    /// # Errors
    /// The disk's.
    pub fn replace_text(&self, name: &str, text: &str) -> io::Result<()> {
        self.replace(name, text.as_bytes(), false)
    }

    /// A JSON file, as [`RunDir::replace_json`] does.
    ///
    /// # Errors
    /// The disk's.
    pub fn replace_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.replace(name, &text_of(value)?, false)
    }

    /// A file; if it is to last, one that outlives the machine, too.
    fn replace(&self, name: &str, contents: &[u8], lasts: bool) -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(&self.0)?;
        file.write_all(contents)?;
        readable(file.path())?;
        if lasts {
            file.as_file().sync_all()?;
        }
        file.persist(self.0.join(name)).map_err(|error| error.error)?;
        if lasts { File::open(&self.0)?.sync_all() } else { Ok(()) }
    }
}

fn text_of(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    Ok(text)
}

/// Whether a directory is of a run that ended before it had a configuration: nothing is lost with it.
fn is_begun(path: &Path) -> bool {
    let is_ours = |name: &std::ffi::OsStr| {
        let is_staged = name.to_str().is_some_and(|name| name.starts_with(".tmp-"));
        name == "logs" || name == "metrics.jsonl" || name == BEGINS_WITH || is_staged
    };
    let entries: Result<Vec<_>, _> = fs::read_dir(path).into_iter().flatten().collect();
    path.join("logs").is_dir() && entries.is_ok_and(|entries| entries.iter().all(|entry| is_ours(&entry.file_name())))
}

/// Keeps other launchers off a run for as long as its metrics are open.
fn hold(metrics: &File, run: &Path) -> Result<(), Failure> {
    // Who only looks whether somebody is there holds it for a moment.
    let mut held = metrics.try_lock();
    for _ in 0..LOOKS {
        if !matches!(held, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        held = metrics.try_lock();
    }
    match held {
        Err(TryLockError::WouldBlock) => {
            Err(Failure::Usage(format!("another launcher is at work on the run {}", run.display())))
        }
        // A file system without locks goes without.
        Err(TryLockError::Error(_)) | Ok(()) => Ok(()),
    }
}

/// Whether a launcher is at work on a run; where there are no locks, not known, and so not denied.
pub fn is_held(run: &Path) -> bool {
    File::open(run.join("metrics.jsonl")).is_ok_and(|metrics| metrics.try_lock_shared().is_err())
}

/// Temporary files are made for their owner only; what a run leaves behind is for everyone.
#[cfg(unix)]
fn readable(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Points `latest` to a run; a file system without links goes without.
fn point_latest(root: &Path, name: &str) {
    #[cfg(unix)]
    {
        let staged = root.join(format!(".latest-{}", std::process::id()));
        let moved = std::os::unix::fs::symlink(name, &staged).and_then(|()| fs::rename(&staged, root.join("latest")));
        if let Err(problem) = moved {
            tracing::debug!("no link to the latest run: {problem}");
            let _ = fs::remove_file(&staged);
        }
    }
    #[cfg(not(unix))]
    let _ = (root, name);
}

/// Finds a run by its directory, or by its name below `root`.
///
/// # Errors
/// There is none.
pub fn find(root: &str, run: &str) -> Result<PathBuf, Failure> {
    let below = Path::new(root).join(run);
    [PathBuf::from(run), below.clone()].into_iter().find(|path| path.join("config.toml").is_file()).ok_or_else(|| {
        Failure::Usage(format!("there is no run {run}, neither here nor as {} (see --run-dir)", below.display()))
    })
}

/// The last lines of a log that say something.
pub fn last_lines(log: &Path, count: usize) -> Vec<String> {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).map(String::from).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_leaves_its_files_and_is_found() {
        let root = tempfile::tempdir().unwrap();
        let root_text = root.path().to_str().unwrap();
        let mut run = RunDir::create(root_text, "one", "seed = 1\n", None).unwrap();
        run.metric(&serde_json::json!({"step": 1})).unwrap();
        run.replace_json("summary.json", &serde_json::json!({"status": "running"})).unwrap();
        run.replace_json("summary.json", &serde_json::json!({"status": "done"})).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("latest").join(name)).unwrap();
        assert_eq!(read("metrics.jsonl"), "{\"step\":1}\n");
        assert!(read("summary.json").contains("done"));
        assert_eq!(find(root_text, "one").unwrap(), root.path().join("one"));
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 4, "no temporary file is left");
        assert!(find(root_text, "two").unwrap_err().to_string().starts_with("there is no run two"));
        let again = RunDir::create(root_text, "one", "", None).unwrap_err();
        assert_eq!(again.exit_code(), 2);
        assert!(again.to_string().contains("exists; choose another --name"));
    }

    #[test]
    fn the_last_lines_are_those_that_say_something() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("l");
        fs::write(&log, "a\n\nb\nc\n \n").unwrap();
        assert_eq!(last_lines(&log, 2), ["b", "c"]);
        assert_eq!(last_lines(&dir.path().join("none"), 2), Vec::<String>::new());
    }
}
