//! Other machines: nodes that come get places, those that go leave places that wait for others.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use convoy_proto::{
    config::Config,
    ids::{NodeId, Role, ServerId},
    layout::Layout,
    messages::Phase,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{
    EVENTS_AHEAD, Session,
    losses::{self, workers},
    restarts::Place,
    signals::Signals,
};
use crate::{
    coordinator::{
        node_service::{NodeEvent, NodesService, RunCard},
        nodes::{NodeRecord, Nodes},
    },
    outcome::Failure,
};

/// What nodes call, and what it tells this launcher.
pub(super) fn open(config: &Config, run: &Path) -> (NodesService, mpsc::Receiver<NodeEvent>) {
    let workers = (config.local_workers..config.workers).map(|rank| (Role::Worker, rank));
    let servers = (config.local_servers..Layout::of(config).servers()).map(|rank| (Role::Server, rank));
    let reserved = workers.chain(servers);
    let (sender, events) = mpsc::channel(EVENTS_AHEAD);
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(0);
    (NodesService::new(Nodes::new(reserved, now), RunCard::new(config, run.into()), sender), events)
}

/// How many heartbeats a node may lack before what is wrong with its workers counts as its own.
const BEATS_LACKING: u32 = 3;

impl Session {
    /// Says where others can join, if they are waited for, or if they could.
    pub(super) fn tell_how_to_join(&mut self) {
        let vacant = self.vacant();
        if vacant != (0, 0) || !self.prepared.config.network.listen.ip().is_loopback() {
            self.progress.say(&self.how_to_join(vacant));
        }
    }

    /// What another machine joins with.
    pub(super) fn how_to_join(&self, (workers, servers): (u32, u32)) -> String {
        let certs = if self.prepared.security.tls.is_some() { " --certs DIR" } else { "" };
        let processes = match (workers, servers) {
            (_, 0) => format!("--workers {}", workers.max(1)),
            _ => format!("--workers {workers} --servers {servers}"),
        };
        let command = format!("`launcher join {} {processes}{certs}`", self.address);
        let waiting = [losses::workers(workers), losses::servers(servers)];
        let waiting: Vec<_> = waiting.into_iter().zip([workers, servers]).filter(|(_, count)| *count > 0).collect();
        let names: Vec<_> = waiting.iter().map(|(name, _)| name.as_str()).collect();
        match workers + servers {
            0 => format!("other machines join with {command}"),
            1 => format!("{} waits for another machine: {command}", names.join("")),
            _ => format!("{} wait for other machines: {command}", names.join(" and ")),
        }
    }

    /// How many workers and servers wait for a node.
    pub(super) fn vacant(&self) -> (u32, u32) {
        let vacant = self.nodes.nodes().vacant();
        let servers = vacant.iter().filter(|place| place.0 == Role::Server).count() as u32;
        (vacant.len() as u32 - servers, servers)
    }

    /// Follows what happened on a node.
    pub(super) async fn heed_node(&mut self, event: NodeEvent, signals: &mut Signals) -> Result<(), Failure> {
        match event {
            NodeEvent::Joined(node) => self.node_joined(node),
            NodeEvent::Started(place, pid) => {
                self.started(place, pid);
                Ok(())
            }
            NodeEvent::Ended(exit) => self.child_ended(exit, signals).await,
            NodeEvent::Left(node, reason) => self.lose_node(node, &reason, signals).await,
        }
    }

    /// A node has started a process in a place.
    pub(super) fn started(&mut self, place: Place, pid: u32) {
        self.starting.get_mut(&place).into_iter().for_each(|(known, _)| *known = pid);
    }

    /// A node gets the places that wait for one; what it can run beyond them is room for more workers.
    fn node_joined(&mut self, node: NodeId) -> Result<(), Failure> {
        let Some(NodeRecord { host, workers, servers, .. }) = self.nodes.nodes().get(node).cloned() else {
            return Ok(());
        };
        self.progress.say(&format!("{host} joins, with {}", losses::processes(workers, servers)));
        self.metric(json!({
            "event": "node_joined", "host": host, "node": node.0, "workers": workers, "servers": servers,
        }));
        self.fill_vacant()?;
        self.offers.push(node);
        Ok(())
    }

    /// Gives places that wait for a node to nodes that have room, whenever they came.
    fn fill_vacant(&mut self) -> Result<(), Failure> {
        let (phase, wanted) = {
            let cluster = self.service.cluster();
            (cluster.phase(), cluster.wanted())
        };
        if phase > Phase::Training {
            return Ok(());
        }
        let mut vacant = self.nodes.nodes().vacant();
        vacant.retain(|(role, rank)| *role == Role::Server || *rank < wanted);
        for place in vacant {
            let Some(node) = self.nodes.nodes().with_room(place.0) else { continue };
            self.nodes.nodes().seat(place, node);
            self.away.remove(&place);
            if place.0 == Role::Worker {
                self.service.cluster().await_worker(place.1);
            }
            // Whoever has just been told to start has the time that a start takes.
            self.last_change = Instant::now();
            self.start(place)?;
        }
        Ok(())
    }

    /// Makes room for the workers that nodes can run, once the run trains.
    pub(super) async fn take_offers(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        self.fill_vacant()?;
        while self.service.cluster().phase() == Phase::Training {
            let Some(node) = self.offers.pop() else { break };
            let more = self.nodes.nodes().room(node, Role::Worker);
            if more == 0 {
                continue;
            }
            let (places, most) = (self.service.cluster().wanted(), self.prepared.config.max_workers);
            let wanted = places.saturating_add(more).min(most);
            if wanted == places {
                let told =
                    format!("there are {} (--max-workers): a node has room until a place is free", workers(most));
                self.progress.say(&told);
                continue;
            }
            (places..wanted).for_each(|rank| self.nodes.nodes().seat((Role::Worker, rank), node));
            self.scale(wanted, signals).await?;
            let slices = self.prepared.config.slices;
            if wanted > slices && !self.prepared.config.mode.is_dealt() {
                let spare = workers(wanted - slices);
                self.progress.say(&format!("{spare} to spare: a run of more --slices would have work for them"));
            }
        }
        Ok(())
    }

    /// A node is gone, and its processes with it; its places wait for another for a while.
    async fn lose_node(&mut self, node: NodeId, why: &str, signals: &mut Signals) -> Result<(), Failure> {
        let removed = self.nodes.nodes().remove(node);
        let Some((NodeRecord { host, .. }, places)) = removed else { return Ok(()) };
        self.offers.retain(|other| *other != node);
        let since = Instant::now();
        let what = format!("node {host} is gone: {why}");
        self.fault((Role::Launcher, node.0 as u32), &what);
        places.iter().for_each(|place| self.watched.pulse.fault(*place, &what));
        self.metric(json!({ "event": "node_lost", "host": host, "node": node.0, "why": why }));
        let patience = Duration::from_millis(self.prepared.config.timeouts.start_ms.into());
        let (is_awaited, wanted) = {
            let cluster = self.service.cluster();
            (cluster.phase() <= Phase::Training, cluster.wanted())
        };
        if self.service.cluster().phase() < Phase::Training {
            self.last_change = Instant::now();
        }
        if is_awaited && !places.is_empty() {
            let seconds = patience.as_secs_f64();
            self.progress.say(&format!("{what}; another machine may take its place within {seconds:.0} s"));
        } else {
            self.progress.say(&what);
        }
        for place in places {
            if place.0 == Role::Server {
                self.lose_server_of_node(place, &what)?;
                continue;
            }
            let is_awaited = is_awaited && place.1 < wanted;
            self.restarts.cancel(place);
            self.starting.remove(&place);
            if is_awaited {
                self.away.insert(place, Instant::now() + patience);
            }
            let there = self.service.cluster().workers()[place.1 as usize].clone();
            match there.filter(|worker| worker.is_alive).map(|worker| worker.member) {
                Some(member) if self.ended.is_some() => self.lose_at_end(member.rank, &what),
                Some(member) => {
                    self.go_on_without(member, is_awaited, signals).await?;
                    self.struck.get_or_insert((Role::Worker, since));
                }
                None if is_awaited => {}
                None => self.give_up(place, signals).await?,
            }
        }
        // It may have left the first parameters half set.
        if self.service.cluster().is_broken() { self.begin_era() } else { Ok(()) }
    }

    /// A server is gone with its node: its place waits for another.
    fn lose_server_of_node(&mut self, place: Place, what: &str) -> Result<(), Failure> {
        if self.ended.is_some() {
            return Ok(());
        }
        let is_there = self.service.cluster().servers()[place.1 as usize].is_some();
        let has_copy = self.service.cluster().has_copy(ServerId(place.1));
        if let (true, false, Some(signal), Some(_)) = (is_there, has_copy, self.stopping, self.saving.newest) {
            // What it had since the newest checkpoint is gone; another launcher makes it again.
            return Err(self.stopped(signal));
        }
        if is_there && !self.may_replace_server(place.1, true) {
            return Err(Failure::Lost(format!("{what}, and server {} with it, which nobody may replace", place.1)));
        }
        if is_there {
            let told = format!("server {} is gone with its machine", place.1);
            self.fault(place, &told);
            self.go_on_without_server(place.1, true, &told)?;
        }
        self.restarts.cancel(place);
        self.starting.remove(&place);
        let patience = Duration::from_millis(self.prepared.config.timeouts.start_ms.into());
        self.away.insert(place, Instant::now() + patience);
        Ok(())
    }

    /// Gives up places that no node has come for.
    pub(super) async fn check_away(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        // Before training has begun, all are waited for, within a limit of its own.
        if !self.service.cluster().has_begun() {
            return Ok(());
        }
        let now = Instant::now();
        let due: Vec<Place> = self.away.iter().filter(|(_, until)| **until <= now).map(|(place, _)| *place).collect();
        for place in due {
            self.away.remove(&place);
            self.progress.say(&format!("no node came for {} {}", place.0, place.1));
            self.give_up(place, signals).await?;
        }
        Ok(())
    }

    async fn give_up(&mut self, place: Place, signals: &mut Signals) -> Result<(), Failure> {
        if place.0 == Role::Server {
            if !self.service.cluster().has_copy(ServerId(place.1)) {
                return Err(Failure::Lost(format!("no machine came for server {}, and nobody has its shard", place.1)));
            }
            self.service.cluster().abandon_server(place.1);
            return Ok(());
        }
        let events = self.service.cluster().give_up(place.1);
        for event in events {
            self.heed(event, signals).await?;
        }
        Ok(())
    }

    /// Goes on without nodes that have not been heard of for a lease.
    pub(super) async fn check_nodes(&mut self, signals: &mut Signals) -> Result<(), Failure> {
        let silent = self.nodes.silent(self.prepared.config.timeouts.lease_ms.into());
        for (node, silence) in silent {
            self.lose_node(node, &format!("it has not been heard of for {:.1} s", silence as f64 / 1e3), signals)
                .await?;
        }
        self.check_away(signals).await
    }

    /// Whether a place is on a node that has not been heard of lately: then that is what is wrong with a process there.
    pub(super) fn is_out_of_touch(&self, place: Place) -> bool {
        let limit = self.prepared.config.timeouts.heartbeat_ms.saturating_mul(BEATS_LACKING);
        let silent = self.nodes.silent(limit.into());
        silent.into_iter().any(|(node, _)| self.nodes.nodes().places_of(node).contains(&place))
    }
}
