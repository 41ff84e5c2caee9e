//! Checkpoints: files of blocks, and a manifest that makes them one checkpoint.
//!
//! `step-N` holds `blocks-*.safetensors`, each a run of blocks with their optimizer state, written by the server that holds
//! them, and `manifest.json`, written last, with every file's size and hash. Without a whole manifest, or with a file that
//! is not as it says, there is no checkpoint. Blocks do not depend on the number of servers, so any number of them can take
//! a checkpoint up. Where they are kept is a [`place::Place`].

use std::{fmt, io, path::PathBuf};

use convoy_proto::{clock::Clock, ids::Step};

mod bucket;
mod directory;
pub mod manifest;
pub mod part;
pub mod place;

pub use bucket::Bucket;
pub use directory::Directory;
pub use manifest::CheckpointManifest;
pub use place::Place;

/// The name of a manifest.
pub const MANIFEST: &str = "manifest.json";

/// The system's errors for too many open files: ENFILE and EMFILE.
const NO_FILES_LEFT: [i32; 2] = [23, 24];

/// What is wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file that cannot be read or written.
    #[error("cannot {what} {}: {problem}", path.display())]
    Disk {
        /// `read`, `write` and so on.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        problem: io::Error,
    },
    /// An object that is not there.
    #[error("cannot read {object}: it is not there")]
    Missing {
        /// Its URL.
        object: String,
    },
    /// An object store that does not do what it is asked, so that nothing is known of what it holds.
    #[error("cannot {what} {object}: {problem}")]
    Unreachable {
        /// `read`, `write` and so on.
        what: &'static str,
        /// What of, as a URL.
        object: String,
        /// Why.
        problem: String,
    },
    /// A place that makes no sense, or that lacks what it needs.
    #[error("checkpoints cannot be kept at `{place}`: {problem}")]
    Place {
        /// As it was given.
        place: String,
        /// Why not.
        problem: String,
    },
    /// A file that is not what was written.
    #[error("{file} is damaged: {problem}")]
    Damaged {
        /// Its path or URL.
        file: String,
        /// How that shows.
        problem: String,
    },
}

impl CheckpointError {
    /// Whether nothing is known because a place does not answer: what it holds may well be whole.
    pub fn is_unreachable(&self) -> bool {
        use io::ErrorKind::{NotConnected, PermissionDenied, StaleNetworkFileHandle, TimedOut};
        match self {
            CheckpointError::Unreachable { .. } => true,
            CheckpointError::Disk { problem, .. } => {
                let is_away =
                    matches!(problem.kind(), NotConnected | PermissionDenied | StaleNetworkFileHandle | TimedOut);
                is_away || problem.raw_os_error().is_some_and(|code| NO_FILES_LEFT.contains(&code))
            }
            _ => false,
        }
    }
}

/// The name of a commit's checkpoint: by step, as people count, and the commits of the next step that were made, if some
/// were.
pub fn name_of(clock: Clock, commit: Step) -> String {
    let (step, more) = (clock.steps_after(commit), commit.0 % clock.commits_a_step());
    if more == 0 { format!("step-{step}") } else { format!("step-{step}-{more}") }
}

fn damaged(file: impl fmt::Display, problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged { file: file.to_string(), problem: problem.into() }
}

/// Writes a checkpoint's manifest, which makes it one: the files that it names are there, and will stay.
///
/// # Errors
/// The place's, or a file is not there; then there is no manifest, or the old one.
pub fn complete(place: &dyn Place, name: &str, manifest: &CheckpointManifest) -> Result<(), CheckpointError> {
    let there = place.files(name)?;
    for file in &manifest.files {
        let found = there.iter().find(|(name, _)| *name == file.file);
        let (_, bytes) = found.ok_or_else(|| damaged(place.of(name), format!("{} is not there", file.file)))?;
        file.compare(*bytes, None)
            .map_err(|problem| damaged(format_args!("{}/{}", place.of(name), file.file), problem))?;
    }
    place.seal(name, MANIFEST, &manifest.to_text())
}

/// Reads a checkpoint's manifest; says nothing of the files that it names.
///
/// # Errors
/// There is none, or it is damaged.
pub fn open(place: &dyn Place, name: &str) -> Result<CheckpointManifest, CheckpointError> {
    let damaged = |problem| damaged(format_args!("{}/{MANIFEST}", place.of(name)), problem);
    let text = String::from_utf8(place.read(name, MANIFEST)?).map_err(|problem| damaged(problem.to_string()))?;
    CheckpointManifest::from_text(&text).map_err(damaged)
}

#[cfg(test)]
mod tests;
