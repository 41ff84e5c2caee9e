//! Two immutable versions of a block's values: the newest, and the one before it.
//!
//! Making version `s + 1` keeps version `s`, so that step `s` can be recomputed until a later step is applied, which
//! needs every worker to have read version `s + 1` from every shard.

use std::sync::Arc;

use bytes::Bytes;
use convoy_proto::{
    ids::{BlockId, Step},
    messages::{ParameterBlock, Place},
    shared::{Arena, Buffer},
    sum,
};

/// The values of one block at one step, shared with whoever reads them.
pub type Version = Arc<Buffer>;

/// Where a block's versions are made: in memory that workers on this machine see, or in the process's own.
#[derive(Clone, Debug, Default)]
pub struct Rooms(Option<(Arc<Arena>, usize)>);

impl Rooms {
    /// In slots of the block that is the arena's number `block`.
    pub fn of(arena: Arc<Arena>, block: usize) -> Rooms {
        Rooms(Some((arena, block)))
    }

    /// Room for the version that a step starts from. Of two that follow each other, neither has the other's plane, and a
    /// step's blocks have the same one, as long as nobody still reads what was there.
    fn take(&self, step: Step, elements: usize) -> Buffer {
        let slot = self.0.as_ref().and_then(|(arena, block)| arena.take_any((step.0 % 2) as usize, *block));
        slot.map_or_else(|| vec![0.0; elements].into(), Buffer::Shared)
    }

    /// A version that a step starts from, where others see it if that can be.
    pub fn hold(&self, step: Step, values: Version) -> Version {
        if self.0.is_none() {
            return values;
        }
        let mut room = self.take(step, values.len());
        room.copy_from_slice(&values);
        Arc::new(room)
    }
}

/// What is known of a version.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// Here it is.
    Ready(Version),
    /// Not formed yet.
    Pending,
    /// Formed once, and gone.
    Gone,
}

/// The versions of one block.
#[derive(Clone, Debug)]
pub struct Versions {
    /// The step that the newest is the input of.
    step: Step,
    newest: Version,
    previous: Option<Version>,
}

impl Versions {
    /// The values that a step starts from.
    pub fn new(step: Step, newest: Version) -> Versions {
        Versions { step, newest, previous: None }
    }

    /// The step that the newest values are the input of.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The newest values.
    pub fn newest(&self) -> &Version {
        &self.newest
    }

    /// The values that `step` starts from.
    pub fn at(&self, step: Step) -> Lookup {
        let found = if step == self.step {
            Some(&self.newest)
        } else if step.next() == self.step {
            self.previous.as_ref()
        } else if step < self.step {
            return Lookup::Gone;
        } else {
            None
        };
        found.cloned().map_or(Lookup::Pending, Lookup::Ready)
    }

    /// Memory for a new version: that of the version before the last, which is nobody's input any more, unless somebody
    /// still reads it.
    pub fn room(&mut self, rooms: &Rooms) -> Buffer {
        match self.previous.take().and_then(Arc::into_inner) {
            Some(Buffer::Own(values)) if rooms.0.is_none() => values.into(),
            // If it was a slot, that is free now.
            _ => rooms.take(self.step.next(), self.newest.len()),
        }
    }

    /// Adds a version.
    pub fn push(&mut self, values: Buffer) {
        self.advance(Arc::new(values));
    }

    /// Adds a version that is the same as the last.
    pub fn repeat(&mut self) {
        self.advance(self.newest.clone());
    }

    fn advance(&mut self, version: Version) {
        self.previous = Some(std::mem::replace(&mut self.newest, version));
        self.step = self.step.next();
    }
}

/// A version as the payload of a block: no copy is made.
pub fn parameter_block(block: BlockId, version: Version) -> ParameterBlock {
    struct Shared(Version);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            sum::payload_of(&self.0)
        }
    }
    let place = version.place().map(|offset| Place { offset, bytes: size_of_val::<[f32]>(&version) as u64 });
    ParameterBlock { block, payload: Bytes::from_owner(Shared(version)), place }
}
