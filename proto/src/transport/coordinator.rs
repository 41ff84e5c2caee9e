//! The client of the coordination service.

use std::time::Duration;

use tokio_stream::{Stream, StreamExt};

use super::{Credentials, Peer, Shown, TransportError, call, control_channel, within};
use crate::{
    ids::{Era, Generation, Member},
    limits,
    manifest::Manifest,
    messages::{Accumulated, Admission, ClusterView, JoinOffer, Report, ShardReport, Staged, Verdict, Vitals, Work},
    schedule::Horizon,
    trace,
    wire::{self, coordination_service_client::CoordinationServiceClient},
};

/// A connection to the coordinator. Clones share it.
#[derive(Clone, Debug)]
pub struct Coordinator {
    peer: Peer,
    credentials: Credentials,
    client: CoordinationServiceClient<Shown>,
}

impl Coordinator {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there, or one side does not believe the other's certificate.
    pub async fn connect(address: &str, credentials: Credentials) -> Result<Coordinator, TransportError> {
        let peer = Peer { name: "the coordinator".into(), address: address.into() };
        let client = CoordinationServiceClient::new(control_channel(&peer, &credentials).await?)
            .max_decoding_message_size(limits::CONTROL_BYTES)
            .max_encoding_message_size(limits::CONTROL_BYTES);
        Ok(Coordinator { peer, credentials, client })
    }

    /// Who it is.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What this process shows to it, and to servers.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    fn failed(&self) -> impl FnOnce(tonic::Status) -> TransportError + '_ {
        |status| TransportError::of(&self.peer, &status)
    }

    /// Asks to be admitted.
    ///
    /// # Errors
    /// A refusal, which names what differs.
    pub async fn join(&self, offer: JoinOffer) -> Result<Admission, TransportError> {
        let response = self.client.clone().join(call(offer.into())).await.map_err(self.failed())?;
        response.into_inner().try_into().map_err(TransportError::malformed(&self.peer))
    }

    /// The cluster's view, now and at every change.
    ///
    /// # Errors
    /// The coordinator does not know the member, or is gone; on the stream, too.
    pub async fn watch(
        &self,
        member: Member,
    ) -> Result<impl Stream<Item = Result<ClusterView, TransportError>> + use<>, TransportError> {
        let request = wire::WatchRequest { member: Some(member.into()) };
        let stream = self.client.clone().watch(request).await.map_err(self.failed())?.into_inner();
        let peer = self.peer.clone();
        Ok(stream.map(move |view| match view {
            Ok(view) => view.try_into().map_err(TransportError::malformed(&peer)),
            Err(status) => Err(TransportError::of(&peer, &status)),
        }))
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// The coordinator does not know the member, or is gone.
    pub async fn heartbeat(
        &self,
        member: Member,
        (computing, vitals): (Duration, Option<Vitals>),
        limit: Duration,
    ) -> Result<(), TransportError> {
        let computing_ms = u64::try_from(computing.as_millis()).unwrap_or(u64::MAX);
        let (member, vitals) = (Some(member.into()), vitals.map(Into::into));
        let (spans, dropped_spans) = trace::take(trace::A_HEARTBEAT);
        let told = spans.len() as u64 + dropped_spans;
        let spans = spans.into_iter().map(Into::into).collect();
        let request = within(wire::HeartbeatRequest { member, computing_ms, vitals, spans, dropped_spans }, limit);
        let answer = self.client.clone().heartbeat(request).await;
        answer.inspect_err(|_| trace::lost(told)).map_err(self.failed()).map(drop)
    }

    /// The manifest and the run's length; waits up to `limit` for the first worker to bring it.
    ///
    /// # Errors
    /// The wait was too long, or the coordinator is gone.
    pub async fn manifest(&self, member: Member, limit: Duration) -> Result<(Manifest, Horizon), TransportError> {
        let request = within(wire::GetManifestRequest { member: Some(member.into()) }, limit);
        let response = self.client.clone().get_manifest(request).await.map_err(self.failed())?.into_inner();
        let manifest = response.manifest.unwrap_or_default();
        let manifest = manifest.try_into().map_err(TransportError::malformed(&self.peer))?;
        Ok((manifest, Horizon { steps: response.steps, steps_per_epoch: response.steps_per_epoch }))
    }

    /// Hands in a shard's part of a decision and waits up to `limit` for the verdict.
    ///
    /// # Errors
    /// The wait was too long, the part contradicts another shard's, or the coordinator is gone.
    pub async fn decide(&self, member: Member, part: Accumulated, limit: Duration) -> Result<Verdict, TransportError> {
        let request = within(part.into_request(member), limit);
        let response = self.client.clone().decide(request).await.map_err(self.failed())?.into_inner();
        response.verdict.try_into().map_err(TransportError::malformed(&self.peer))
    }

    /// Tells that a shard has all of a push, and waits up to `limit` for what becomes of it: the verdict that closes its
    /// step or commits it, or nothing if it is dropped.
    ///
    /// # Errors
    /// The wait was too long, the push contradicts another shard's, or the coordinator is gone.
    pub async fn stage(
        &self,
        member: Member,
        staged: Staged,
        limit: Duration,
    ) -> Result<Option<Verdict>, TransportError> {
        let request = within(staged.into_request(member), limit);
        let response = self.client.clone().stage(request).await.map_err(self.failed())?.into_inner();
        let verdict = response.verdict.map(|verdict| Some(verdict).try_into());
        verdict.transpose().map_err(TransportError::malformed(&self.peer))
    }

    /// Asks for something to do after the slice of number `after`, and waits for it up to `limit`; gives the membership that
    /// it supposes, too.
    ///
    /// # Errors
    /// The wait was too long, or the coordinator is gone.
    pub async fn deal(
        &self,
        (member, after): (Member, u64),
        limit: Duration,
    ) -> Result<(Work, Generation), TransportError> {
        let request = within(wire::DealRequest { member: Some(member.into()), after }, limit);
        let response = self.client.clone().deal(request).await.map_err(self.failed())?.into_inner();
        response.try_into().map_err(TransportError::malformed(&self.peer))
    }

    /// Tells what was done.
    ///
    /// # Errors
    /// The coordinator refuses it, or is gone.
    pub async fn report(&self, member: Member, era: Era, reports: Vec<Report>) -> Result<(), TransportError> {
        let reports = reports.into_iter().map(Into::into).collect();
        let request = wire::ReportRequest { member: Some(member.into()), reports, era: era.0 };
        self.client.clone().report(call(request)).await.map_err(self.failed()).map(drop)
    }

    /// Tells what a server did with a checkpoint.
    ///
    /// # Errors
    /// The coordinator refuses it, or is gone.
    pub async fn report_shard(&self, member: Member, era: Era, report: ShardReport) -> Result<(), TransportError> {
        let request = report.into_request(member, era);
        self.client.clone().report_shard(call(request)).await.map_err(self.failed()).map(drop)
    }

    /// Asks for another number of workers; gives how many there are.
    ///
    /// # Errors
    /// The coordinator refuses it, or is gone.
    pub async fn scale(&self, workers: u32) -> Result<u32, TransportError> {
        let request = wire::ScaleRequest { workers };
        let response = self.client.clone().scale(call(request)).await.map_err(self.failed())?;
        Ok(response.into_inner().before)
    }

    /// Goes, on purpose.
    ///
    /// # Errors
    /// The coordinator is gone already.
    pub async fn leave(&self, member: Member, reason: &str) -> Result<(), TransportError> {
        let request = wire::LeaveRequest { member: Some(member.into()), reason: reason.into() };
        self.client.clone().leave(call(request)).await.map_err(self.failed()).map(drop)
    }
}
