//! The live view in a terminal: below the lines that stay, redrawn as the run goes on.
//!
//! Keys are read one by one, but the terminal is otherwise left as it is: Ctrl-C stays a signal, and what others print is no
//! harm. However the process ends, but for a kill, the terminal is as it was.

use std::{
    io::{self, IsTerminal, Stdout, Write},
    os::fd::AsFd,
    path::Path,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal},
    termios::{self, LocalFlags, SetArg, Termios},
};
use ratatui::{
    Terminal, TerminalOptions, Viewport,
    backend::CrosstermBackend,
    crossterm::{
        ExecutableCommand,
        cursor::Show,
        event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    },
    text::{Line, Span},
    widgets::{Paragraph, Widget},
};

use super::follow::{Follower, Seen};
use crate::{
    args::{Places, WatchArgs},
    cli,
    outcome::Failure,
    run_dir, settings,
    train::pulse::time,
};

mod screen;

pub use screen::Keys;

/// How often the view is drawn anew.
const EVERY: Duration = Duration::from_millis(400);
/// How long a look for keys may take.
pub const LOOK: Duration = Duration::from_millis(50);

/// The terminal as it was, while a view has changed it, and whether none may any more.
static BEFORE: Mutex<(Option<Termios>, bool)> = Mutex::new((None, false));
static HOOK: Once = Once::new();

/// A view of a run.
pub struct View {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    follower: Follower,
    keys: Keys,
    /// Workers and servers that there are to be.
    members: (usize, usize),
    lines: u16,
    drawn: Option<Instant>,
    /// Whether somebody else had the terminal since it was drawn.
    was_away: bool,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("follower", &self.follower).finish_non_exhaustive()
    }
}

/// Whether a person looks at a terminal that can do what a view needs, and the terminal is this process's.
pub fn is_here() -> bool {
    let dumb = settings::terminal().is_none_or(|kind| kind == "dumb" || kind.is_empty());
    let all = io::stdin().is_terminal() && io::stdout().is_terminal() && io::stderr().is_terminal();
    all && !dumb && is_foreground()
}

/// Whether the terminal gives this process its keys: a job in the background that reads is stopped.
fn is_foreground() -> bool {
    nix::unistd::tcgetpgrp(io::stdin()).is_ok_and(|group| group == nix::unistd::getpgrp())
}

impl View {
    /// Opens a view of a run that is to have so many workers and servers.
    ///
    /// # Errors
    /// The terminal does not do what is needed.
    pub fn open(run: &Path, members: (usize, usize), keys: Keys) -> io::Result<View> {
        let mut follower = Follower::new(run);
        let lines = wanted(&follower.look(), members)?;
        take()?;
        let terminal = inline(lines).inspect_err(|_| give_back())?;
        Ok(View { terminal, follower, keys, members, lines, drawn: None, was_away: false })
    }

    /// A line that stays, above the view.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        if !self.is_ours() {
            // A job in the background may write, but not more than that.
            return writeln!(io::stderr(), "{text}");
        }
        let width = self.terminal.size()?.width.max(1);
        let lines: Vec<Line<'_>> = text.lines().flat_map(|line| wrapped(line, width.into())).map(Line::raw).collect();
        let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        self.terminal.insert_before(height, |buffer| Paragraph::new(lines).render(buffer.area, buffer))
    }

    /// Whether the terminal is this process's; if it was another's meanwhile, the view begins anew where the cursor is.
    fn is_ours(&mut self) -> bool {
        if !is_foreground() {
            self.was_away = true;
            return false;
        }
        if std::mem::take(&mut self.was_away)
            && let Ok(terminal) = take().and_then(|()| inline(self.lines))
        {
            self.terminal = terminal;
        }
        true
    }

    /// Draws the view, if that is due.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self) -> io::Result<Option<Seen>> {
        if self.drawn.is_some_and(|drawn| drawn.elapsed() < EVERY) || !self.is_ours() {
            return Ok(None);
        }
        // A shell that had the terminal meanwhile may have set it otherwise.
        take()?;
        let seen = self.follower.look();
        let lines = wanted(&seen, self.members)?;
        if lines > self.lines {
            self.terminal.clear()?;
            // The new one begins where the old one did.
            let top = self.terminal.get_frame().area().as_position();
            self.terminal.set_cursor_position(top)?;
            self.terminal = inline(lines)?;
            self.lines = lines;
        }
        let keys = self.keys;
        self.terminal.draw(|frame| screen::draw(frame, &seen, (time(), keys)))?;
        self.drawn = Some(Instant::now());
        Ok(Some(seen))
    }

    /// Whether somebody wants to leave the view; waits a moment for keys.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn is_left(&mut self, patience: Duration) -> io::Result<bool> {
        if !is_foreground() {
            thread::sleep(patience);
            return Ok(false);
        }
        while event::poll(patience)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press && matches!(key.code, KeyCode::Char('q' | 'Q')) => {
                    return Ok(true);
                }
                // While the terminal says where its cursor is, Ctrl-C is a key.
                Event::Key(key) if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) => {
                    let _ = nix::sys::signal::raise(Signal::SIGINT);
                }
                Event::Resize(..) => self.drawn = None,
                _ => {}
            }
        }
        Ok(false)
    }

    /// Takes the view off the terminal.
    pub fn close(mut self) {
        if self.is_ours() {
            let _ = self.terminal.clear();
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        give_back();
    }
}

/// Lines for a run on this terminal, the shell's among them left alone.
fn wanted(seen: &Seen, members: (usize, usize)) -> io::Result<u16> {
    let (_, rows) = ratatui::crossterm::terminal::size()?;
    Ok(screen::height(seen, members, rows.saturating_sub(1)))
}

fn inline(lines: u16) -> io::Result<Terminal<CrosstermBackend<Stdout>>> {
    let options = TerminalOptions { viewport: Viewport::Inline(lines) };
    Terminal::with_options(CrosstermBackend::new(io::stdout()), options)
}

/// Takes keys one by one, without showing them.
fn take() -> io::Result<()> {
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            hook(panic);
        }));
    });
    let stdin = io::stdin();
    let mut mode = termios::tcgetattr(stdin.as_fd())?;
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    if before.1 {
        return Err(io::Error::other("the view has ended"));
    }
    before.0.get_or_insert_with(|| mode.clone());
    if mode.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO) {
        mode.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &mode)?;
    }
    Ok(())
}

/// Leaves the terminal as it was, for good.
pub fn end() {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
    give_back();
}

/// A line in as many as it takes.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let (mut lines, mut room) = (vec![String::new()], width);
    for character in line.chars() {
        let takes = Span::raw(character.to_string()).width();
        if takes > room {
            lines.push(String::new());
            room = width;
        }
        room = room.saturating_sub(takes);
        lines.iter_mut().last().into_iter().for_each(|last| last.push(character));
    }
    lines
}

/// Keeps this thread from being stopped when it writes to a terminal that has become another's.
pub fn heedless_of_others() {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTTOU);
    let _ = signals.thread_block();
}

/// Leaves the terminal as it was.
fn give_back() {
    let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).0.take() else { return };
    if is_foreground() {
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &before);
    }
    let _ = io::stdout().execute(Show);
    let _ = io::stdout().flush();
}

/// `launcher watch`: the view of a run that trains elsewhere on this machine, until that ends or somebody leaves.
///
/// # Errors
/// There is no such run, or no terminal.
pub fn watch(args: &WatchArgs, places: &Places) -> Result<(), Failure> {
    let run = run_dir::find(places.root(), places.meant(&args.run)?)?;
    if !is_here() {
        let problem = "a view needs a terminal; `launcher status` says the same once, `launcher logs -f` follows";
        return Err(Failure::Usage(problem.into()));
    }
    let broken = |problem: io::Error| Failure::Environment(format!("the terminal does not do: {problem}"));
    let mut view = View::open(&run, (0, 0), Keys::OfWatcher).map_err(broken)?;
    let interrupted = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = interrupted.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(broken)?;
    runtime.spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            told.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    });
    let mut last = None;
    while !interrupted.load(std::sync::atomic::Ordering::SeqCst) && !view.is_left(LOOK).map_err(broken)? {
        last = view.draw().map_err(broken)?.or(last);
        if last.as_ref().is_some_and(|seen| !seen.is_live) {
            break;
        }
    }
    view.close();
    last.map_or(Ok(()), |seen| cli::say(format_args!("{}: {}", seen.name, super::status::standing(&seen, time()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_stay_are_whole() {
        assert_eq!(wrapped("abcdef", 4), ["abcd", "ef"]);
        assert_eq!(wrapped("a好好b", 3), ["a好", "好b"]);
        assert_eq!((wrapped("", 4), wrapped("好", 1)), (vec![String::new()], vec![String::new(), "好".into()]));
    }
}
