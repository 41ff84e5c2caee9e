//! What processes use of their machines, sampled beside the work and sent with heartbeats.
//!
//! A thread of its own looks about once a second, so that no step and no heartbeat ever waits for a driver. What cannot be
//! found out is left out.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// How often a process looks at itself.
const EVERY: Duration = Duration::from_secs(1);

/// What a process uses of its machine, and what a server is at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Vitals {
    /// Cores that it kept busy since the sample before.
    pub cores: f64,
    /// Its resident memory.
    pub memory_bytes: u64,
    /// The GPU that it computes on.
    pub gpu: Option<GpuVitals>,
    /// What a server is at.
    pub shard: Option<ShardVitals>,
}

/// What goes on on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuVitals {
    /// Share of the time in which it computed anything, 0 to 1.
    pub utilisation: f64,
    /// Memory in use, by whomever.
    pub memory_used_bytes: u64,
    /// How much there is.
    pub memory_bytes: u64,
}

/// What a server is at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ShardVitals {
    /// Pushes that have begun to arrive and are not all there.
    pub open_pushes: u32,
    /// Seconds that calls spent on adding up and on updates, those of calls at once added up, since the process began.
    pub work_seconds: f64,
}

/// The newest sample of this process. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Sampler(Arc<Mutex<Option<Vitals>>>);

impl Sampler {
    /// Looks at this process from now on, until nobody has the sampler any more; `add` adds what only a role knows.
    pub fn start(mut add: impl FnMut(&mut Vitals) + Send + 'static) -> Sampler {
        let sampler = Sampler::default();
        let newest = Arc::downgrade(&sampler.0);
        let looks = move || {
            let mut system = System::new();
            while let Some(place) = newest.upgrade() {
                let mut vitals = look(&mut system);
                add(&mut vitals);
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(vitals);
                drop(place);
                thread::sleep(EVERY);
            }
        };
        // Without a thread there are no samples, and all else is as it was.
        let _ = thread::Builder::new().name("vitals".into()).spawn(looks);
        sampler
    }

    /// The newest sample, once there is one.
    pub fn newest(&self) -> Option<Vitals> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn look(system: &mut System) -> Vitals {
    let pid = Pid::from_u32(std::process::id());
    let wanted = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
    system.process(pid).map_or_else(Vitals::default, |process| Vitals {
        cores: f64::from(process.cpu_usage()) / 100.0,
        memory_bytes: process.memory(),
        ..Vitals::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_what_it_uses() {
        let mut system = System::new();
        look(&mut system);
        let (mut vitals, mut sum) = (Vitals::default(), 0u64);
        // The first look has nothing to compare with, and processors' time is counted in hundredths of a second.
        for _ in 0..1000 {
            sum = (0..1_000_000u64).fold(sum, |sum, next| std::hint::black_box(sum.wrapping_add(next)));
            vitals = look(&mut system);
            if vitals.cores > 0.0 {
                break;
            }
        }
        assert!(vitals.cores > 0.0 && vitals.memory_bytes > 1 << 20, "{vitals:?} {sum}");
        let sampler = Sampler::start(|vitals| vitals.shard = Some(ShardVitals { open_pushes: 3, work_seconds: 0.5 }));
        let sample = std::iter::repeat_with(|| sampler.newest()).find_map(|sample| sample).unwrap();
        assert_eq!(sample.shard.map(|shard| shard.open_pushes), Some(3));
    }
}
