//! What the coordinator and other machines' launchers tell each other: a node offers to run processes, and is told which.

use crate::ids::{NodeId, Role};

/// A machine's launcher that offers to run processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOffer {
    /// Must equal [`crate::PROTOCOL`].
    pub protocol: u32,
    /// Must equal [`crate::BUILD`].
    pub build: String,
    /// The run that is meant; `None` for whatever run is there.
    pub run_id: Option<String>,
    /// For people.
    pub host: String,
    /// For people.
    pub pid: u32,
    /// Worker processes that it can run.
    pub workers: u32,
    /// Server processes that it can run.
    pub servers: u32,
}

/// A node's admission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAdmission {
    /// Who it is from now on.
    pub node: NodeId,
    /// The run's name.
    pub run_id: String,
    /// The run's configuration, as TOML.
    pub config: String,
    /// How often to renew the lease.
    pub heartbeat_ms: u32,
    /// How long the coordinator waits for that.
    pub lease_ms: u32,
}

/// A process that is to run in a place of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order {
    /// Its place.
    pub role: Role,
    /// Its place.
    pub rank: u32,
    /// Ascends: another in the same place has a higher one.
    pub number: u64,
}

/// All that a node is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// The processes.
    pub orders: Vec<Order>,
    /// How the run ended, once it has.
    pub end: Option<RunEnd>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEnd {
    /// The exit code of the launcher that coordinated.
    pub exit_code: u8,
    /// Why, if it did not end well.
    pub message: String,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderReport {
    /// Which.
    pub order: Order,
    /// Its process.
    pub pid: u32,
    /// How the process ended, once it has: what wait(2) told, and the last lines of its log.
    pub ended: Option<(i32, Vec<String>)>,
}
