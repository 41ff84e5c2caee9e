//! Where checkpoints are kept: a directory ([`Directory`]), or a bucket of an object store ([`Bucket`]).
//!
//! Checkpoints have names, `step-N`, and each has files. A file is written to the local disk first and then kept; a manifest
//! replaces an older one at once, which is all the atomicity that there has to be. Calls block, with a limit.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use convoy_proto::config::Config;

use super::{Bucket, CheckpointError, Directory, manifest::BlockFile};

/// A place for checkpoints.
pub trait Place: fmt::Debug + Send + Sync {
    /// What a person finds the place by: its path or its URL.
    fn root(&self) -> String;

    /// What a person finds a checkpoint by.
    fn of(&self, name: &str) -> String;

    /// The names of what may be checkpoints, in no order; none if the place is not there.
    ///
    /// # Errors
    /// The place cannot be read.
    fn names(&self) -> Result<Vec<String>, CheckpointError>;

    /// A checkpoint's files and their sizes; none if it is not there.
    ///
    /// # Errors
    /// The place cannot be read.
    fn files(&self, name: &str) -> Result<Vec<(String, u64)>, CheckpointError>;

    /// Where on the local disk a file is to be written that [`Place::keep`] then keeps; its directory is there.
    ///
    /// # Errors
    /// The disk's.
    fn staged(&self, name: &str, file: &str) -> Result<PathBuf, CheckpointError>;

    /// Keeps what was written to [`Place::staged`], and is on disk.
    ///
    /// # Errors
    /// The place's; then the file is not there.
    fn keep(&self, name: &str, file: &str) -> Result<(), CheckpointError>;

    /// Writes a small file as a whole, after all that was kept before it: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// The place's; then the old one is there, or none.
    fn seal(&self, name: &str, file: &str, text: &str) -> Result<(), CheckpointError>;

    /// A file's bytes.
    ///
    /// # Errors
    /// It is not there, or cannot be read.
    fn read(&self, name: &str, file: &str) -> Result<Vec<u8>, CheckpointError>;

    /// Checks that a file is the one that was written: by its hash where a disk may have changed it, by its size where
    /// it would have to be sent for that; who takes it hashes it anyway.
    ///
    /// # Errors
    /// It is another, is not there, or cannot be read.
    fn check(&self, name: &str, file: &BlockFile) -> Result<(), CheckpointError>;

    /// Brings a file to a path of the local disk, and to disk; by a link, if that is enough.
    ///
    /// # Errors
    /// It is not there, or a disk's.
    fn fetch(&self, name: &str, file: &str, to: &Path) -> Result<(), CheckpointError>;

    /// Gives a file another name; does nothing if it is not there.
    ///
    /// # Errors
    /// The place's.
    fn rename(&self, name: &str, from: &str, to: &str) -> Result<(), CheckpointError>;

    /// Removes some files of a checkpoint, in this order; those that are not there are none to care about.
    ///
    /// # Errors
    /// The place's.
    fn remove(&self, name: &str, files: &[String]) -> Result<(), CheckpointError>;

    /// Removes whatever there is of a checkpoint.
    ///
    /// # Errors
    /// The place's.
    fn remove_all(&self, name: &str) -> Result<(), CheckpointError>;

    /// Removes what was written to be kept and never was, once nobody writes any more.
    fn clear(&self);
}

/// Where a run keeps its checkpoints: in its directory, unless it is configured otherwise.
///
/// # Errors
/// The place that is configured makes no sense, or lacks what it needs.
pub fn of_run(config: &Config, run: &Path) -> Result<Arc<dyn Place>, CheckpointError> {
    match &config.checkpoint.to {
        None => Ok(Arc::new(Directory::new(run.join("checkpoints")))),
        Some(to) => Ok(at(to, run)?.below(&config.name)),
    }
}

/// A place, by its path or URL. `run` is where files on their way to a bucket are written first.
///
/// # Errors
/// It makes no sense, or lacks what it needs.
pub fn at(text: &str, run: &Path) -> Result<Root, CheckpointError> {
    match text.split_once("://") {
        None => Ok(Root::Directory(text.into())),
        Some(("file", path)) if path.starts_with('/') => Ok(Root::Directory(path.into())),
        Some(_) => Bucket::open(text, &run.join(".checkpoints")).map(Root::Bucket),
    }
}

/// What may hold the checkpoints of several runs.
#[derive(Debug)]
pub enum Root {
    /// A directory.
    Directory(PathBuf),
    /// A bucket, or a part of it.
    Bucket(Bucket),
}

impl Root {
    /// The place in it with a name.
    pub fn below(self, name: &str) -> Arc<dyn Place> {
        match self {
            Root::Directory(path) => Arc::new(Directory::new(path.join(name))),
            Root::Bucket(bucket) => Arc::new(bucket.below(name)),
        }
    }

    /// Itself as a place.
    pub fn itself(self) -> Arc<dyn Place> {
        match self {
            Root::Directory(path) => Arc::new(Directory::new(path)),
            Root::Bucket(bucket) => Arc::new(bucket),
        }
    }
}
