//! The pure core of a run on several machines: which nodes there are, and which of the cluster's places each is to fill.
//!
//! A place without an entry here is the coordinator's own. One that a node had, or is to have, stays reserved while no node
//! has it: then nobody starts a process there, until another node comes.

use std::collections::BTreeMap;

use convoy_proto::{
    BUILD, PROTOCOL,
    ids::{NodeId, Role},
    node::{NodeOffer, Order},
};

use crate::train::restarts::Place;

use super::{handshake::same, refusal::Refusal};

/// More processes than a node has.
const MOST_PROCESSES: u32 = 4096;

/// A machine's launcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Who it is.
    pub node: NodeId,
    /// Its machine.
    pub host: String,
    /// Its process.
    pub pid: u32,
    /// Worker processes that it can run.
    pub workers: u32,
    /// Server processes that it can run.
    pub servers: u32,
    /// When it was last heard of.
    heard_ms: u64,
    /// The processes that it is to run.
    orders: BTreeMap<Place, u64>,
}

/// The nodes of a run and their places.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    records: BTreeMap<NodeId, NodeRecord>,
    /// Whose a place is; `None` where a node is to come.
    seats: BTreeMap<Place, Option<NodeId>>,
    /// Numbers of nodes and of orders, which are never used twice.
    last: u64,
}

/// Where a process of a place is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// On the coordinator's machine.
    Here,
    /// On a node, which has been told.
    Node(NodeId),
    /// Nowhere, until a node comes.
    Nowhere,
}

impl Nodes {
    /// No nodes yet, and places that wait for some. Numbers are above `last`, which must be above those that another
    /// coordinator of the run gave out: a node that knew that one must not be taken for another.
    pub fn new(reserved: impl IntoIterator<Item = Place>, last: u64) -> Nodes {
        let seats = reserved.into_iter().map(|place| (place, None)).collect();
        Nodes { records: BTreeMap::new(), seats, last }
    }

    /// Admits a node.
    ///
    /// # Errors
    /// A difference, with both sides, or an offer of nothing.
    pub fn join(&mut self, offer: NodeOffer, run_id: &str, now_ms: u64) -> Result<NodeId, Refusal> {
        let member = format!("node {} (process {})", offer.host, offer.pid);
        let same = |what, theirs: String, ours: String| same(&member, what, theirs, ours);
        same("protocol version", offer.protocol.to_string(), PROTOCOL.to_string())?;
        same("build", offer.build, BUILD.into())?;
        same("run", offer.run_id.unwrap_or_else(|| run_id.into()), run_id.into())?;
        if !(1..=MOST_PROCESSES).contains(&offer.workers.saturating_add(offer.servers)) {
            let offered = format!("{} workers and {} servers", offer.workers, offer.servers);
            return Err(Refusal::Scale(format!("{member} offers {offered}, which makes no sense")));
        }
        self.last += 1;
        let node = NodeId(self.last);
        let NodeOffer { host, pid, workers, servers, .. } = offer;
        let orders = BTreeMap::new();
        self.records.insert(node, NodeRecord { node, host, pid, workers, servers, heard_ms: now_ms, orders });
        Ok(node)
    }

    fn record(&mut self, node: NodeId) -> Result<&mut NodeRecord, Refusal> {
        self.records.get_mut(&node).ok_or(Refusal::UnknownNode(node))
    }

    /// A node.
    pub fn get(&self, node: NodeId) -> Option<&NodeRecord> {
        self.records.get(&node)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// Whether one of them runs a server.
    pub fn has_servers(&self) -> bool {
        self.seats.iter().any(|(place, node)| place.0 == Role::Server && node.is_some())
    }

    /// Notes that a node is alive.
    ///
    /// # Errors
    /// It is none.
    pub fn renew(&mut self, node: NodeId, now_ms: u64) -> Result<(), Refusal> {
        self.record(node)?.heard_ms = now_ms;
        Ok(())
    }

    /// Nodes that have not been heard of for a lease, and for how long.
    pub fn silent(&self, now_ms: u64, lease_ms: u64) -> Vec<(NodeId, u64)> {
        let silence = self.records.values().map(|record| (record.node, now_ms.saturating_sub(record.heard_ms)));
        silence.filter(|(_, silence)| *silence > lease_ms).collect()
    }

    /// Places that wait for a node.
    pub fn vacant(&self) -> Vec<Place> {
        self.seats.iter().filter(|(_, node)| node.is_none()).map(|(place, _)| *place).collect()
    }

    /// A place that waits for a node in vain is the coordinator's own from now on.
    pub fn free(&mut self, place: Place) {
        if self.seats.get(&place) == Some(&None) {
            self.seats.remove(&place);
        }
    }

    /// Whether a place is, or was, a node's to fill.
    pub fn is_seat(&self, place: Place) -> bool {
        self.seats.contains_key(&place)
    }

    /// How many processes more of a role a node can run.
    pub fn room(&self, node: NodeId, role: Role) -> u32 {
        let has = self.has(node, role);
        let can = |record: &NodeRecord| if role == Role::Server { record.servers } else { record.workers };
        self.records.get(&node).map_or(0, |record| (can(record) as usize).saturating_sub(has) as u32)
    }

    /// A node that can run more processes of a role: the one that runs the fewest.
    pub fn with_room(&self, role: Role) -> Option<NodeId> {
        let free = self.records.keys().copied().filter(|node| self.room(*node, role) > 0);
        free.min_by_key(|node| self.has(*node, role))
    }

    /// How many places of a role a node has.
    fn has(&self, node: NodeId, role: Role) -> usize {
        self.places_of(node).into_iter().filter(|place| place.0 == role).count()
    }

    /// Gives a place to a node.
    pub fn seat(&mut self, place: Place, node: NodeId) {
        self.seats.insert(place, Some(node));
    }

    /// The places of a node.
    pub fn places_of(&self, node: NodeId) -> Vec<Place> {
        self.seats.iter().filter(|(_, whose)| **whose == Some(node)).map(|(place, _)| *place).collect()
    }

    /// A process is to run in a place, another than before.
    pub fn order(&mut self, place: Place) -> Home {
        let Some(seat) = self.seats.get(&place).copied() else { return Home::Here };
        let Some(node) = seat.filter(|node| self.records.contains_key(node)) else { return Home::Nowhere };
        self.last += 1;
        let number = self.last;
        if let Some(record) = self.records.get_mut(&node) {
            record.orders.insert(place, number);
        }
        Home::Node(node)
    }

    /// No process is to run in a place any more; whether it was a node's.
    pub fn cancel(&mut self, place: Place) -> bool {
        let Some(seat) = self.seats.get(&place) else { return false };
        let record = seat.and_then(|node| self.records.get_mut(&node));
        if let Some(record) = record {
            record.orders.remove(&place);
        }
        true
    }

    /// A process that was ordered has ended: whether it is the one that was to run there, which is not to any more.
    ///
    /// # Errors
    /// The node is none.
    pub fn ended(&mut self, node: NodeId, order: Order) -> Result<bool, Refusal> {
        let is_it = self.holds(node, order)?;
        if is_it {
            self.record(node)?.orders.remove(&(order.role, order.rank));
        }
        Ok(is_it)
    }

    /// Whether an order still holds.
    ///
    /// # Errors
    /// The node is none.
    pub fn holds(&mut self, node: NodeId, order: Order) -> Result<bool, Refusal> {
        Ok(self.record(node)?.orders.get(&(order.role, order.rank)) == Some(&order.number))
    }

    /// What a node is to run.
    ///
    /// # Errors
    /// It is none.
    pub fn orders(&mut self, node: NodeId) -> Result<Vec<Order>, Refusal> {
        let orders = self.record(node)?.orders.iter();
        Ok(orders.map(|((role, rank), number)| Order { role: *role, rank: *rank, number: *number }).collect())
    }

    /// A node is gone: its places wait for another.
    pub fn remove(&mut self, node: NodeId) -> Option<(NodeRecord, Vec<Place>)> {
        let record = self.records.remove(&node)?;
        let places = self.places_of(node);
        self.seats.values_mut().filter(|whose| **whose == Some(node)).for_each(|whose| *whose = None);
        Some((record, places))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(workers: u32) -> NodeOffer {
        NodeOffer {
            protocol: PROTOCOL,
            build: BUILD.into(),
            run_id: None,
            host: "h".into(),
            pid: 1,
            workers,
            servers: 0,
        }
    }

    const FIRST: Place = (Role::Worker, 1);
    const SECOND: Place = (Role::Worker, 2);

    #[test]
    fn a_node_that_is_of_another_run_or_build_is_refused_with_both_sides() {
        let mut nodes = Nodes::default();
        let other = NodeOffer { run_id: Some("other".into()), ..offer(1) };
        let refused = nodes.join(other, "run", 0).unwrap_err().to_string();
        assert!(refused.contains("other") && refused.contains("run"), "{refused}");
        assert!(nodes.join(NodeOffer { protocol: 0, ..offer(1) }, "run", 0).is_err());
        assert!(nodes.join(NodeOffer { build: "x".into(), ..offer(1) }, "run", 0).is_err());
        assert!(nodes.join(offer(0), "run", 0).is_err() && nodes.join(offer(u32::MAX), "run", 0).is_err());
        assert_eq!(nodes.count(), 0);
        let same = NodeOffer { run_id: Some("run".into()), ..offer(1) };
        assert!(nodes.join(same, "run", 0).is_ok());
    }

    #[test]
    fn places_are_here_on_a_node_or_wait_for_one() {
        let mut nodes = Nodes::new([FIRST], 0);
        assert_eq!(nodes.order((Role::Worker, 0)), Home::Here);
        assert_eq!((nodes.order(FIRST), nodes.vacant()), (Home::Nowhere, vec![FIRST]));
        let node = nodes.join(offer(2), "run", 0).unwrap();
        nodes.seat(FIRST, node);
        assert_eq!((nodes.room(node, Role::Worker), nodes.with_room(Role::Worker)), (1, Some(node)));
        nodes.seat(SECOND, node);
        assert_eq!((nodes.order(FIRST), nodes.order(SECOND)), (Home::Node(node), Home::Node(node)));
        assert_eq!((nodes.vacant(), nodes.room(node, Role::Worker), nodes.with_room(Role::Worker)), (vec![], 0, None));
        let before = nodes.orders(node).unwrap();
        // Another process in the place has another number; the end of the one before it is no news.
        nodes.order(FIRST);
        let now = nodes.orders(node).unwrap();
        assert!(now[0].number > before[0].number && now[1] == before[1]);
        assert_eq!((nodes.ended(node, before[0]), nodes.holds(node, now[0])), (Ok(false), Ok(true)));
        assert_eq!((nodes.ended(node, now[0]), nodes.orders(node).unwrap().len()), (Ok(true), 1));
        assert!(nodes.cancel(SECOND) && !nodes.cancel((Role::Worker, 0)));
        assert_eq!(nodes.orders(node), Ok(vec![]));
    }

    #[test]
    fn the_places_of_a_node_that_is_lost_wait_for_another() {
        let mut nodes = Nodes::default();
        let node = nodes.join(offer(1), "run", 100).unwrap();
        nodes.seat(FIRST, node);
        nodes.order(FIRST);
        assert_eq!(nodes.silent(150, 50), []);
        assert_eq!(nodes.silent(151, 50), [(node, 51)]);
        nodes.renew(node, 151).unwrap();
        assert_eq!(nodes.silent(151, 50), []);
        let (record, places) = nodes.remove(node).unwrap();
        assert_eq!((record.workers, places), (1, vec![FIRST]));
        assert_eq!((nodes.order(FIRST), nodes.vacant(), nodes.count()), (Home::Nowhere, vec![FIRST], 0));
        assert!(nodes.renew(node, 152).is_err() && nodes.orders(node).is_err() && nodes.remove(node).is_none());
        nodes.free(SECOND);
        assert_eq!((nodes.order(SECOND), nodes.vacant()), (Home::Here, vec![FIRST]));
        // It has another name when it comes back.
        let again = nodes.join(offer(1), "run", 200).unwrap();
        assert_ne!(again, node);
        nodes.seat(FIRST, again);
        assert_eq!(nodes.order(FIRST), Home::Node(again));
    }

    #[test]
    fn servers_and_workers_have_room_of_their_own_and_are_spread() {
        let server = (Role::Server, 1);
        let mut nodes = Nodes::new([server, FIRST, SECOND], 0);
        let both = nodes.join(NodeOffer { servers: 1, ..offer(1) }, "run", 0).unwrap();
        let other = nodes.join(offer(2), "run", 0).unwrap();
        assert_eq!((nodes.with_room(Role::Server), nodes.room(other, Role::Server)), (Some(both), 0));
        nodes.seat(server, both);
        assert_eq!((nodes.with_room(Role::Server), nodes.room(both, Role::Worker)), (None, 1));
        nodes.seat(FIRST, both);
        assert_eq!(nodes.with_room(Role::Worker), Some(other));
        let only = nodes.join(NodeOffer { servers: 1, ..offer(0) }, "run", 0).unwrap();
        assert_eq!(nodes.room(only, Role::Worker), 0);
    }
}
