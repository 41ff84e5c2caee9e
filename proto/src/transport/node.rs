//! The client of the service for nodes.

use bytes::Bytes;
use tokio_stream::{Stream, StreamExt};

use super::{Credentials, Peer, Shown, TransportError, call, control_channel};
use crate::{
    ids::{NodeId, ServerId},
    limits,
    node::{NodeAdmission, NodeOffer, OrderReport, Orders},
    wire::{self, node_service_client::NodeServiceClient},
};

/// A node's connection to the coordinator. Clones share it.
#[derive(Clone, Debug)]
pub struct NodeClient {
    peer: Peer,
    client: NodeServiceClient<Shown>,
}

impl NodeClient {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there, or one side does not believe the other's certificate.
    pub async fn connect(address: &str, credentials: &Credentials) -> Result<NodeClient, TransportError> {
        let peer = Peer { name: "the coordinator".into(), address: address.into() };
        let client = NodeServiceClient::new(control_channel(&peer, credentials).await?)
            .max_decoding_message_size(limits::CONTROL_BYTES)
            .max_encoding_message_size(limits::CONTROL_BYTES);
        Ok(NodeClient { peer, client })
    }

    fn failed(&self) -> impl FnOnce(tonic::Status) -> TransportError + '_ {
        |status| TransportError::of(&self.peer, &status)
    }

    /// Offers to run processes.
    ///
    /// # Errors
    /// A refusal, which names what differs.
    pub async fn join(&self, offer: NodeOffer) -> Result<NodeAdmission, TransportError> {
        let response = self.client.clone().join_node(call(offer.into())).await.map_err(self.failed())?;
        response.into_inner().try_into().map_err(TransportError::malformed(&self.peer))
    }

    /// What the node is to run, now and at every change.
    ///
    /// # Errors
    /// The coordinator does not know the node, or is gone; on the stream, too.
    pub async fn orders(
        &self,
        node: NodeId,
    ) -> Result<impl Stream<Item = Result<Orders, TransportError>> + Unpin + use<>, TransportError> {
        let request = wire::WatchOrdersRequest { node: node.0 };
        let stream = self.client.clone().watch_orders(request).await.map_err(self.failed())?.into_inner();
        let peer = self.peer.clone();
        Ok(stream.map(move |orders| match orders {
            Ok(orders) => orders.try_into().map_err(TransportError::malformed(&peer)),
            Err(status) => Err(TransportError::of(&peer, &status)),
        }))
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// The coordinator does not know the node, or is gone.
    pub async fn renew(&self, node: NodeId) -> Result<(), TransportError> {
        let request = wire::RenewNodeRequest { node: node.0 };
        self.client.clone().renew_node(call(request)).await.map_err(self.failed()).map(drop)
    }

    /// Tells what became of an order.
    ///
    /// # Errors
    /// The coordinator does not know the node, or is gone.
    pub async fn report(&self, node: NodeId, report: OrderReport) -> Result<(), TransportError> {
        let request = call(report.into_request(node));
        self.client.clone().report_order(request).await.map_err(self.failed()).map(drop)
    }

    /// Hands over lines of a server's ledger, once the run is over.
    ///
    /// # Errors
    /// The coordinator does not know the node or the server as its, cannot keep them, or is gone.
    pub async fn hand_over(&self, node: NodeId, server: ServerId, lines: Bytes) -> Result<(), TransportError> {
        let request = wire::HandOverRequest { node: node.0, server: server.0, lines };
        self.client.clone().hand_over(call(request)).await.map_err(self.failed()).map(drop)
    }

    /// Goes, on purpose.
    ///
    /// # Errors
    /// The coordinator is gone already.
    pub async fn leave(&self, node: NodeId, reason: &str) -> Result<(), TransportError> {
        let request = wire::LeaveNodeRequest { node: node.0, reason: reason.into() };
        self.client.clone().leave_node(call(request)).await.map_err(self.failed()).map(drop)
    }
}
