//! Checkpoints on disk: files of blocks, and a manifest that makes them one checkpoint.
//!
//! `checkpoints/step-N/` holds `blocks-*.safetensors`, each a run of blocks with their optimizer state, written by the
//! server that holds them, and `manifest.json`, written last, with every file's size and hash. Without a whole manifest,
//! or with a file that is not as it says, there is no checkpoint. Blocks do not depend on the number of servers, so any
//! number of them can take a checkpoint up.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use convoy_proto::{clock::Clock, ids::Step};

pub mod manifest;
pub mod part;

pub use manifest::CheckpointManifest;

/// The name of a manifest.
pub const MANIFEST: &str = "manifest.json";

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file that cannot be read or written.
    #[error("cannot {what} {}: {problem}", path.display())]
    Disk {
        /// `read` or `write`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        problem: io::Error,
    },
    /// A file that is not what was written.
    #[error("{} is damaged: {problem}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How that shows.
        problem: String,
    },
}

/// Where a run keeps its checkpoints.
pub fn root(run: &Path) -> PathBuf {
    run.join("checkpoints")
}

/// Where a run keeps the checkpoint of a commit: by step, as people count, and the commits of the next step that were
/// made, if some were.
pub fn directory(run: &Path, clock: Clock, commit: Step) -> PathBuf {
    let (step, more) = (clock.steps_after(commit), commit.0 % clock.commits_a_step());
    root(run).join(if more == 0 { format!("step-{step}") } else { format!("step-{step}-{more}") })
}

fn cannot<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CheckpointError + 'a {
    move |problem| CheckpointError::Disk { what, path: path.into(), problem }
}

fn damaged(path: &Path, problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged { path: path.into(), problem: problem.into() }
}

/// Writes a checkpoint's manifest, which makes it one: the files that it names are there, and on disk.
///
/// # Errors
/// The disk's, or a file is not there; then there is no manifest, or the old one.
pub fn complete(directory: &Path, manifest: &CheckpointManifest) -> Result<(), CheckpointError> {
    let path = directory.join(MANIFEST);
    for file in &manifest.files {
        let path = directory.join(&file.file);
        let bytes = fs::metadata(&path).map_err(cannot("read", &path))?.len();
        if bytes != file.bytes {
            return Err(damaged(&path, format!("{bytes} bytes, {} were written", file.bytes)));
        }
    }
    let staged = directory.join(".manifest.partial");
    let write = || {
        let mut file = File::create(&staged)?;
        file.write_all(manifest.to_text().as_bytes())?;
        file.sync_all()?;
        // The names of the files, before the name that counts.
        File::open(directory)?.sync_all()?;
        fs::rename(&staged, &path)?;
        File::open(directory)?.sync_all()?;
        directory.parent().map_or(Ok(()), |root| File::open(root)?.sync_all())
    };
    write().map_err(|problem| {
        let _ = fs::remove_file(&staged);
        cannot("write", &path)(problem)
    })
}

/// Reads a checkpoint's manifest; says nothing of the files that it names.
///
/// # Errors
/// There is none, or it is damaged.
pub fn open(directory: &Path) -> Result<CheckpointManifest, CheckpointError> {
    let path = directory.join(MANIFEST);
    let text = fs::read_to_string(&path).map_err(cannot("read", &path))?;
    CheckpointManifest::from_text(&text).map_err(|problem| damaged(&path, problem))
}

#[cfg(test)]
mod tests;
