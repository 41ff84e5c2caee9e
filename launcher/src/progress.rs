//! What a person sees while a run trains: a bar on a terminal, plain lines elsewhere. All on standard error.
//!
//! A thread of its own writes, so that a terminal that is held up holds up nothing else; what it cannot keep up with is
//! dropped.

use std::{
    io::{IsTerminal, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often plain lines come.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Lines that wait for the terminal.
const LINES_AHEAD: usize = 256;
/// How long the last lines may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to the display.
#[derive(Debug)]
pub struct Progress {
    lines: SyncSender<Line>,
    ended: Receiver<()>,
}

#[derive(Debug)]
enum Line {
    Say(String),
    Begin { samples: u64 },
    Step { done: u64, loss: f64, samples: u64 },
    End,
}

impl Progress {
    /// A display of so many steps.
    pub fn new(total: u64) -> Progress {
        let (lines, queue) = sync_channel(LINES_AHEAD);
        let (end, ended) = sync_channel(1);
        std::thread::spawn(move || {
            Screen::new(total).show(&queue);
            // Nobody waits if the patience has run out.
            let _ = end.send(());
        });
        Progress { lines, ended }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        self.send(Line::Say(line.into()));
    }

    /// Training begins now, after so many samples.
    pub fn begin(&self, samples: u64) {
        self.send(Line::Begin { samples });
    }

    /// So many steps are committed, of so many samples in all.
    pub fn step(&self, done: u64, loss: f64, samples: u64) {
        self.send(Line::Step { done, loss, samples });
    }

    /// Takes the bar away, when everything before has been shown.
    pub fn end(&self) {
        self.send(Line::End);
        let _ = self.ended.recv_timeout(PATIENCE);
    }

    fn send(&self, line: Line) {
        let _ = self.lines.try_send(line);
    }
}

struct Screen {
    total: u64,
    start: Instant,
    /// Samples before the start.
    before: u64,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines(Option<Instant>),
}

impl Screen {
    fn new(total: u64) -> Screen {
        let display = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = "{bar:30} step {pos}/{len}  {msg}  eta {eta}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            Display::Bar(bar)
        } else {
            Display::Lines(None)
        };
        Screen { total, start: Instant::now(), before: 0, display }
    }

    fn show(&mut self, lines: &Receiver<Line>) {
        while let Ok(line) = lines.recv() {
            match (line, &self.display) {
                (Line::Say(line), Display::Bar(bar)) => bar.suspend(|| print(&line)),
                (Line::Say(line), Display::Lines(_)) => print(&line),
                (Line::Begin { samples }, _) => self.begin(samples),
                (Line::Step { done, loss, samples }, _) => self.step(done, loss, samples),
                (Line::End, Display::Bar(bar)) => return bar.finish_and_clear(),
                (Line::End, Display::Lines(_)) => return,
            }
        }
    }

    fn begin(&mut self, samples: u64) {
        (self.start, self.before) = (Instant::now(), samples);
        if let Display::Bar(bar) = &self.display {
            bar.reset_eta();
        }
    }

    fn step(&mut self, done: u64, loss: f64, samples: u64) {
        let seconds = self.start.elapsed().as_secs_f64().max(1e-9);
        let rate = samples.saturating_sub(self.before) as f64 / seconds;
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_message(format!("loss {loss:.4}  {rate:.0} samples/s"));
                bar.set_position(done);
            }
            Display::Lines(last) => {
                if last.is_none_or(|last| last.elapsed() >= LINE_EVERY) || done == self.total {
                    *last = Some(Instant::now());
                    let eta = seconds / done as f64 * (self.total - done.min(self.total)) as f64;
                    print(&format!("step {done}/{}  loss {loss:.4}  {rate:.0} samples/s  eta {eta:.0} s", self.total));
                }
            }
        }
    }
}

fn print(line: &str) {
    // A closed standard error is no reason to stop training.
    let _ = writeln!(std::io::stderr(), "{line}");
}
