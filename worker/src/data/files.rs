//! Files that are read in place, one after the other as if they were one.
//!
//! Reads name their position, so nothing is held in memory and a file that shrinks under a run is an error and not the
//! signal that a memory map would raise (docs/adr/0009-positional-reads.md).

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::DataError;

/// Bytes up to which a fingerprint covers all; of more, it covers pieces.
const WHOLE: u64 = 256 << 20;
/// How many pieces, and how large each is.
const PIECES: u64 = 1024;
const PIECE: usize = 64 << 10;

/// A file, and where it begins.
#[derive(Debug)]
struct Placed {
    path: PathBuf,
    file: File,
    start: u64,
    len: u64,
}

/// Files, one after the other.
#[derive(Debug)]
pub struct Files {
    files: Vec<Placed>,
    len: u64,
}

impl Files {
    /// Opens files in this order.
    ///
    /// # Errors
    /// One that cannot be opened.
    pub fn open(paths: &[PathBuf]) -> Result<Files, DataError> {
        let mut opened = Files { files: Vec::new(), len: 0 };
        for path in paths {
            let file = open(path)?;
            let metadata = file.metadata().map_err(|problem| DataError::read(path, problem))?;
            let (start, len) = (opened.len, metadata.len());
            opened.files.push(Placed { path: path.clone(), file, start, len });
            opened.len += len;
        }
        Ok(opened)
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where an offset lies: the file, and the offset in it.
    pub fn locate(&self, offset: u64) -> (&Path, u64) {
        let after = self.files.partition_point(|file| file.start <= offset);
        self.files.get(after.saturating_sub(1)).map_or((Path::new(""), offset), |f| (&f.path, offset - f.start))
    }

    /// Fills `bytes` from an offset on.
    ///
    /// # Errors
    /// A file that fails, or has become shorter.
    pub fn read_at(&self, mut offset: u64, mut bytes: &mut [u8]) -> Result<(), DataError> {
        let mut at = self.files.partition_point(|file| file.start + file.len <= offset);
        while !bytes.is_empty() {
            let Some(file) = self.files.get(at) else {
                let path = self.files.last().map_or(Path::new(""), |file| &file.path);
                return Err(DataError::read(path, format!("it ends before offset {offset}")));
            };
            let inside = offset - file.start;
            let count = ((file.len - inside).min(bytes.len() as u64)) as usize;
            let (now, rest) = bytes.split_at_mut(count);
            file.file.read_exact_at(now, inside).map_err(|problem| DataError::read(&file.path, problem))?;
            (bytes, offset, at) = (rest, offset + count as u64, at + 1);
        }
        Ok(())
    }

    /// Adds lengths and contents to a hash: all of them up to 256 MiB, else 1024 evenly spaced pieces of 64 KiB.
    ///
    /// # Errors
    /// A file that fails.
    pub fn fingerprint(&self, hash: &mut Sha256) -> Result<(), DataError> {
        self.files.iter().for_each(|file| hash.update(file.len.to_le_bytes()));
        let mut piece = vec![0; PIECE];
        let pieces = if self.len <= WHOLE { self.len.div_ceil(PIECE as u64) } else { PIECES };
        for number in 0..pieces {
            let last = self.len.saturating_sub(PIECE as u64);
            let start = if self.len <= WHOLE { number * PIECE as u64 } else { last / (PIECES - 1) * number };
            let count = (self.len - start).min(PIECE as u64) as usize;
            self.read_at(start, &mut piece[..count])?;
            hash.update(&piece[..count]);
        }
        Ok(())
    }
}

/// Opens a file to be read more than once: no folder, and no pipe, which would be waited for.
///
/// # Errors
/// It is none, or cannot be opened.
pub fn open(path: &Path) -> Result<File, DataError> {
    let metadata = std::fs::metadata(path).map_err(|problem| DataError::read(path, problem))?;
    if !metadata.is_file() {
        return Err(DataError::read(path, "is no regular file"));
    }
    File::open(path).map_err(|problem| DataError::read(path, problem))
}

/// Refuses what is packed.
///
/// # Errors
/// The bytes are a gzip stream's.
pub fn check_unpacked(path: &Path, start: &[u8]) -> Result<(), DataError> {
    if start.starts_with(&[0x1f, 0x8b]) {
        return Err(DataError::read(path, "is gzipped; unpack it first"));
    }
    Ok(())
}

/// The files below a folder, sorted by path; those whose name begins with a dot are left out, and links to folders are
/// not followed.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|problem| DataError::read(&dir, problem))? {
            let entry = entry.map_err(|problem| DataError::read(&dir, problem))?;
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
            match (hidden, is_folder) {
                (false, true) => open.push(path),
                (false, false) if path.is_file() => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_across_files_and_says_where_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for (name, text) in [("b", "cde"), ("a", "ab"), ("sub/c", "f"), (".hidden", "x")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let paths = list(dir.path()).unwrap();
        let files = Files::open(&paths).unwrap();
        assert_eq!(files.len(), 6);
        let mut bytes = [0; 4];
        files.read_at(1, &mut bytes).unwrap();
        assert_eq!(&bytes, b"bcde");
        files.read_at(5, &mut bytes[..1]).unwrap();
        assert_eq!(bytes[0], b'f');
        assert_eq!(files.locate(3), (dir.path().join("b").as_path(), 1));
        assert!(files.read_at(4, &mut bytes).unwrap_err().to_string().contains("ends before offset 6"));
        std::fs::write(dir.path().join("b"), "").unwrap();
        assert!(files.read_at(1, &mut bytes).unwrap_err().to_string().contains("b: failed to fill whole buffer"));
    }

    #[test]
    fn a_fingerprint_follows_the_contents() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let hash = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let mut hash = Sha256::new();
            Files::open(std::slice::from_ref(&path)).unwrap().fingerprint(&mut hash).unwrap();
            hash.finalize()
        };
        assert_eq!(hash("one"), hash("one"));
        assert_ne!(hash("one"), hash("two"));
    }
}
