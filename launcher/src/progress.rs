//! What a person sees while a run trains: a live view on a terminal, lines elsewhere. On standard error, but for the view.
//!
//! A thread of its own writes, so that a terminal that is held up holds up nothing else; what it cannot keep up with is
//! dropped.

use std::{
    io::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use convoy_proto::config::watch::{self, LogFormat};
use serde_json::{Value, json};

use crate::{
    outcome::Failure,
    train::pulse::time,
    watch::terminal::{self, Keys, View},
};

/// How often lines on progress come.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Lines that wait for the terminal.
const LINES_AHEAD: usize = 256;
/// How often it is looked whether there are any, where there is no view.
const LINES_LOOK: Duration = Duration::from_millis(200);
/// How long the last lines may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether lines are objects.
static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Characters of a line of an error: what data hold may be in it, whatever its length.
const LINE: usize = 1_000;

fn cut(line: &str) -> String {
    match line.char_indices().nth(LINE) {
        Some((end, _)) => format!("{}… ({} bytes in all)", &line[..end], line.len()),
        None => line.into(),
    }
}

/// What ends the program, as the other lines are.
pub fn last_words(failure: &Failure) -> String {
    let text = failure.to_string().lines().map(cut).collect::<Vec<_>>().join("\n");
    match IS_JSON.load(SeqCst) {
        true => json!({ "time": time(), "error": text, "exit_code": failure.exit_code() }).to_string(),
        false => format!("error: {text}"),
    }
}

/// What is shown, and how.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The run's directory.
    pub run: PathBuf,
    /// Its length.
    pub total: u64,
    /// Its workers and servers.
    pub members: (usize, usize),
    /// Whether a terminal gets a view.
    pub view: watch::View,
    /// What lines look like.
    pub format: LogFormat,
}

/// The way to the display.
#[derive(Debug)]
pub struct Progress {
    lines: SyncSender<Line>,
    /// Whether nothing more comes, also where there is no room to say so.
    is_over: Arc<AtomicBool>,
    ended: Receiver<()>,
}

#[derive(Debug)]
enum Line {
    Say(String),
    Tell(Value, String),
    Begin { at: Instant, samples: u64 },
    Step { at: Instant, done: u64, loss: f64, samples: u64 },
    End,
}

impl Progress {
    /// A display of a run.
    pub fn new(shown: Shown) -> Progress {
        let (lines, queue) = sync_channel(LINES_AHEAD);
        let (end, ended) = sync_channel(1);
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        IS_JSON.store(shown.format == LogFormat::Json, SeqCst);
        std::thread::spawn(move || {
            terminal::heedless_of_others();
            Screen::new(shown).show(&queue, &over);
            // Nobody waits if the patience has run out.
            let _ = end.send(());
        });
        Progress { lines, is_over, ended }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        self.send(Line::Say(line.into()));
    }

    /// The same, and what it says for programs.
    pub fn tell(&self, object: Value, line: &str) {
        self.send(Line::Tell(object, line.into()));
    }

    /// Training begins now, after so many samples.
    pub fn begin(&self, samples: u64) {
        self.send(Line::Begin { at: Instant::now(), samples });
    }

    /// So many steps are committed, of so many samples in all.
    pub fn step(&self, done: u64, loss: f64, samples: u64) {
        self.send(Line::Step { at: Instant::now(), done, loss, samples });
    }

    /// Takes the view away, when everything before has been shown.
    pub fn end(&self) {
        self.is_over.store(true, SeqCst);
        self.send(Line::End);
        let _ = self.ended.recv_timeout(PATIENCE);
        terminal::end();
    }

    fn send(&self, line: Line) {
        let _ = self.lines.try_send(line);
    }
}

struct Screen {
    shown: Shown,
    start: Instant,
    /// Samples before the start.
    before: u64,
    /// When a line on progress came last.
    last: Option<Instant>,
    view: Option<View>,
}

impl Screen {
    fn new(shown: Shown) -> Screen {
        let wants_view = shown.view == watch::View::Auto && shown.format == LogFormat::Text && terminal::is_here();
        // A terminal that does not say where its cursor is gets lines.
        let view = if wants_view { View::open(&shown.run, shown.members, Keys::OfRun).ok() } else { None };
        Screen { shown, start: Instant::now(), before: 0, last: None, view }
    }

    fn show(mut self, lines: &Receiver<Line>, is_over: &AtomicBool) {
        loop {
            let patience = if self.view.is_some() { terminal::LOOK } else { LINES_LOOK };
            match lines.recv_timeout(patience) {
                Ok(Line::Say(text)) => self.say(json!({ "message": text }), &text),
                Ok(Line::Tell(object, text)) => self.say(object, &text),
                Ok(Line::Begin { at, samples }) => (self.start, self.before) = (at, samples),
                Ok(Line::Step { at, done, loss, samples }) => self.step(at, (done, loss, samples)),
                Ok(Line::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if is_over.load(SeqCst) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.redraw();
        }
        self.view.into_iter().for_each(View::close);
    }

    fn say(&mut self, object: Value, text: &str) {
        let is_shown = self.view.as_mut().is_some_and(|view| view.say(text).is_ok());
        if !is_shown {
            self.print(object, text);
        }
    }

    fn step(&mut self, at: Instant, (done, loss, samples): (u64, f64, u64)) {
        let total = self.shown.total;
        if self.view.is_some() || !(self.last.is_none_or(|last| last.elapsed() >= LINE_EVERY) || done == total) {
            return;
        }
        self.last = Some(Instant::now());
        // The line may have waited for the terminal.
        let seconds = at.saturating_duration_since(self.start).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let rate = samples.saturating_sub(self.before) as f64 / seconds;
        let eta = seconds / done as f64 * (total - done.min(total)) as f64;
        self.print(
            json!({
                "step": done, "total_steps": total, "loss": loss, "samples_per_second": rate, "eta_seconds": eta,
            }),
            &format!("step {done}/{total}  loss {loss:.4}  {rate:.0} samples/s  eta {eta:.0} s"),
        );
    }

    /// Draws the view anew, or gives it up: because somebody wants to, or the terminal is gone.
    fn redraw(&mut self) {
        let Some(view) = &mut self.view else { return };
        match view.is_left(Duration::ZERO).and_then(|is_left| view.draw().map(|_| is_left)) {
            Ok(false) => {}
            Ok(true) => {
                self.view.take().into_iter().for_each(View::close);
                let text = "the run goes on; `launcher watch` shows this view again";
                self.say(json!({ "message": text }), text);
            }
            Err(_) => self.view = None,
        }
    }

    fn print(&self, mut object: Value, text: &str) {
        let line = match self.shown.format {
            LogFormat::Text => text.to_string(),
            LogFormat::Json => {
                object["time"] = time().into();
                object.to_string()
            }
        };
        // A closed standard error is no reason to stop training.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
