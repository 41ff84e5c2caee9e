//! A long, thin cable: what goes between a machine and the others passes through this process, later than it was sent and
//! no faster than the cable carries it. What does not fit into its queue is lost, as on a real one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// The largest frame, with room to spare.
const FRAME: usize = 2048;

/// How a cable is.
#[derive(Clone, Copy, Debug)]
pub struct Cable {
    /// Bytes a second, each way.
    pub bytes_per_second: f64,
    /// How long a frame is on its way.
    pub delay: Duration,
    /// How long a frame waits for those before it at most.
    pub queue: Duration,
}

/// What a cable has carried, both ways together.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    bytes: Arc<AtomicU64>,
    frames: Arc<AtomicU64>,
    waited: Arc<AtomicU64>,
}

impl Carried {
    /// Bytes of frames that arrived.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// The share of frames that found the cable busy.
    pub fn busy(&self) -> f64 {
        self.waited.load(Relaxed) as f64 / self.frames.load(Relaxed).max(1) as f64
    }
}

/// A cable that is not plugged in yet.
pub struct Laid {
    cable: Cable,
    ends: [Arc<SyncDevice>; 2],
}

impl Laid {
    /// Carries what comes, now that both ends are up.
    pub fn carry(self) -> Carried {
        let ([one, other], carried) = (self.ends, Carried::default());
        self.cable.carry((one.clone(), other.clone()), &carried);
        self.cable.carry((other, one), &carried);
        carried
    }
}

impl Cable {
    /// Lays the cable between two new network interfaces. It is there for as long as they are.
    ///
    /// # Errors
    /// The system makes no such interfaces.
    pub fn lay(self, names: [&str; 2]) -> std::io::Result<Laid> {
        let end = |name: &str| DeviceBuilder::new().name(name).layer(Layer::L2).mtu(1500).build_sync().map(Arc::new);
        Ok(Laid { cable: self, ends: [end(names[0])?, end(names[1])?] })
    }

    /// Carries frames one way: a thread that takes them, and one that hands them over when they are due.
    fn carry(self, (from, to): (Arc<SyncDevice>, Arc<SyncDevice>), carried: &Carried) {
        let (sender, due) = channel();
        let (taken, handed) = (carried.clone(), carried.clone());
        thread::spawn(move || self.take(&from, &sender, &taken));
        thread::spawn(move || hand_over(&to, &due, &handed));
    }

    fn take(self, from: &SyncDevice, sender: &Sender<(Instant, Vec<u8>)>, carried: &Carried) {
        let mut free = Instant::now();
        let mut frame = [0; FRAME];
        // Until the interface is gone.
        while let Ok(len) = from.recv(&mut frame) {
            let now = Instant::now();
            let begins = free.max(now);
            carried.frames.fetch_add(1, Relaxed);
            carried.waited.fetch_add(u64::from(begins > now), Relaxed);
            if begins - now > self.queue {
                continue;
            }
            free = begins + Duration::from_secs_f64(len as f64 / self.bytes_per_second);
            if sender.send((free + self.delay, frame[..len].to_vec())).is_err() {
                return;
            }
        }
    }
}

fn hand_over(to: &SyncDevice, due: &Receiver<(Instant, Vec<u8>)>, carried: &Carried) {
    for (at, frame) in due {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if to.send(&frame).is_err() {
            return;
        }
        carried.bytes.fetch_add(frame.len() as u64, Relaxed);
    }
}
