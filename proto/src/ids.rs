//! Newtypes for every id, so that no two kinds can be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The id as an index into a table.
            pub fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A worker's rank, from 0; it stays with the worker's place when its process is replaced.
    WorkerId(u32)
);
id!(
    /// A server's rank, from 0; it stays with the server's place when its process is replaced.
    ServerId(u32)
);
id!(
    /// A part of the parameter space, which a server holds.
    ShardId(u32)
);
id!(
    /// The number of committed updates that the parameters have seen; step 0 starts from the initial parameters.
    Step(u64)
);
id!(
    /// A part of a step's global batch, and a leaf of the slice tree.
    SliceId(u32)
);
id!(
    /// A block's place in the block map.
    BlockId(u64)
);
id!(
    /// The membership's version.
    Generation(u64)
);
id!(
    /// Raised whenever the run is rolled back, so that what belongs to the abandoned past is refused.
    Era(u64)
);
id!(
    /// A machine's launcher that runs processes for another's; never used twice.
    NodeId(u64)
);
id!(
    /// New at each start of a process in the same place.
    Incarnation(u64)
);

impl Step {
    /// The step after this one.
    pub fn next(self) -> Step {
        Step(self.0 + 1)
    }
}

/// What a process is in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Holds a shard.
    Server,
    /// Computes gradients.
    Worker,
    /// Coordinates, and reads the final parameters.
    Launcher,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Server => "server",
            Role::Worker => "worker",
            Role::Launcher => "launcher",
        })
    }
}

/// One process of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// What it is.
    pub role: Role,
    /// Which one of its role, from 0.
    pub rank: u32,
    /// Which process in that place.
    pub incarnation: Incarnation,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.rank)
    }
}
