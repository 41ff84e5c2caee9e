//! Lines of a file that grows, as they come.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde_json::Value;

/// A run's metrics.jsonl, read so far.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    at: u64,
    /// A line that is not ended yet.
    rest: Vec<u8>,
}

/// What comes.
#[derive(Debug)]
pub enum Come {
    /// Somebody began the file anew: what came before is void.
    Anew,
    /// An event. A line that was torn when its writer died is none.
    Event(Value),
}

/// Bytes that are read at once.
const CHUNK: usize = 1 << 18;

impl Lines {
    /// Nothing of a run's metrics is read yet, or so many bytes of them.
    pub fn new(run: &Path, at: u64) -> Lines {
        Lines { path: run.join("metrics.jsonl"), at, rest: Vec::new() }
    }

    /// How many bytes are read, lines that are not ended left out.
    pub fn at(&self) -> u64 {
        self.at - self.rest.len() as u64
    }

    /// Reads what has come since, however much that is, a part at a time. What cannot be read now is read another time.
    pub fn read(&mut self, mut take: impl FnMut(Come)) {
        let Ok(mut file) = File::open(&self.path) else { return };
        if file.metadata().is_ok_and(|there| there.len() < self.at) {
            (self.at, self.rest) = (0, Vec::new());
            take(Come::Anew);
        }
        if file.seek(SeekFrom::Start(self.at)).is_err() {
            return;
        }
        let mut chunk = vec![0; CHUNK];
        while let Ok(read @ 1..) = file.read(&mut chunk) {
            self.at += read as u64;
            self.rest.extend_from_slice(&chunk[..read]);
            let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { continue };
            let lines = self.rest[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.filter_map(|line| serde_json::from_slice(line).ok()).for_each(|event| take(Come::Event(event)));
            self.rest.drain(..=end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    /// Steps that came, and `anew`.
    fn come(lines: &mut Lines) -> String {
        let mut told = String::new();
        lines.read(|come| match come {
            Come::Anew => told += "anew ",
            Come::Event(event) => told += &format!("{} ", event["step"]),
        });
        told
    }

    #[test]
    fn lines_come_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut lines = Lines::new(dir.path(), 0);
        assert_eq!(come(&mut lines), "", "there is no file");
        let mut file = File::create(&path).unwrap();
        write!(file, "{{\"step\":1}}\n{{\"step\":2}}\n{{\"st").unwrap();
        assert_eq!((come(&mut lines).as_str(), lines.at()), ("1 2 ", 22));
        write!(file, "ep\":3}}\nrubbish\n").unwrap();
        assert_eq!(come(&mut lines), "3 ");
        assert_eq!(come(&mut Lines::new(dir.path(), 22)), "3 ");
        fs::write(&path, "{\"step\":1}\n").unwrap();
        assert_eq!(come(&mut lines), "anew 1 ");
        let long = "x".repeat(CHUNK * 2);
        fs::write(&path, format!("{{\"step\":8,\"x\":\"{long}\"}}\n{{\"step\":9}}\n")).unwrap();
        assert_eq!(come(&mut Lines::new(dir.path(), 0)), "8 9 ");
    }
}
