//! The coordinator's listener.

use std::net::SocketAddr;

use convoy_proto::{
    limits,
    transport::{Defence, control_server, incoming},
    wire::{
        DESCRIPTORS, coordination_service_server::CoordinationServiceServer, node_service_server::NodeServiceServer,
    },
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    coordinator::{node_service::NodesService, service::CoordinatorService},
    outcome::Failure,
};

/// A listener on the address, or why there is none.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|problem| {
        Failure::Environment(format!(
            "cannot listen on {address}: {problem}; choose another --listen, port 0 takes a free one"
        ))
    })
}

/// Serves coordination, health and reflection until `stop`; gives the port.
pub fn serve(
    listener: TcpListener,
    (service, nodes): (CoordinatorService, NodesService),
    defence: &Defence,
    stop: CancellationToken,
) -> Result<(u16, JoinHandle<Result<(), tonic::transport::Error>>), Failure> {
    let broken = |problem: &dyn std::fmt::Display| Failure::Environment(format!("cannot serve: {problem}"));
    let port = listener.local_addr().map_err(|problem| broken(&problem))?.port();
    let mut server = control_server(defence).map_err(|problem| broken(&problem))?;
    let service = CoordinationServiceServer::new(service)
        .max_decoding_message_size(limits::CONTROL_BYTES)
        .max_encoding_message_size(limits::CONTROL_BYTES);
    let nodes = NodeServiceServer::new(nodes)
        .max_decoding_message_size(limits::CONTROL_BYTES)
        .max_encoding_message_size(limits::CONTROL_BYTES);
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTORS);
    let reflection = reflection.build_v1().map_err(|problem| broken(&problem))?;
    let serving = tokio::spawn(async move {
        health.set_serving::<CoordinationServiceServer<CoordinatorService>>().await;
        let router = server.add_service(service).add_service(nodes).add_service(health_service).add_service(reflection);
        router.serve_with_incoming_shutdown(incoming(listener), stop.cancelled_owned()).await
    });
    Ok((port, serving))
}
