//! The pure core: what a shard does with pushes, with no socket, clock or task in sight.
//!
//! [`shard::Shard`] is the entry: headers open pushes and form the verdict ([`ledger`]), blocks are summed over the
//! slice tree ([`accumulator`]) in their cells ([`cell`]), and the verdict applies the optimizer.
//! Methods return what has to be done as data; an error leaves the state as it was.

pub mod accumulator;
pub mod cell;
mod credit;
pub mod fences;
pub mod kept;
pub mod ledger;
pub mod open;
pub mod refusal;
pub mod shard;
pub mod staging;
pub mod versions;
mod waiting;
