//! Gradients where servers on this machine read them. A large tensor is there already, for this process's large blocks are
//! (`convoy_proto::shared::heap`); each block of others is written once, whoever it is told to.
//!
//! A plane holds one node's sum: its tensors, and a plane of the arena. Both are used for something else only when every server has committed what was told of
//! it: until then, [`Staging::release`] is not called, and what was pushed in vain stays as well (docs/adr/0024).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use convoy_proto::{
    blocks::{Block, BlockMap},
    messages::Place,
    shared::{Arena, Pass, SharedError, Slot},
};

use crate::parameters::Tensors;

/// Nodes that can be in servers' hands at once; further ones go through the connection.
const PLANES: usize = 16;

/// Memory for gradients.
#[derive(Debug)]
pub(super) struct Staging {
    arena: Arc<Arena>,
    planes: Mutex<Vec<Arc<Plane>>>,
}

/// One node's sum.
#[derive(Debug)]
pub(super) struct Plane {
    arena: Arc<Arena>,
    number: usize,
    /// What it is of, which says whether it is here already.
    tensors: Arc<Tensors>,
    blocks: Vec<OnceLock<Option<Slot>>>,
}

impl Staging {
    /// For the blocks of a map.
    ///
    /// # Errors
    /// The system has no such memory.
    pub fn new(map: &BlockMap) -> Result<Staging, SharedError> {
        Ok(Staging { arena: Arena::beside_heap(map.blocks(), PLANES)?, planes: Mutex::default() })
    }

    /// What servers need to see it.
    pub fn pass(&self) -> Pass {
        self.arena.pass()
    }

    /// The plane of a sum, a new one if it has none; nothing if all are taken.
    pub fn plane(&self, tensors: &Arc<Tensors>) -> Option<Arc<Plane>> {
        let mut planes = self.planes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plane) = planes.iter().find(|plane| Arc::ptr_eq(&plane.tensors, tensors)) {
            return Some(plane.clone());
        }
        let number = (0..PLANES).find(|number| planes.iter().all(|plane| plane.number != *number))?;
        let blocks = self.arena.blocks();
        let blocks = std::iter::repeat_with(OnceLock::new).take(blocks).collect();
        planes.push(Arc::new(Plane { arena: self.arena.clone(), number, tensors: tensors.clone(), blocks }));
        planes.last().cloned()
    }

    /// All that was told of is committed everywhere, or can be no more.
    pub fn release(&self) {
        self.planes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Staging {
    /// What was told and not released may be read as long as this process lives, so it stays as it is.
    fn drop(&mut self) {
        let planes = self.planes.get_mut().unwrap_or_else(PoisonError::into_inner);
        std::mem::forget(std::mem::take(planes));
    }
}

impl Plane {
    /// Where a block's values are, which are written there if servers do not see them where they are; nothing if there is no
    /// room.
    pub fn place(&self, block: &Block, values: &[f32]) -> Option<Place> {
        let bytes = block.bytes() as u64;
        if let Some(offset) = self.arena.offset_of(values) {
            return Some(Place { offset, bytes });
        }
        let at = block.id.0 as usize;
        let slot = self.blocks.get(at)?.get_or_init(|| {
            let mut slot = self.arena.take(self.number, at).filter(|slot| slot.len() == values.len())?;
            slot.copy_from_slice(values);
            Some(slot)
        });
        slot.as_ref().map(|slot| Place { offset: slot.offset(), bytes })
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use convoy_proto::{
        manifest::{Manifest, TensorRole},
        shared::View,
        sum::payload_of,
    };

    use super::*;

    #[test]
    fn a_sum_is_written_once_and_its_place_is_free_when_all_have_it() {
        let manifest = Manifest::new([("w".into(), vec![70_000], TensorRole::Trainable)]).unwrap();
        let map = BlockMap::new(&manifest, 1);
        let staging = Staging::new(&map).unwrap();
        let view = Arc::new(View::open(&staging.pass()).unwrap());
        let sum = |value: f32| Arc::new(vec![vec![value; 70_000].into()]);
        let (one, other): (Arc<Tensors>, Arc<Tensors>) = (sum(1.0), sum(2.0));
        let place = |tensors: &Arc<Tensors>, block: &Block| {
            staging.plane(tensors).and_then(|plane| plane.place(block, &tensors[0][block.range()]))
        };
        for block in map.blocks() {
            let places = [&one, &other].map(|tensors| place(tensors, &block).unwrap());
            assert_ne!(places[0].offset, places[1].offset);
            for (place, tensors) in places.iter().zip([&one, &other]) {
                let seen = view.bytes(place.offset, place.bytes).unwrap();
                assert_eq!(seen, payload_of(&tensors[0][block.range()]));
            }
            // The same again, for another copy of the shard.
            assert_eq!(place(&one, &block), Some(places[0]));
        }
        let first = map.blocks().next().unwrap();
        let many: Vec<_> = (0..PLANES).map(|value| sum(value as f32)).collect();
        assert_eq!(many.iter().filter_map(|tensors| place(tensors, &first)).count(), PLANES - 2);
        staging.release();
        assert_eq!(many.iter().filter_map(|tensors| place(tensors, &first)).count(), PLANES);
    }
}
