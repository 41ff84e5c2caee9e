//! What a server is at, counted for people.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use convoy_proto::{messages::ShardVitals, vitals::Sampler};

/// The counts.
#[derive(Debug, Default)]
pub struct Busy {
    open_pushes: AtomicU32,
    work_nanos: AtomicU64,
}

/// A push that arrives, for as long as this lives.
#[derive(Debug)]
pub struct OpenPush<'a>(&'a Busy);

impl Drop for OpenPush<'_> {
    fn drop(&mut self) {
        self.0.open_pushes.fetch_sub(1, Relaxed);
    }
}

impl Busy {
    /// Counts that are told with heartbeats.
    pub fn watched() -> (Arc<Busy>, Sampler) {
        let busy = Arc::new(Busy::default());
        let looked_at = busy.clone();
        (busy, Sampler::start(move |vitals| vitals.shard = Some(looked_at.look())))
    }

    /// Counts the time that something takes.
    pub fn work<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.work_nanos.fetch_add(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), Relaxed);
        done
    }

    /// A push begins to arrive.
    pub fn open(&self) -> OpenPush<'_> {
        self.open_pushes.fetch_add(1, Relaxed);
        OpenPush(self)
    }

    /// What they are now.
    pub fn look(&self) -> ShardVitals {
        ShardVitals {
            open_pushes: self.open_pushes.load(Relaxed),
            work_seconds: self.work_nanos.load(Relaxed) as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushes_and_work_are_counted() {
        let busy = Busy::default();
        let (first, second) = (busy.open(), busy.open());
        assert_eq!(busy.work(|| 7), 7);
        assert!(busy.look().open_pushes == 2 && busy.look().work_seconds > 0.0);
        drop((first, second));
        assert_eq!(busy.look().open_pushes, 0);
    }
}
