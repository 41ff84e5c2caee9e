//! Checkpoints in a directory, each a directory of its own.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{CheckpointError, damaged, manifest::BlockFile, place::Place};

/// A directory of checkpoints.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Checkpoints below a directory, which need not be there yet.
    pub fn new(root: PathBuf) -> Directory {
        Directory { root }
    }

    fn path(&self, name: &str, file: &str) -> PathBuf {
        self.root.join(name).join(file)
    }
}

fn cannot<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CheckpointError + 'a {
    move |problem| CheckpointError::Disk { what, path: path.into(), problem }
}

/// What is not there is no problem.
fn unless_missing<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(problem) if problem.kind() == ErrorKind::NotFound => Ok(T::default()),
        result => result,
    }
}

/// The entries of a directory; none if it is not there.
fn entries(path: &Path) -> Result<Vec<fs::DirEntry>, CheckpointError> {
    let read = unless_missing(fs::read_dir(path).map(Some));
    let entries = read.and_then(|entries| entries.into_iter().flatten().collect());
    entries.map_err(cannot("read", path))
}

fn text_of(name: std::ffi::OsString) -> Option<String> {
    name.into_string().ok()
}

impl Place for Directory {
    fn root(&self) -> String {
        self.root.display().to_string()
    }

    fn of(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }

    fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let directories = entries(&self.root)?.into_iter().filter(|entry| entry.path().is_dir());
        Ok(directories.filter_map(|entry| text_of(entry.file_name())).collect())
    }

    fn files(&self, name: &str) -> Result<Vec<(String, u64)>, CheckpointError> {
        let size = |entry: &fs::DirEntry| fs::metadata(entry.path()).map_or(0, |about| about.len());
        let entries = entries(&self.root.join(name))?.into_iter();
        Ok(entries.filter_map(|entry| Some((text_of(entry.file_name())?, size(&entry)))).collect())
    }

    fn staged(&self, name: &str, file: &str) -> Result<PathBuf, CheckpointError> {
        let directory = self.root.join(name);
        fs::create_dir_all(&directory).map_err(cannot("write", &directory))?;
        Ok(directory.join(file))
    }

    fn keep(&self, _name: &str, _file: &str) -> Result<(), CheckpointError> {
        // It is written where it is kept.
        Ok(())
    }

    fn seal(&self, name: &str, file: &str, text: &str) -> Result<(), CheckpointError> {
        let (directory, path) = (self.root.join(name), self.path(name, file));
        let staged = self.path(name, ".manifest.partial");
        let write = || {
            let mut file = File::create(&staged)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            // The names of the files, before the name that counts.
            File::open(&directory)?.sync_all()?;
            fs::rename(&staged, &path)?;
            File::open(&directory)?.sync_all()?;
            File::open(&self.root)?.sync_all()
        };
        write().map_err(|problem| {
            let _ = fs::remove_file(&staged);
            cannot("write", &path)(problem)
        })
    }

    fn read(&self, name: &str, file: &str) -> Result<Vec<u8>, CheckpointError> {
        let path = self.path(name, file);
        fs::read(&path).map_err(cannot("read", &path))
    }

    fn check(&self, name: &str, file: &BlockFile) -> Result<(), CheckpointError> {
        let path = self.path(name, &file.file);
        let mut hash = Sha256::new();
        let copied = File::open(&path).and_then(|mut open| io::copy(&mut open, &mut hash));
        let bytes = copied.map_err(cannot("read", &path))?;
        file.compare(bytes, Some(&hash.finalize())).map_err(|problem| damaged(path.display(), problem))
    }

    fn fetch(&self, name: &str, file: &str, to: &Path) -> Result<(), CheckpointError> {
        let from = self.path(name, file);
        // It may be the same file, from an earlier try.
        unless_missing(fs::remove_file(to)).map_err(cannot("write", to))?;
        let copied = fs::hard_link(&from, to).or_else(|_| fs::copy(&from, to).map(drop));
        copied.map_err(cannot("read", &from))?;
        File::open(to).and_then(|file| file.sync_all()).map_err(cannot("write", to))
    }

    fn rename(&self, name: &str, from: &str, to: &str) -> Result<(), CheckpointError> {
        let from = self.path(name, from);
        unless_missing(fs::rename(&from, self.path(name, to))).map_err(cannot("rename", &from))
    }

    fn remove(&self, name: &str, files: &[String]) -> Result<(), CheckpointError> {
        files.iter().try_for_each(|file| {
            let path = self.path(name, file);
            unless_missing(fs::remove_file(&path)).map_err(cannot("remove", &path))
        })
    }

    fn remove_all(&self, name: &str) -> Result<(), CheckpointError> {
        let path = self.root.join(name);
        unless_missing(fs::remove_dir_all(&path)).map_err(cannot("remove", &path))
    }

    fn clear(&self) {}
}
