//! A thread beside the training, whose end is waited for, but not for ever: a disk or a network may never answer.

use std::{
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
    time::Duration,
};

/// How long an end may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Such a thread.
#[derive(Debug)]
pub struct Beside {
    name: &'static str,
    done: Receiver<()>,
}

impl Beside {
    /// Starts one.
    ///
    /// # Errors
    /// The system's.
    pub fn start(name: &'static str, work: impl FnOnce() + Send + 'static) -> io::Result<Beside> {
        let (running, done) = sync_channel(0);
        thread::Builder::new().name(name.into()).spawn(move || {
            work();
            drop(running);
        })?;
        Ok(Beside { name, done })
    }

    /// Waits for its end, which it was told to come to.
    pub fn end(&self) {
        if let Err(RecvTimeoutError::Timeout) = self.done.recv_timeout(PATIENCE) {
            tracing::warn!("the thread `{}` did not end within {PATIENCE:?} and is left alone", self.name);
        }
    }

    /// Waits for its end, however long that takes.
    pub fn wait(&self) {
        let _ = self.done.recv();
    }
}
