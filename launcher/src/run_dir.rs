//! The directory that a run leaves behind.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::outcome::Failure;

/// A run's directory.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    metrics: File,
}

impl RunDir {
    /// Creates the directory of a new run below `root` and points `latest` to it.
    ///
    /// # Errors
    /// A run of this name exists, or the directory cannot be written.
    pub fn create(root: &str, name: &str, config: &str) -> Result<RunDir, Failure> {
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
            Err(problem) if problem.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Failure::Usage(format!("the run {} exists; choose another --name", path.display())));
            }
            made => made.map_err(|problem| cannot(&path, problem))?,
        }
        fs::create_dir(path.join("logs")).map_err(|problem| cannot(&path, problem))?;
        fs::write(path.join("config.toml"), config).map_err(|problem| cannot(&path, problem))?;
        let metrics = File::create(path.join("metrics.jsonl")).map_err(|problem| cannot(&path, problem))?;
        point_latest(root, name);
        Ok(RunDir { path, metrics })
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
        let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(&self.path)?;
        serde_json::to_writer_pretty(&mut file, value)?;
        file.write_all(b"\n")?;
        readable(file.path())?;
        file.persist(self.path.join(name)).map(drop).map_err(|error| error.error)
    }
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
        let mut run = RunDir::create(root_text, "one", "seed = 1\n").unwrap();
        run.metric(&serde_json::json!({"step": 1})).unwrap();
        run.replace_json("summary.json", &serde_json::json!({"status": "running"})).unwrap();
        run.replace_json("summary.json", &serde_json::json!({"status": "done"})).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join("latest").join(name)).unwrap();
        assert_eq!(read("metrics.jsonl"), "{\"step\":1}\n");
        assert!(read("summary.json").contains("done"));
        assert_eq!(find(root_text, "one").unwrap(), root.path().join("one"));
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 4, "no temporary file is left");
        assert!(find(root_text, "two").unwrap_err().to_string().starts_with("there is no run two"));
        let again = RunDir::create(root_text, "one", "").unwrap_err();
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
