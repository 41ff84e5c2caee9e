//! A segment cut into slots: for each block of some parameters, one in each of a few planes.
//!
//! In a plane, a tensor's blocks lie one after the other, so that whoever finds all of them in one plane has the tensor in
//! one piece.

use std::{
    ops::{Deref, DerefMut},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Pass, Segment, SharedError, heap};
use crate::blocks::Block;

/// Tensors begin at multiples of so many bytes: a line of the processor's cache.
const ALIGNMENT: usize = 64;

/// Slots for blocks.
#[derive(Debug)]
pub struct Arena {
    memory: Memory,
    /// By block, where it is in a plane and how many elements it has.
    places: Vec<(usize, usize)>,
    plane_bytes: usize,
    /// By plane and block.
    taken: Vec<AtomicBool>,
}

/// Where an arena is.
#[derive(Debug)]
enum Memory {
    /// In a segment of its own.
    Own(Segment),
    /// In the one of the process's large blocks, so far from its start, and so large.
    Heap(&'static heap::Region, usize, usize),
}

impl Memory {
    fn own(bytes: usize) -> Result<Memory, SharedError> {
        Ok(Memory::Own(Segment::new(bytes)?))
    }

    fn on_heap(bytes: usize) -> Option<Memory> {
        let region = heap::region()?;
        Some(Memory::Heap(region, region.take(bytes)?.0, bytes))
    }

    /// Where the segment begins, which offsets are counted from.
    fn start(&self) -> *mut u8 {
        match self {
            Memory::Own(segment) => segment.start(),
            Memory::Heap(region, ..) => region.start(),
        }
    }

    /// How much there is of the arena.
    fn bytes(&self) -> usize {
        match self {
            Memory::Own(segment) => segment.bytes(),
            Memory::Heap(.., bytes) => *bytes,
        }
    }

    /// How far from there the arena is.
    fn offset(&self) -> usize {
        match self {
            Memory::Own(_) => 0,
            Memory::Heap(_, offset, _) => *offset,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Memory::Heap(region, offset, bytes) = self {
            region.give(*offset, *bytes);
        }
    }
}

impl Arena {
    /// Room for these blocks in so many planes.
    ///
    /// # Errors
    /// The system has no such memory, or not so much.
    pub fn new(blocks: impl Iterator<Item = Block>, planes: usize) -> Result<Arc<Arena>, SharedError> {
        Arena::in_memory(blocks, |plane_bytes| Ok((Memory::own(plane_bytes.saturating_mul(planes))?, planes)))
    }

    /// The same beside this process's large blocks, if it has begun to show them, and of half of that memory at most.
    ///
    /// # Errors
    /// As [`Arena::new`].
    pub fn beside_heap(blocks: impl Iterator<Item = Block>, planes: usize) -> Result<Arc<Arena>, SharedError> {
        Arena::in_memory(blocks, |plane_bytes| {
            let half = heap::region().map_or(0, |region| region.bytes() / 2);
            let planes_here = half.checked_div(plane_bytes).unwrap_or(planes).min(planes);
            let room = if planes_here == 0 { None } else { Memory::on_heap(plane_bytes * planes_here) };
            match room {
                Some(memory) => Ok((memory, planes_here)),
                None => Ok((Memory::own(plane_bytes.saturating_mul(planes))?, planes)),
            }
        })
    }

    fn in_memory(
        blocks: impl Iterator<Item = Block>,
        make: impl FnOnce(usize) -> Result<(Memory, usize), SharedError>,
    ) -> Result<Arc<Arena>, SharedError> {
        let (mut places, mut end, mut tensor) = (Vec::new(), 0usize, None);
        for block in blocks {
            if tensor.replace(block.tensor) != Some(block.tensor) {
                end = end.next_multiple_of(ALIGNMENT);
            }
            places.push((end, block.len as usize));
            end += block.bytes();
        }
        let plane_bytes = end.next_multiple_of(ALIGNMENT);
        let (memory, planes) = make(plane_bytes)?;
        let taken = std::iter::repeat_with(AtomicBool::default).take(places.len() * planes).collect();
        Ok(Arc::new(Arena { memory, places, plane_bytes, taken }))
    }

    /// What another process needs to see it.
    pub fn pass(&self) -> Pass {
        match &self.memory {
            Memory::Own(segment) => segment.pass(),
            Memory::Heap(region, ..) => region.pass(),
        }
    }

    /// Where values are that whoever sees this arena sees already, in bytes from the start of its segment.
    pub fn offset_of(&self, values: &[f32]) -> Option<u64> {
        match &self.memory {
            Memory::Own(_) => None,
            Memory::Heap(region, ..) => region.offset(values.as_ptr().cast()).map(|offset| offset as u64),
        }
    }

    /// How many blocks there are in a plane.
    pub fn blocks(&self) -> usize {
        self.places.len()
    }

    /// The slot of a block, counted from 0, in a plane; nothing if somebody has it, or there is none.
    pub fn take(self: &Arc<Arena>, plane: usize, block: usize) -> Option<Slot> {
        let (within, elements) = *self.places.get(block)?;
        let at = plane.checked_mul(self.places.len())?.checked_add(block)?;
        if self.taken.get(at)?.swap(true, Ordering::Acquire) {
            return None;
        }
        let start = plane * self.plane_bytes + within;
        debug_assert!(start + elements * 4 <= self.memory.bytes());
        let offset = self.memory.offset() + start;
        Some(Slot { arena: self.clone(), at, offset, elements })
    }

    /// The first free slot of a block, in `wanted` plane if that can be.
    pub fn take_any(self: &Arc<Arena>, wanted: usize, block: usize) -> Option<Slot> {
        let planes = self.taken.len().checked_div(self.places.len()).unwrap_or(0);
        self.take(wanted, block).or_else(|| (0..planes).find_map(|plane| self.take(plane, block)))
    }
}

/// Room for one block, for whoever has it alone to write to; free again when it is dropped.
#[derive(Debug)]
pub struct Slot {
    arena: Arc<Arena>,
    at: usize,
    offset: usize,
    elements: usize,
}

impl Slot {
    /// Where it is in its segment, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset as u64
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.arena.taken[self.at].store(false, Ordering::Release);
    }
}

impl Deref for Slot {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the range lies in the segment, is aligned for f32 (all offsets are multiples of 4), overlaps no other
        // slot, and this slot exists once, so that whoever writes to it borrows it alone.
        unsafe { std::slice::from_raw_parts(self.arena.memory.start().add(self.offset).cast(), self.elements) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; it is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.arena.memory.start().add(self.offset).cast(), self.elements) }
    }
}

/// Numbers of this process's own, or where others see them.
#[derive(Debug)]
pub enum Buffer {
    /// In a vector.
    Own(Vec<f32>),
    /// In shared memory.
    Shared(Slot),
}

impl Buffer {
    /// Where they are in the segment of their process, in bytes, if they are in one.
    pub fn place(&self) -> Option<u64> {
        match self {
            Buffer::Own(_) => None,
            Buffer::Shared(slot) => Some(slot.offset()),
        }
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(values: Vec<f32>) -> Self {
        Buffer::Own(values)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Buffer::Own(values) => values,
            Buffer::Shared(slot) => slot,
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Buffer::Own(values) => values,
            Buffer::Shared(slot) => slot,
        }
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::{super::View, *};
    use crate::{
        blocks::BlockMap,
        manifest::{Manifest, TensorRole},
    };

    #[test]
    fn what_is_written_to_a_slot_is_what_others_see_there() {
        let sizes = [70_000u64, 3, 10];
        let tensors = (0..).zip(sizes).map(|(i, size): (u32, _)| (format!("t{i}"), vec![size], TensorRole::Trainable));
        let map = BlockMap::new(&Manifest::new(tensors).unwrap(), 1);
        let arena = Arena::new(map.blocks(), 3).unwrap();
        let view = Arc::new(View::open(&arena.pass()).unwrap());
        let mut slots: Vec<Slot> = (0..3)
            .flat_map(|plane| (0..4).map(move |block| (plane, block)))
            .map(|(p, b)| arena.take(p, b).unwrap())
            .collect();
        for (value, slot) in (1u8..).zip(&mut slots) {
            slot.fill(value.into());
        }
        for (value, slot) in (1u8..).zip(&slots) {
            let bytes = view.bytes(slot.offset(), slot.len() as u64 * 4).unwrap();
            assert!(bytes.chunks(4).all(|element| element == f32::from(value).to_le_bytes()));
            assert!(slot.iter().all(|element| *element == f32::from(value)));
        }
        // The first tensor's second block follows its first; tensors are aligned.
        assert_eq!(slots[1].offset() - slots[0].offset(), 65_536 * 4);
        assert!(slots.iter().enumerate().all(|(at, slot)| at % 4 == 1 || slot.offset() % 64 == 0));
        let (offset, again) = (slots[5].offset(), |arena: &Arc<Arena>| arena.take(1, 1));
        assert!(again(&arena).is_none() && arena.take(3, 0).is_none() && arena.take(0, 4).is_none());
        drop(slots.remove(5));
        assert_eq!(arena.take_any(0, 1).map(|slot| slot.offset()), Some(offset));
    }
}
