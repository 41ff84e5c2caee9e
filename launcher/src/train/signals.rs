//! Requests from a person or a scheduler: to stop, or to save.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::outcome::Failure;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To stop, by this signal.
    Stop(i32),
    /// To write a checkpoint.
    Save,
}

/// Requests, as they come.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is gone; nothing for who began the program with nohup.
    hang_up: Option<Signal>,
    user: Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn new() -> Result<Signals, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|problem| Failure::Environment(format!("cannot listen for signals: {problem}")))
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: if is_ignored(SignalKind::hangup()) { None } else { Some(listen(SignalKind::hangup())?) },
            user: listen(SignalKind::user_defined1())?,
        })
    }

    /// The next request.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.interrupt.recv() => Request::Stop(SignalKind::interrupt().as_raw_value()),
            _ = self.terminate.recv() => Request::Stop(SignalKind::terminate().as_raw_value()),
            _ = hung_up(&mut self.hang_up) => Request::Stop(SignalKind::hangup().as_raw_value()),
            _ = self.user.recv() => Request::Save,
        }
    }
}

async fn hung_up(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether whoever began this program had it ignore a signal.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (kind.as_raw_value() - 1) & 1 == 1
}
