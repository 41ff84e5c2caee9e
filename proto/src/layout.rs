//! Which server holds which shard: copy `c` of shard `s` is with server `c × shards + s`.

use crate::{
    config::Config,
    ids::{ServerId, ShardId},
};

/// The places of servers: all first copies, then all second ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    shards: u32,
    copies: u32,
}

impl Layout {
    /// So many shards, each so many times; at least one each.
    pub fn new(shards: u32, copies: u32) -> Layout {
        Layout { shards: shards.max(1), copies: copies.max(1) }
    }

    /// A run's.
    pub fn of(config: &Config) -> Layout {
        Layout::new(config.servers, config.replicas + 1)
    }

    /// How many shards there are.
    pub fn shards(self) -> u32 {
        self.shards
    }

    /// How many servers there are.
    pub fn servers(self) -> u32 {
        self.shards * self.copies
    }

    /// Whether there is one copy of each shard only.
    pub fn is_single(self) -> bool {
        self.copies == 1
    }

    /// The shard that a server holds.
    pub fn shard_of(self, server: ServerId) -> ShardId {
        ShardId(server.0 % self.shards)
    }

    /// The servers that hold a shard, ascending.
    pub fn copies_of(self, shard: ShardId) -> impl Iterator<Item = ServerId> {
        (0..self.copies).map(move |copy| ServerId(copy * self.shards + shard.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_holds_one_shard_and_each_shard_has_its_copies() {
        let layout = Layout::new(3, 2);
        assert_eq!((layout.shards(), layout.servers(), layout.is_single()), (3, 6, false));
        let copies: Vec<Vec<u32>> =
            (0..3).map(|shard| layout.copies_of(ShardId(shard)).map(|server| server.0).collect()).collect();
        assert_eq!(copies, [[0, 3], [1, 4], [2, 5]]);
        assert!((0..6).map(ServerId).all(|server| layout.copies_of(layout.shard_of(server)).any(|s| s == server)));
        assert!(Layout::new(4, 1).is_single());
    }
}
