//! What members tell with their heartbeats beside that they are there: none of it is a reason to refuse one.

use std::sync::OnceLock;

use convoy_proto::{
    ids::{Member, Role},
    wire,
};

use super::core::Cluster;
use crate::watch::trace::{Sink, Source, Told};

/// Where it goes.
#[derive(Debug, Default)]
pub struct Telemetry {
    /// Where spans of members go, if the run is traced.
    spans: OnceLock<Sink>,
}

impl Telemetry {
    /// Hands on where members spend their time.
    pub fn trace(&self, spans: Sink) {
        let _ = self.spans.set(spans);
    }

    /// Takes in what a member tells.
    pub fn note(&self, cluster: &mut Cluster, member: Member, heartbeat: wire::HeartbeatRequest) {
        let wire::HeartbeatRequest { vitals, spans, dropped_spans, .. } = heartbeat;
        if let Some(vitals) = vitals {
            cluster.note_vitals(member, vitals.into());
        }
        if let Some((sink, source)) = self.spans.get().zip(source_of(cluster, member)) {
            let spans = spans.into_iter().map(Into::into).collect();
            sink.tell(Told { source, spans, dropped: dropped_spans });
        }
    }
}

/// Which process a member is.
fn source_of(cluster: &Cluster, member: Member) -> Option<Source> {
    let Member { role, rank, .. } = member;
    let (pid, host) = match role {
        Role::Worker => cluster.workers().get(rank as usize)?.as_ref().map(|worker| (worker.pid, worker.host.clone())),
        Role::Server => cluster.servers().get(rank as usize)?.as_ref().map(|server| (server.pid, server.host.clone())),
        Role::Launcher => None,
    }?;
    Some(Source { role, rank, pid, host })
}
