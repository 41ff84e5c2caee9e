//! Two immutable versions of a block's values: the newest, and the one before it.
//!
//! Making version `s + 1` keeps version `s`, so that step `s` can be recomputed until a later step is applied, which
//! needs every worker to have read version `s + 1` from every shard.

use std::sync::Arc;

use bytes::Bytes;
use convoy_proto::{
    ids::{BlockId, Step},
    messages::ParameterBlock,
    sum,
};

/// The values of one block at one step, shared with whoever reads them.
pub type Version = Arc<Vec<f32>>;

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
    pub fn room(&mut self) -> Vec<f32> {
        let recycled = self.previous.take().and_then(Arc::into_inner);
        recycled.unwrap_or_else(|| vec![0.0; self.newest.len()])
    }

    /// Adds a version.
    pub fn push(&mut self, values: Vec<f32>) {
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
    ParameterBlock { block, payload: Bytes::from_owner(Shared(version)) }
}
