//! Where processes spend their time, as spans that a launcher gathers: nothing is noted unless a run is traced.
//!
//! Each process notes its own spans in a queue, and heartbeats carry them. A span knows the call that it belongs to: callers
//! put the id of their span into the metadata of a call, as W3C's Trace Context has it, and whoever answers takes it from
//! there. A queue that is full drops what comes, and counts it.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Spans that wait to be sent.
const AHEAD: usize = 1 << 14;
/// Spans that a heartbeat carries at most.
pub const A_HEARTBEAT: usize = 1 << 13;
/// The header, or metadata, of a call that names the caller's span.
pub const HEADER: &str = "traceparent";

static TRACE: OnceLock<String> = OnceLock::new();
static IS_ON: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU64 = AtomicU64::new(1);
static QUEUE: Mutex<Queue> = Mutex::new(Queue { spans: VecDeque::new(), dropped: 0 });

tokio::task_local! {
    static CALLER: SpanId;
}

/// A span's name among all of a run's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId(pub u64);

/// A time that a process spent on something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its id.
    pub id: SpanId,
    /// The span of the call that it answers, in another process.
    pub parent: Option<SpanId>,
    /// What was done.
    pub name: String,
    /// Which of the process's lines of work it belongs to: spans of one do not overlap.
    pub track: u32,
    /// The step that it was done for.
    pub step: u64,
    /// When it began, in microseconds since 1970.
    pub start_us: u64,
    /// How long it took.
    pub duration_us: u64,
}

struct Queue {
    spans: VecDeque<Span>,
    dropped: u64,
}

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes spans of a run from now on. The ids of this process's are its own: `who` is another number for each.
pub fn begin(run: &str, who: u64) {
    let _ = TRACE.set(crate::hex(&trace_id(run)));
    // 2^40 spans of each of 2^24 processes.
    NEXT.store((who << 40) + 1, Relaxed);
    IS_ON.store(true, Relaxed);
}

/// Whether spans are noted.
pub fn is_on() -> bool {
    IS_ON.load(Relaxed)
}

/// A span that goes on until it is dropped; nothing unless spans are noted.
#[derive(Debug)]
pub struct Open {
    id: SpanId,
    parent: Option<SpanId>,
    name: &'static str,
    track: u32,
    step: u64,
    start: Instant,
}

/// Begins a span on a track.
pub fn open(name: &'static str, track: u32, step: u64) -> Option<Open> {
    open_below(None, (name, track, step))
}

/// Begins a span that answers a call.
pub fn open_below(parent: Option<SpanId>, (name, track, step): (&'static str, u32, u64)) -> Option<Open> {
    is_on().then(|| Open { id: next(), parent, name, track, step, start: Instant::now() })
}

fn next() -> SpanId {
    SpanId(NEXT.fetch_add(1, Relaxed))
}

impl Open {
    /// Its id.
    pub fn id(&self) -> SpanId {
        self.id
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Open { id, parent, name, track, step, start } = *self;
        put(Span {
            id,
            parent,
            name: name.into(),
            track,
            step,
            start_us: unix_us(start),
            duration_us: us(start.elapsed()),
        });
    }
}

/// Times something, adds its seconds up, and notes it as a span.
pub fn timed<T>(seconds: &mut f64, span: (&str, u32, u64), work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    let took = start.elapsed();
    *seconds += took.as_secs_f64();
    past(span, start, took);
    done
}

/// Notes something that is over: from a moment on, for so long.
pub fn past((name, track, step): (&str, u32, u64), start: Instant, duration: Duration) {
    if is_on() {
        let (id, start_us, duration_us) = (next(), unix_us(start), us(duration));
        put(Span { id, parent: None, name: name.into(), track, step, start_us, duration_us });
    }
}

fn put(span: Span) {
    let mut queue = queue();
    if queue.spans.len() < AHEAD {
        queue.spans.push_back(span);
    } else {
        queue.dropped += 1;
    }
}

/// Takes spans that are noted, the oldest first, and how many were dropped since they were taken last.
pub fn take(most: usize) -> (Vec<Span>, u64) {
    if !is_on() {
        return (Vec::new(), 0);
    }
    let mut queue = queue();
    let most = most.min(queue.spans.len());
    (queue.spans.drain(..most).collect(), std::mem::take(&mut queue.dropped))
}

/// Counts spans that were taken and got lost.
pub fn lost(spans: u64) {
    if spans > 0 {
        queue().dropped += spans;
    }
}

/// Whether nothing waits to be sent.
pub fn is_empty() -> bool {
    queue().spans.is_empty()
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A moment in microseconds since 1970.
fn unix_us(moment: Instant) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    us(now.saturating_sub(moment.elapsed()))
}

/// Makes calls name a span as theirs.
pub async fn calling<T>(span: Option<SpanId>, work: impl Future<Output = T>) -> T {
    match span {
        Some(span) => CALLER.scope(span, work).await,
        None => work.await,
    }
}

/// The span that calls are made for here, as their header has it.
pub fn header() -> Option<String> {
    let SpanId(id) = CALLER.try_with(|caller| *caller).ok()?;
    Some(format!("00-{}-{id:016x}-01", TRACE.get()?))
}

/// The id of a run's trace.
pub fn trace_id(run: &str) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let digest: [u8; 32] = Sha256::digest(run).into();
    std::array::from_fn(|at| digest[at])
}

/// The span that a header names.
pub fn caller(header: &str) -> Option<SpanId> {
    let mut parts = header.split('-');
    let (version, _, id) = (parts.next()?, parts.next()?, parts.next()?);
    let id = u64::from_str_radix(id, 16).ok().filter(|id| *id > 0)?;
    (version == "00").then_some(SpanId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn spans_are_noted_once_somebody_wants_them() {
        assert!(open("before", 0, 1).is_none() && take(9) == (Vec::new(), 0));
        begin("run", 3);
        let span = open("compute", 1, 7).unwrap();
        let id = span.id();
        let shown = calling(Some(id), async { header() }).await.unwrap();
        assert_eq!((caller(&shown), header()), (Some(id), None));
        drop(span);
        drop(open_below(caller(&shown), ("receive", 2, 7)));
        past(("wait", 1, 7), Instant::now(), Duration::from_millis(5));
        let mut seconds = 0.0;
        assert_eq!(timed(&mut seconds, ("data", 1, 8), || 5), 5);
        assert!(seconds > 0.0);
        let (spans, dropped) = take(2);
        assert_eq!((spans.len(), dropped, spans[0].id, spans[0].name.as_str()), (2, 0, id, "compute"));
        assert_eq!((spans[1].parent, spans[1].step, id.0 >> 40), (Some(id), 7, 3));
        let rest = take(9).0;
        assert_eq!((rest[0].duration_us, rest[1].name.as_str(), rest.len()), (5_000, "data", 2));
        (0..=AHEAD).for_each(|_| past(("x", 0, 0), Instant::now(), Duration::ZERO));
        assert_eq!((take(1).1, take(1).1), (1, 0));
        for wrong in ["", "00", "00-a-0000-01", "01-a-1-01", "00-a-xyz-01"] {
            assert_eq!(caller(wrong), None, "{wrong}");
        }
    }
}
