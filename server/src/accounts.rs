//! `ledger.jsonl`: what each commit used of the data, from the pushes that made it.
//!
//! The server that holds the first shard writes it, a line a commit, and a line where it takes up an era. What an era
//! committed from the place on where a later one begins is void. Another copy of that shard writes another file,
//! `ledger-N.jsonl`; where one lacks commits because its writer died, the other has them. `launcher verify` reads all.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use convoy_proto::ids::{Era, ServerId, Step};
use serde::{Deserialize, Serialize};

use crate::core::kept::Used;

/// The name in the run's directory of the file that server 0 writes.
pub const LEDGER: &str = "ledger.jsonl";

/// The name of a server's file.
fn file_of(server: ServerId) -> String {
    if server == ServerId(0) { LEDGER.into() } else { format!("ledger-{server}.jsonl") }
}

/// All ledgers of a run, each in the words of one server.
///
/// # Errors
/// The disk's.
pub fn files(run: &Path) -> io::Result<Vec<PathBuf>> {
    let is_ledger = |name: &str| name == LEDGER || (name.starts_with("ledger-") && name.ends_with(".jsonl"));
    let entries = std::fs::read_dir(run)?.collect::<io::Result<Vec<_>>>()?;
    let ledgers = entries.iter().filter(|entry| entry.file_name().to_str().is_some_and(is_ledger));
    let mut ledgers: Vec<_> = ledgers.map(std::fs::DirEntry::path).collect();
    ledgers.sort();
    Ok(ledgers)
}

/// The server that wrote a ledger, by the file's name.
pub fn server_of(path: &Path) -> Option<ServerId> {
    match path.file_name()?.to_str()? {
        LEDGER => Some(ServerId(0)),
        name => Some(ServerId(name.strip_prefix("ledger-")?.strip_suffix(".jsonl")?.parse().ok()?)),
    }
}

/// Adds lines to a server's ledger in a run's directory that it wrote on another machine. What is none, such as a line that
/// was torn when its writer died, is left out.
///
/// # Errors
/// The disk's.
pub fn add_lines(run: &Path, server: ServerId, lines: &[u8]) -> io::Result<()> {
    let is_line = |line: &&[u8]| serde_json::from_slice::<Line>(line).is_ok();
    let mut whole = Vec::with_capacity(lines.len());
    for line in lines.split(|byte| *byte == b'\n').filter(is_line) {
        whole.extend_from_slice(line);
        whole.push(b'\n');
    }
    let mut file = File::options().read(true).append(true).create(true).open(run.join(file_of(server)))?;
    end_line(&file)?;
    file.write_all(&whole)
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A commit.
    Commit {
        /// In which era.
        era: u64,
        /// Its number, from 0.
        commit: u64,
        /// The first step whose data it used, as people count.
        step: u64,
        /// How many steps.
        steps: u64,
        /// The slices of each that it used, but for those without samples.
        slices: Vec<u32>,
    },
    /// An era begins.
    Era {
        /// Which.
        era: u64,
        /// The first commit that it makes.
        from: u64,
    },
}

impl Line {
    /// The line of a commit.
    pub fn of(era: Era, used: &Used) -> Line {
        let slices = used.slices.iter().map(|slice| slice.0).collect();
        Line::Commit { era: era.0, commit: used.commit.0, step: used.step, steps: used.steps, slices }
    }
}

/// Ends the last line of a file that is open for reading and appending, if it was torn when its writer died.
///
/// # Errors
/// The disk's.
pub fn end_line(mut file: &File) -> io::Result<()> {
    if file.metadata()?.len() == 0 {
        return Ok(());
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" { Ok(()) } else { file.write_all(b"\n") }
}

/// The file, open at its end.
#[derive(Debug)]
pub struct Accounts {
    path: PathBuf,
    file: File,
}

impl Accounts {
    /// Opens a server's ledger of a run; a line that was torn ends here.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(run: &Path, server: ServerId) -> io::Result<Accounts> {
        let path = run.join(file_of(server));
        let file = File::options().create(true).read(true).append(true).open(&path)?;
        end_line(&file)?;
        Ok(Accounts { path, file })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Notes that an era begins.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(&mut self, era: Era, from: Step) -> io::Result<()> {
        self.write(&Line::Era { era: era.0, from: from.0 })
    }

    /// Notes commits.
    ///
    /// # Errors
    /// The disk's.
    pub fn add(&mut self, era: Era, used: &[Used]) -> io::Result<()> {
        used.iter().try_for_each(|used| self.write(&Line::of(era, used)))
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.file.write_all(&text)
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::ids::SliceId;

    use super::*;

    #[test]
    fn lines_read_as_they_were_written_and_a_torn_one_ends() {
        let dir = tempfile::tempdir().unwrap();
        let used = Used { commit: Step(3), step: 6, steps: 2, slices: vec![SliceId(0), SliceId(2)] };
        let mut accounts = Accounts::open(dir.path(), ServerId(0)).unwrap();
        accounts.begin(Era(0), Step(3)).unwrap();
        accounts.add(Era(0), std::slice::from_ref(&used)).unwrap();
        accounts.file.write_all(b"{\"era\":0,\"com").unwrap();
        Accounts::open(dir.path(), ServerId(0)).unwrap().begin(Era(1), Step(3)).unwrap();
        let text = std::fs::read_to_string(dir.path().join(LEDGER)).unwrap();
        let lines: Vec<Option<Line>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
        let commit = Some(Line::of(Era(0), &used));
        let eras = [0, 1].map(|era| Some(Line::Era { era, from: 3 }));
        assert_eq!(lines, [eras[0].clone(), commit, None, eras[1].clone()]);
    }

    #[test]
    fn what_another_machine_wrote_is_added_but_for_what_was_torn() {
        let run = std::env::temp_dir().join(format!("convoy-accounts-{}", std::process::id()));
        std::fs::create_dir_all(&run).unwrap();
        let line = r#"{"era":0,"from":3}"#;
        add_lines(&run, ServerId(2), format!("{line}\n{{\"era\":0,\"co\nrubbish\n").as_bytes()).unwrap();
        add_lines(&run, ServerId(2), format!("{line}\n").as_bytes()).unwrap();
        let path = run.join("ledger-2.jsonl");
        assert_eq!((server_of(&path), server_of(&run.join("ledger-x.jsonl"))), (Some(ServerId(2)), None));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{line}\n{line}\n"));
        std::fs::remove_dir_all(&run).unwrap();
    }
}
