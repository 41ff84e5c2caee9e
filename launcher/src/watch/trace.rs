//! `--trace FILE`: where all processes of a run spend their time, as a file that Perfetto and chrome://tracing open.
//!
//! Each process is a process there, each of its tracks a thread; an arrow goes from a worker's exchange to what each server
//! did for it. Events are written as they come, so the file can be opened also if the launcher was killed.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

use convoy_proto::{
    config::Config,
    ids::Role,
    process,
    trace::{self, Span, SpanId},
};
use serde_json::{Value, json};

use super::beside::Beside;
use crate::outcome::Failure;

/// How often the launcher's own spans are written.
const EVERY: Duration = Duration::from_millis(500);
/// What processes have told that is not written yet; what comes beyond that is left out.
const AHEAD: usize = 256;

/// Which process spans are of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Its place.
    pub role: Role,
    /// Its place.
    pub rank: u32,
    /// Its number on its machine.
    pub pid: u32,
    /// Its machine.
    pub host: String,
}

/// Spans of a process, and how many more it had no room for.
#[derive(Debug)]
pub struct Told {
    /// Which process.
    pub source: Source,
    /// The spans.
    pub spans: Vec<Span>,
    /// How many were lost.
    pub dropped: u64,
}

/// Something that takes spans.
pub trait Takes: Send {
    /// The run begins.
    ///
    /// # Errors
    /// As `add`.
    fn begin(&mut self) -> io::Result<()>;

    /// Takes some.
    ///
    /// # Errors
    /// They cannot be kept, and neither can others.
    fn add(&mut self, told: &Told) -> io::Result<()>;

    /// Writes, or sends, what it has.
    ///
    /// # Errors
    /// As `add`.
    fn flush(&mut self) -> io::Result<()>;

    /// There are no more.
    ///
    /// # Errors
    /// As `add`.
    fn end(&mut self) -> io::Result<()>;
}

enum Word {
    Told(Told),
    End,
}

/// Where spans of other processes go. Clones share it.
#[derive(Clone)]
pub struct Sink {
    words: SyncSender<Word>,
    /// Spans for which there was no room.
    lost: Arc<AtomicU64>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl Sink {
    /// Takes spans; a trace that is behind goes without, and says how many it lacks.
    pub fn tell(&self, told: Told) {
        let lost = self.lost.swap(0, SeqCst);
        let told = Told { dropped: told.dropped + lost, ..told };
        let all = told.dropped + told.spans.len() as u64;
        if self.words.try_send(Word::Told(told)).is_err() {
            self.lost.fetch_add(all, SeqCst);
        }
    }
}

/// A trace that is being written, until it is dropped.
#[derive(Debug)]
pub struct Trace {
    sink: Sink,
    thread: Beside,
}

/// Those who are to take a run's trace.
pub struct Takers(Vec<Box<dyn Takes>>);

impl Takers {
    /// Those that a configuration asks for. Nothing is written yet.
    ///
    /// # Errors
    /// A file that cannot be written, or an address that is none.
    pub fn of_run(config: &Config) -> Result<Takers, Failure> {
        let mut takers: Vec<Box<dyn Takes>> = Vec::new();
        if let Some(file) = &config.watch.trace {
            takers.push(Box::new(Events::open(Path::new(file))?));
        }
        if let Some(url) = &config.watch.otlp {
            takers.push(collector(url, config.run_id())?);
        }
        Ok(Takers(takers))
    }

    /// Begins to trace a run; nothing if nobody takes it.
    ///
    /// # Errors
    /// There are no threads.
    pub fn begin(self, run: &str) -> Result<Option<Trace>, Failure> {
        if self.0.is_empty() {
            return Ok(None);
        }
        trace::begin(run, 0xff_ffff);
        let (sink, words) = sync_channel(AHEAD);
        let cannot = |problem| Failure::Environment(format!("cannot start a thread: {problem}"));
        let thread = Beside::start("trace", move || gather(self.0, &words)).map_err(cannot)?;
        Ok(Some(Trace { sink: Sink { words: sink, lost: Arc::default() }, thread }))
    }
}

impl Trace {
    /// Where spans of other processes go.
    pub fn sink(&self) -> Sink {
        self.sink.clone()
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // If there is no room, the thread is stuck, and is left alone below.
        let _ = self.sink.words.try_send(Word::End);
        self.thread.end();
    }
}

#[cfg(feature = "otlp")]
fn collector(url: &str, run: &str) -> Result<Box<dyn Takes>, Failure> {
    Ok(Box::new(super::otlp::Collector::open(url, run)?))
}

#[cfg(not(feature = "otlp"))]
fn collector(url: &str, _run: &str) -> Result<Box<dyn Takes>, Failure> {
    let problem = "this build does not speak OTLP; rebuild with `cargo build --release --features otlp`";
    Err(Failure::Usage(format!("--otlp {url}: {problem}")))
}

/// Hands what processes tell, and the launcher's own spans, to all who take them, until it is the end. Who fails is left out.
fn gather(mut takers: Vec<Box<dyn Takes>>, words: &Receiver<Word>) {
    let launcher = Source { role: Role::Launcher, rank: 0, pid: std::process::id(), host: process::host_name() };
    let mut all = |act: &dyn Fn(&mut dyn Takes) -> io::Result<()>| {
        takers.retain_mut(|taker| {
            let done = act(&mut **taker);
            done.inspect_err(|problem| tracing::warn!("the trace ends here: {problem}")).is_ok()
        });
    };
    all(&|taker| taker.begin());
    loop {
        let is_over = match words.recv_timeout(EVERY) {
            Ok(Word::Told(told)) => {
                all(&|taker| taker.add(&told));
                false
            }
            Err(RecvTimeoutError::Timeout) => false,
            Ok(Word::End) | Err(RecvTimeoutError::Disconnected) => true,
        };
        let (spans, dropped) = trace::take(usize::MAX);
        let own = Told { source: launcher.clone(), spans, dropped };
        all(&|taker| taker.add(&own));
        if is_over {
            return all(&|taker| taker.end());
        }
        all(&|taker| taker.flush());
    }
}

/// A file of events.
struct Events {
    out: BufWriter<File>,
    /// Numbers of processes: those of several machines may be the same, and of 32 bits there are enough here.
    processes: HashMap<Source, u32>,
    /// Tracks that have a name.
    tracks: HashSet<(u32, u32)>,
    count: u64,
}

impl Events {
    /// Opens a file; what is in it stays until the run begins.
    ///
    /// # Errors
    /// It cannot be written.
    fn open(file: &Path) -> Result<Events, Failure> {
        let cannot =
            |problem: io::Error| Failure::Environment(format!("--trace: cannot write {}: {problem}", file.display()));
        let file = File::options().create(true).write(true).truncate(false).open(file).map_err(cannot)?;
        let out = BufWriter::new(file);
        Ok(Events { out, processes: HashMap::new(), tracks: HashSet::new(), count: 0 })
    }

    /// The number of a process, which is told when it is new.
    fn number(&mut self, source: &Source) -> io::Result<u32> {
        if let Some(number) = self.processes.get(source) {
            return Ok(*number);
        }
        let number = self.processes.len() as u32 + 1;
        self.processes.insert(source.clone(), number);
        let Source { role, rank, pid, host } = source;
        let name = format!("{role} {rank} (process {pid} on {host})");
        // Launcher, servers, workers.
        let order = match role {
            Role::Launcher => 0,
            Role::Server => 1 + rank,
            Role::Worker => 5_000 + rank,
        };
        self.event(json!({ "ph": "M", "pid": number, "name": "process_name", "args": { "name": name } }))?;
        self.event(json!({ "ph": "M", "pid": number, "name": "process_sort_index", "args": { "sort_index": order } }))?;
        Ok(number)
    }

    fn event(&mut self, event: Value) -> io::Result<()> {
        let comma = if self.count == 0 { "\n" } else { ",\n" };
        self.count += 1;
        write!(self.out, "{comma}{event}")
    }
}

impl Takes for Events {
    fn begin(&mut self) -> io::Result<()> {
        self.out.get_ref().set_len(0)?;
        self.out.write_all(b"[")?;
        self.out.flush()
    }

    fn add(&mut self, Told { source, spans, dropped }: &Told) -> io::Result<()> {
        if spans.is_empty() && *dropped == 0 {
            return Ok(());
        }
        let pid = self.number(source)?;
        for span in spans {
            if self.tracks.insert((pid, span.track)) {
                let name = track(source.role, span.track);
                let args = json!({ "name": name });
                self.event(json!({ "ph": "M", "pid": pid, "tid": span.track, "name": "thread_name", "args": args }))?;
            }
            for event in events(pid, span) {
                self.event(event)?;
            }
        }
        if *dropped > 0 {
            let at = spans.last().map_or(0, |span| span.start_us);
            let name = format!("{dropped} spans were lost here");
            self.event(json!({ "ph": "i", "s": "p", "pid": pid, "tid": 0, "ts": at, "name": name }))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.write_all(b"\n]\n")?;
        self.out.flush()
    }
}

fn track(role: Role, track: u32) -> String {
    match (role, track) {
        (Role::Worker, convoy_worker::step::STEPS) => "steps".into(),
        (Role::Worker, convoy_worker::step::EXCHANGE) => "exchange".into(),
        (Role::Server, worker) => format!("for worker {worker}"),
        (Role::Launcher, 0) => "steps".into(),
        (_, track) => format!("track {track}"),
    }
}

/// A span, and the ends of arrows at it.
fn events(pid: u32, span: &Span) -> Vec<Value> {
    // Numbers of 64 bits are no numbers in JavaScript.
    let id = |SpanId(id): SpanId| format!("{id:#x}");
    let mut events = vec![json!({
        "ph": "X", "cat": "convoy", "name": span.name, "pid": pid, "tid": span.track, "ts": span.start_us,
        "dur": span.duration_us, "args": { "step": span.step, "span": id(span.id) },
    })];
    let arrow = |kind: &str, id: String| json!({ "ph": kind, "bp": "e", "cat": "call", "name": "call", "id": id, "pid": pid, "tid": span.track, "ts": span.start_us });
    if span.name == "exchange" {
        events.push(arrow("s", id(span.id)));
    }
    if let Some(parent) = span.parent.filter(|_| span.name == "push-pull") {
        events.push(arrow("f", id(parent)));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_has_a_track_for_each_process_and_arrows_between_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.json");
        let source = |role: Role, rank: u32, pid: u32| Source { role, rank, pid, host: "h".into() };
        let span = |id: u64, parent: Option<u64>, name: &str| Span {
            id: SpanId(id),
            parent: parent.map(SpanId),
            name: name.into(),
            track: 2,
            step: 7,
            start_us: 1_000,
            duration_us: 50,
        };
        std::fs::write(&file, "something older").unwrap();
        let events = Events::open(&file).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "something older", "until the run begins");
        let (sink, told) = sync_channel(9);
        for (source, span, dropped) in [
            (source(Role::Worker, 3, 70), span(5, None, "exchange"), 0),
            (source(Role::Server, 0, 70), span(9, Some(5), "push-pull"), 0),
            (source(Role::Worker, 3, 71), span(6, None, "data"), 4),
        ] {
            sink.send(Word::Told(Told { source, spans: vec![span], dropped })).unwrap();
        }
        drop(sink);
        gather(vec![Box::new(events)], &told);
        let all: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let of = |kind: &str| all.iter().filter(|event| event["ph"] == kind).collect::<Vec<_>>();
        let spans = of("X");
        assert!(spans.iter().all(|event| event["dur"] == 50 && event["args"]["step"] == 7));
        let mut pids: Vec<_> = spans.iter().map(|event| event["pid"].as_u64().unwrap()).collect();
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), 3, "whoever comes into a place is another process");
        assert_eq!((of("s")[0]["id"].as_str(), of("f")[0]["id"].as_str()), (Some("0x5"), Some("0x5")));
        let names: Vec<_> = of("M").iter().filter_map(|event| event["args"]["name"].as_str()).collect();
        assert!(names.contains(&"worker 3 (process 70 on h)") && names.contains(&"for worker 2"), "{names:?}");
        assert!(of("i")[0]["name"].as_str().unwrap().starts_with("4 spans"));
    }
}
