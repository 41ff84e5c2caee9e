//! `launcher logs`: what the processes of a run said, together.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    args::{LogsArgs, Places},
    cli,
    outcome::Failure,
    run_dir,
};

/// How often somebody who follows looks again.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A process's log, read so far.
#[derive(Debug, Default)]
struct Log {
    at: u64,
    /// A line that is not ended yet.
    rest: Vec<u8>,
    /// When its last line was written, which lines without a time follow.
    time: String,
}

/// A line, and when it was written, as the line says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    time: String,
    process: String,
    text: String,
}

/// Prints what processes said, in the order of time, each line with its process ahead; with `--follow` goes on until the run
/// ends.
///
/// # Errors
/// There is no such run, or no such process in it.
pub fn logs(args: &LogsArgs, places: &Places) -> Result<(), Failure> {
    let run = run_dir::find(places.root(), places.meant(&args.run)?)?;
    let mut logs: BTreeMap<PathBuf, Log> = BTreeMap::new();
    loop {
        // Looked at first, so that what is said until then is read below.
        let is_held = run_dir::is_held(&run);
        let mut lines = Vec::new();
        for (file, process) in wanted(&run, args) {
            lines.extend(logs.entry(file.clone()).or_default().read(&file, &process));
        }
        // Of one process, lines stay in their order.
        lines.sort_by(|one, other| (&one.time, &one.process).cmp(&(&other.time, &other.process)));
        if logs.is_empty() && !(args.follow && is_held) {
            let whose = args.rank.map_or("no process".into(), |rank| format!("no process of rank {rank}"));
            return Err(Failure::Usage(format!("{whose} of the run {} has said anything", run.display())));
        }
        let width = logs.keys().filter_map(|file| Some(file.file_stem()?.len())).max().unwrap_or(0);
        let said: String = lines.iter().map(|line| format!("{:<width$} | {}\n", line.process, line.text)).collect();
        let is_read = cli::print_to_reader(said)?;
        if !(args.follow && is_held && is_read) {
            return Ok(());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Logs that are asked for, and whose they are.
fn wanted(run: &Path, args: &LogsArgs) -> Vec<(PathBuf, String)> {
    let files = fs::read_dir(run.join("logs")).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = files.filter_map(|file| Some((file.clone(), file.file_stem()?.to_str()?.to_string())));
    let is_wanted = |(_, process): &(PathBuf, String)| {
        let (role, rank) = process.rsplit_once('-').unwrap_or((process, ""));
        args.rank.is_none_or(|wanted| rank == wanted.to_string())
            && args.role.is_none_or(|wanted| role == wanted.name())
    };
    let mut wanted: Vec<_> = named.filter(is_wanted).collect();
    wanted.sort();
    wanted
}

impl Log {
    /// The lines that have come since.
    fn read(&mut self, file: &Path, process: &str) -> Vec<Line> {
        let mut bytes = std::mem::take(&mut self.rest);
        let read = File::open(file).and_then(|mut open| {
            open.seek(SeekFrom::Start(self.at))?;
            open.read_to_end(&mut bytes)
        });
        self.at += read.unwrap_or(0) as u64;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = bytes.split_off(end);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        text.lines().map(|line| self.line(process, line)).collect()
    }

    fn line(&mut self, process: &str, text: &str) -> Line {
        if let Some(time) = text.split_whitespace().next().filter(|word| is_time(word)) {
            self.time = time.into();
        }
        Line { time: self.time.clone(), process: process.into(), text: text.into() }
    }
}

/// Whether a word is a time as logs have it: `2026-11-26T20:06:20.545123Z`.
fn is_time(word: &str) -> bool {
    word.len() >= 20
        && word.ends_with('Z')
        && word.as_bytes()[10] == b'T'
        && word.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_whole_and_know_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("worker-0.log");
        let mut out = File::create(&file).unwrap();
        write!(out, "2026-11-26T20:06:20.545123Z  INFO one\nthread panicked\n2026-11-26T20:06:21.0000").unwrap();
        let mut log = Log::default();
        let lines = log.read(&file, "worker-0");
        assert_eq!(lines.iter().map(|line| line.time.as_str()).collect::<Vec<_>>(), ["2026-11-26T20:06:20.545123Z"; 2]);
        assert_eq!(lines[1].text, "thread panicked");
        writeln!(out, "00Z  INFO two").unwrap();
        let lines = log.read(&file, "worker-0");
        assert_eq!((lines.len(), lines[0].text.as_str()), (1, "2026-11-26T20:06:21.000000Z  INFO two"));
        assert!(log.read(&file, "worker-0").is_empty());
        assert!(!is_time("error:") && !is_time(""));
    }
}
