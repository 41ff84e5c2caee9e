//! What a person sees while a run trains: a bar on a terminal, plain lines elsewhere. All on standard error.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often plain lines come.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The display.
#[derive(Debug)]
pub struct Progress {
    total: u64,
    start: Option<Instant>,
    display: Display,
}

#[derive(Debug)]
enum Display {
    Bar(ProgressBar),
    Lines(Option<Instant>),
}

impl Progress {
    /// A display of so many steps.
    pub fn new(total: u64) -> Progress {
        let display = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = "{bar:30} step {pos}/{len}  {msg}  eta {eta}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            Display::Bar(bar)
        } else {
            Display::Lines(None)
        };
        Progress { total, start: None, display }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match &self.display {
            Display::Bar(bar) => bar.suspend(|| print(line)),
            Display::Lines(_) => print(line),
        }
    }

    /// The first step begins now.
    pub fn begin(&mut self) {
        self.start = Some(Instant::now());
        if let Display::Bar(bar) = &self.display {
            bar.reset_eta();
        }
    }

    /// So many steps are committed.
    pub fn step(&mut self, done: u64, loss: f64, samples: u64) {
        let seconds = self.start.map_or(0.0, |start| start.elapsed().as_secs_f64()).max(1e-9);
        let rate = samples as f64 / seconds;
        match &mut self.display {
            Display::Bar(bar) => {
                bar.set_position(done);
                bar.set_message(format!("loss {loss:.4}  {rate:.0} samples/s"));
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

    /// Takes the bar away.
    pub fn end(&self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn print(line: &str) {
    // A closed standard error is no reason to stop training.
    let _ = writeln!(std::io::stderr(), "{line}");
}
