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
            user: listen(SignalKind::user_defined1())?,
        })
    }

    /// The next request.
    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.interrupt.recv() => Request::Stop(SignalKind::interrupt().as_raw_value()),
            _ = self.terminate.recv() => Request::Stop(SignalKind::terminate().as_raw_value()),
            _ = self.user.recv() => Request::Save,
        }
    }
}
