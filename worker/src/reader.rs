//! The batches of slices, one of which is read ahead on a thread of its own while the worker is busy with others.

use std::{
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use convoy_proto::{
    ids::{SliceId, Step},
    order::{DataOrder, EpochOrder},
};

use crate::data::{DataError, Dataset, HostBatch, Part};

/// A slice of a step.
pub type Key = (Step, SliceId);

type Read = Result<HostBatch, DataError>;

/// Finds the samples of slices.
struct Samples {
    data: Arc<dyn Dataset>,
    order: DataOrder,
    epoch: Option<(u64, EpochOrder)>,
}

impl Samples {
    fn read(&mut self, (step, slice): Key) -> Read {
        let epoch = self.order.epoch(step);
        let (data, order) = (&*self.data, self.order);
        let samples = match &mut self.epoch {
            Some((cached, samples)) if *cached == epoch => samples,
            stale => &mut stale.insert((epoch, order.epoch_order(epoch))).1,
        };
        HostBatch::read(data, Part::Train, order.places(step, slice).map(|place| samples.sample(place)))
    }
}

/// The thread that reads ahead. It ends when this is dropped.
struct Ahead {
    asked: mpsc::Sender<Key>,
    read: mpsc::Receiver<Read>,
    /// What it was asked for and has not handed over.
    awaited: Option<Key>,
}

impl Ahead {
    fn begin(samples: &Arc<Mutex<Samples>>) -> Option<Ahead> {
        let (asked, keys) = mpsc::channel();
        let (ready, read) = mpsc::sync_channel(1);
        let samples = samples.clone();
        let work = move || {
            for key in keys {
                if ready.send(read_from(&samples, key)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("reader".into()).spawn(work).ok()?;
        Some(Ahead { asked, read, awaited: None })
    }
}

fn read_from(samples: &Mutex<Samples>, key: Key) -> Read {
    samples.lock().unwrap_or_else(PoisonError::into_inner).read(key)
}

/// Reads the batches of slices.
pub struct Reader {
    samples: Arc<Mutex<Samples>>,
    ahead: Option<Ahead>,
}

impl Reader {
    /// Of a data set, in an order.
    pub fn new(data: Arc<dyn Dataset>, order: DataOrder) -> Reader {
        Reader { samples: Arc::new(Mutex::new(Samples { data, order, epoch: None })), ahead: None }
    }

    /// The samples of a slice.
    ///
    /// # Errors
    /// Data that can no longer be read.
    pub fn take(&mut self, key: Key) -> Result<HostBatch, DataError> {
        if let Some(ahead) = &mut self.ahead
            && let Some(awaited) = ahead.awaited.take()
            && let Ok(read) = ahead.read.recv()
            && awaited == key
        {
            return read;
        }
        read_from(&self.samples, key)
    }

    /// Begins to read what will be taken next, unless something is read already. Without a thread, it is read when it is
    /// taken.
    pub fn prepare(&mut self, key: Key) {
        if self.ahead.is_none() {
            self.ahead = Ahead::begin(&self.samples);
        }
        if let Some(ahead) = self.ahead.as_mut().filter(|ahead| ahead.awaited.is_none()) {
            ahead.awaited = ahead.asked.send(key).is_ok().then_some(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::order::LastBatch;

    use super::*;
    use crate::data::{DataInfo, Form};

    /// Samples that know who they are.
    struct Numbers(DataInfo);

    impl Dataset for Numbers {
        fn info(&self) -> &DataInfo {
            &self.0
        }

        fn read(&self, _: Part, index: u32, batch: &mut HostBatch) -> Result<(), DataError> {
            batch.features.push(index as f32);
            Ok(())
        }
    }

    fn reader() -> Reader {
        let info = DataInfo {
            about: String::new(),
            form: Form::Classes { shape: [1, 1, 1], classes: 2 },
            train: 50,
            test: 1,
            class_names: Vec::new(),
            fingerprint: Vec::new(),
        };
        let order = DataOrder { seed: 7, samples: 50, batch: 8, slices: 4, last_batch: LastBatch::Ragged };
        Reader::new(Arc::new(Numbers(info)), order)
    }

    #[test]
    fn what_is_read_ahead_is_what_is_read() {
        let (mut plain, mut ahead) = (reader(), reader());
        let keys: Vec<Key> = (0..20).flat_map(|step| (0..4).map(move |slice| (Step(step), SliceId(slice)))).collect();
        for (key, next) in keys.iter().zip(&keys[1..]) {
            let batch = ahead.take(*key).unwrap();
            assert!(batch == plain.take(*key).unwrap() && batch.rows == batch.features.len());
            ahead.prepare(*next);
            // There is one already.
            ahead.prepare((Step(99), SliceId(3)));
        }
        // Slices change hands.
        ahead.prepare(keys[9]);
        assert_eq!(ahead.take(keys[3]).unwrap(), plain.take(keys[3]).unwrap());
        assert_eq!(ahead.take(keys[9]).unwrap(), plain.take(keys[9]).unwrap());
    }
}
