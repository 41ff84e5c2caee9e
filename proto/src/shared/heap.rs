//! An allocator whose large blocks lie in memory that others can be shown: whatever made a tensor, it is where a server can
//! read it, and nothing has to be copied there.
//!
//! Large blocks are taken from one region, by whole pages, and kept for the next when they are freed: so in a run's steady
//! state the system neither hands out nor clears a page. All other blocks, and all until the region [begins](begin), come
//! from another allocator.

use std::{
    alloc::{GlobalAlloc, Layout},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{
    Pass, Segment, SharedError,
    ranges::{PAGE, Ranges, rounded},
};

/// Blocks of so many bytes and more are large.
const LARGE: usize = 1 << 17;
/// The region's size: addresses, of which only what is used takes memory. Less, down to the least, where there is a limit.
const MOST: usize = 1 << 36;
const LEAST: usize = 1 << 30;

static REGION: OnceLock<Region> = OnceLock::new();

/// Memory for large blocks.
#[derive(Debug)]
pub(super) struct Region {
    segment: Segment,
    ranges: Mutex<Ranges>,
}

/// A program's allocator.
#[derive(Clone, Copy, Debug)]
pub struct Heap<A> {
    others: A,
}

/// From now on, large blocks are where others can see them, if this program's allocator is a [`Heap`].
///
/// # Errors
/// The system has no such memory.
pub fn begin() -> Result<(), SharedError> {
    if REGION.get().is_some() {
        return Ok(());
    }
    let mut bytes = MOST;
    let segment = loop {
        match Segment::new(bytes) {
            Ok(segment) => break segment,
            Err(problem) if bytes == LEAST => return Err(problem),
            Err(_) => bytes /= 2,
        }
    };
    let ranges = Mutex::new(Ranges::new(segment.bytes() / PAGE * PAGE));
    // If another thread was quicker, that one is it.
    let _ = REGION.set(Region { segment, ranges });
    Ok(())
}

/// The region, once it has begun.
pub(super) fn region() -> Option<&'static Region> {
    REGION.get()
}

impl Region {
    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so many bytes, of whole pages; gives how far from the start they begin, and whether they are all zero.
    pub fn take(&self, bytes: usize) -> Option<(usize, bool)> {
        self.ranges().take(rounded(bytes))
    }

    /// Takes back what was taken.
    pub fn give(&self, offset: usize, bytes: usize) {
        self.ranges().give(offset, rounded(bytes));
    }

    pub fn pass(&self) -> Pass {
        self.segment.pass()
    }

    pub fn bytes(&self) -> usize {
        self.segment.bytes()
    }

    pub fn start(&self) -> *mut u8 {
        self.segment.start()
    }

    /// How far from the start an address is, if it is in the region.
    pub fn offset(&self, address: *const u8) -> Option<usize> {
        let offset = address.addr().checked_sub(self.segment.start().addr())?;
        (offset < self.segment.bytes()).then_some(offset)
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.segment.start().wrapping_add(offset)
    }
}

/// The region, if a block of this layout is taken from it.
fn for_large(layout: Layout) -> Option<&'static Region> {
    if layout.size() < LARGE || layout.align() > PAGE { None } else { REGION.get() }
}

/// The region and the place in it of a block that is there.
fn found(block: *mut u8) -> Option<(&'static Region, usize)> {
    let region = REGION.get()?;
    Some((region, region.offset(block)?))
}

impl<A> Heap<A> {
    /// With another allocator for what is not large.
    pub const fn new(others: A) -> Heap<A> {
        Heap { others }
    }
}

// SAFETY: what a region gives out is its caller's alone until it is given back (`Ranges`), as large as asked for, and begins
// at a page, so any alignment up to that is right. Its own notes are small, so that keeping them never comes back here for a
// large block. All else is the other allocator's, which is told apart by the address.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Heap<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = for_large(layout).and_then(|region| Some(region.at(region.take(layout.size())?.0)));
        // SAFETY: as the caller promises.
        taken.unwrap_or_else(|| unsafe { self.others.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let taken = for_large(layout).and_then(|region| Some((region, region.take(layout.size())?)));
        let Some((region, (offset, is_zero))) = taken else {
            // SAFETY: as the caller promises.
            return unsafe { self.others.alloc_zeroed(layout) };
        };
        let block = region.at(offset);
        if !is_zero {
            // SAFETY: it has just been taken, and is so large.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match found(block) {
            Some((region, offset)) => region.give(offset, layout.size()),
            // SAFETY: it is not the region's, so the other allocator made it.
            None => unsafe { self.others.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let place = found(block);
        // SAFETY: the size is as the caller promises, and the alignment is that of a block that there is.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if place.is_none() && for_large(wanted).is_none() {
            // SAFETY: it is not the region's, so the other allocator made it.
            return unsafe { self.others.realloc(block, layout, size) };
        }
        if let Some((region, offset)) = place
            && size >= LARGE
        {
            let (before, after) = (rounded(layout.size()), rounded(size));
            if after <= before {
                if after < before {
                    region.give(offset + after, before - after);
                }
                return block;
            }
            if region.ranges().extend(offset, before, after - before) {
                return block;
            }
        }
        let kept = layout.size().min(size);
        // SAFETY: the new block is another, and both are as large as what is copied; the old one is not used again.
        unsafe {
            let moved = self.alloc(wanted);
            if !moved.is_null() {
                block.copy_to_nonoverlapping(moved, kept);
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::{alloc::System, sync::Arc};

    use proptest::prelude::*;

    use super::{super::View, *};

    static HEAP: Heap<System> = Heap::new(System);

    #[test]
    fn a_large_block_is_where_others_see_it() {
        begin().unwrap();
        let view = Arc::new(View::open(&region().unwrap().pass()).unwrap());
        let layout = Layout::from_size_align(LARGE + 5, 64).unwrap();
        // SAFETY: the block is written to within its size, and freed as it was made.
        unsafe {
            let block = HEAP.alloc_zeroed(layout);
            let offset = region().unwrap().offset(block).unwrap() as u64;
            assert!(view.bytes(offset, layout.size() as u64).unwrap().iter().all(|byte| *byte == 0));
            block.write_bytes(7, layout.size());
            assert!(view.bytes(offset, layout.size() as u64).unwrap().iter().all(|byte| *byte == 7));
            HEAP.dealloc(block, layout);
            // The same pages, perhaps, and cleared.
            let again = HEAP.alloc_zeroed(layout);
            assert!(std::slice::from_raw_parts(again, layout.size()).iter().all(|byte| *byte == 0));
            HEAP.dealloc(again, layout);
            let small = Layout::from_size_align(LARGE - 1, 64).unwrap();
            let other = HEAP.alloc(small);
            assert!(region().unwrap().offset(other).is_none());
            HEAP.dealloc(other, small);
        }
    }

    proptest! {
        /// Blocks keep what they hold, however they grow, shrink, and move from one allocator to the other.
        #[test]
        fn blocks_keep_what_they_hold(events in proptest::collection::vec((0usize..4, 1usize..3 * LARGE), 1..60)) {
            begin().unwrap();
            let mut blocks: [Option<(*mut u8, Layout, u8)>; 4] = [None; 4];
            let holds = |(block, layout, mark): (*mut u8, Layout, u8), len: usize| {
                // SAFETY: it is a live block of this layout.
                unsafe { std::slice::from_raw_parts(block, layout.size().min(len)) }.iter().all(|byte| *byte == mark)
            };
            for (number, (at, size)) in (1u8..).zip(events) {
                let layout = Layout::from_size_align(size, 16).unwrap();
                // SAFETY: layouts are those that blocks were made with, and writes stay within.
                unsafe {
                    blocks[at] = match blocks[at].take() {
                        None => Some((HEAP.alloc(layout), layout)),
                        Some(held) if number % 3 == 0 => {
                            prop_assert!(holds(held, usize::MAX));
                            HEAP.dealloc(held.0, held.1);
                            None
                        }
                        Some(held) => {
                            let moved = HEAP.realloc(held.0, held.1, size);
                            prop_assert!(holds((moved, layout, held.2), held.1.size()));
                            Some((moved, layout))
                        }
                    }
                    .map(|(block, layout)| {
                        block.write_bytes(number, layout.size());
                        (block, layout, number)
                    });
                }
                prop_assert!(blocks.iter().flatten().all(|held| holds(*held, usize::MAX)));
            }
            // SAFETY: as above.
            blocks.into_iter().flatten().for_each(|(block, layout, _)| unsafe { HEAP.dealloc(block, layout) });
        }
    }
}
