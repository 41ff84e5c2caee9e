//! The services as anything else on the machine meets them: health, status, and what strangers are told.

use std::{io::Write, net::TcpStream};

use convoy_proto::wire::{
    self, coordination_service_client::CoordinationServiceClient, parameters_service_client::ParametersServiceClient,
    push_pull_request::Part,
};
use convoy_tests::{Bench, finish};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{SMALL, bench};

/// The word after `flag` on the command line of some process of the run.
fn argument(bench: &Bench, flag: &str) -> String {
    let processes = bench.processes();
    let find = |line: &String| line.split(' ').skip_while(|word| *word != flag).nth(1).map(String::from);
    processes.iter().find_map(|(_, line)| find(line)).unwrap_or_else(|| panic!("no {flag} in {processes:?}"))
}

fn stranger() -> Option<wire::Member> {
    Some(wire::Member { role: wire::Role::Worker.into(), rank: 0, incarnation: 999 })
}

async fn is_serving(address: &str, service: &str) {
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    let answer = client.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
    assert_eq!(answer.status, 1, "{service} serves");
}

async fn disturb_server(address: &str) {
    let mut client = ParametersServiceClient::connect(format!("http://{address}")).await.unwrap();
    let header = wire::PushHeader { member: stranger(), ..Default::default() };
    let push = |part| tokio_stream::iter([wire::PushPullRequest { part, without_blocks: false, shared: false }]);
    let refusals = [
        (Some(Part::Header(header)), Code::Aborted),
        (Some(Part::Header(wire::PushHeader::default())), Code::InvalidArgument),
        (Some(Part::Frame(wire::GradientFrame::default())), Code::InvalidArgument),
        (None, Code::InvalidArgument),
    ];
    for (part, code) in refusals {
        let refused = client.push_pull(push(part.clone())).await.expect_err("a stranger is refused");
        assert_eq!(refused.code(), code, "{part:?}: {}", refused.message());
    }
    let blocks = wire::InitialiseRequest { member: stranger(), blocks: Vec::new(), era: 0 };
    let refused = client.initialise(tokio_stream::iter([blocks])).await.expect_err("a stranger is refused");
    assert_eq!(refused.code(), Code::Aborted, "{}", refused.message());
    let pull =
        wire::PullRequest { member: stranger(), era: 7, step: Some(0), averaged: false, extent: 1, shared: false };
    assert_eq!(client.pull(pull).await.expect_err("another era").code(), Code::Aborted);
}

async fn disturb_coordinator(address: &str) {
    let mut client = CoordinationServiceClient::connect(format!("http://{address}")).await.unwrap();
    let heartbeat = client.heartbeat(wire::HeartbeatRequest { member: stranger(), ..Default::default() }).await;
    assert_eq!(heartbeat.expect_err("a stranger").code(), Code::PermissionDenied);
    let join = client.join(wire::JoinRequest::default()).await;
    assert_eq!(join.expect_err("nobody").code(), Code::InvalidArgument);
    let decide = wire::DecideRequest { member: stranger(), ..Default::default() };
    assert_eq!(client.decide(decide).await.expect_err("no server").code(), Code::InvalidArgument);
    let status = client.get_status(wire::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.steps, status.members.len()), (600, 3));
    assert!(status.members.iter().all(|member| member.pid > 0 && member.heartbeat_age_seconds < 60.0));
}

fn rubbish(address: &str) {
    let mut socket = TcpStream::connect(address).unwrap();
    // The other side may hang up in the middle.
    let _ = socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff rubbish");
}

/// What a connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Connections that say nothing, and such that say something else than they should; those that are held are given.
fn flood(address: &str) -> Vec<TcpStream> {
    let connect = || TcpStream::connect(address).unwrap();
    let noise = |seed: usize| (0..4096).map(|n: usize| (n.wrapping_mul(seed * 2 + 167) >> 3) as u8).collect::<Vec<_>>();
    let held = (0..150).map(|_| connect()).collect();
    for seed in 0..50 {
        // A frame of 16 MiB, of a kind that there is not.
        let frame = [PREFACE, &[0xff, 0xff, 0xff, 0x42, 0, 0, 0, 0, 1], &noise(seed)].concat();
        for bytes in [noise(seed), b"GET / HTTP/1.1\r\nHost: convoy\r\n\r\n".to_vec(), frame] {
            let _ = connect().write_all(&bytes);
        }
    }
    held
}

/// Messages that are larger than any should be.
async fn swamp(address: &str) {
    let client = ParametersServiceClient::connect(format!("http://{address}")).await.unwrap();
    let block = wire::GradientBlock { payload: vec![7; 8 << 20].into(), ..Default::default() };
    let part = Some(Part::Frame(wire::GradientFrame { blocks: vec![block] }));
    for _ in 0..8 {
        let request =
            tokio_stream::iter([wire::PushPullRequest { part: part.clone(), without_blocks: false, shared: false }]);
        let refused = client.clone().push_pull(request).await.expect_err("a message of 8 MiB");
        assert_eq!(refused.code(), Code::OutOfRange, "{}", refused.message());
    }
}

#[test]
fn a_flood_changes_nothing() {
    let bench = bench();
    // Delays leave time to disturb it, on a busy machine, too.
    let train = format!("--backend cpu --workers 2 --steps 400 --slow-worker any:15ms {SMALL}");
    let child = bench.command(&format!("{train} --name flooded")).spawn().unwrap();
    bench.await_steps("flooded", 3);
    let server = bench.summary("flooded")["servers"][0]["address"].as_str().unwrap().to_string();
    let held = [server.clone(), argument(&bench, "--coordinator")].map(|address| flood(&address));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(swamp(&server));
    let ended = finish(child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    drop(held);
    let summary = bench.summary("flooded");
    assert_eq!((summary["restarts"].as_u64(), summary["faults"].as_u64()), (Some(0), Some(0)));
    bench.succeed(&format!("{train} --name calm"));
    assert_eq!(summary["params_sha256"], bench.summary("calm")["params_sha256"]);
}

#[test]
fn strangers_are_told_no_and_change_nothing() {
    let bench = bench();
    // Delays leave time to disturb it.
    let train =
        format!("--backend cpu --workers 2 --steps 600 --optimizer adamw --clip-norm 1 --slow-worker any:5ms {SMALL}");
    let child = bench.command(&format!("{train} --name disturbed")).spawn().unwrap();
    bench.await_steps("disturbed", 3);
    let server = bench.summary("disturbed")["servers"][0]["address"].as_str().unwrap().to_string();
    let coordinator = argument(&bench, "--coordinator");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        is_serving(&server, "convoy.v1.ParametersService").await;
        is_serving(&coordinator, "convoy.v1.CoordinationService").await;
        disturb_server(&server).await;
        disturb_coordinator(&coordinator).await;
    });
    rubbish(&server);
    rubbish(&coordinator);
    let run = bench.run_dir("disturbed").display().to_string();
    let extra = bench.run(&format!("worker --run {run} --rank 9 --coordinator {coordinator}"));
    assert_eq!(extra.code, Some(1), "{}", extra.stderr);
    assert!(extra.stderr.contains("there is no place for worker 9: the run has 2"), "{}", extra.stderr);

    let ended = finish(child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    bench.succeed(&format!("{train} --name calm"));
    assert_eq!(bench.summary("disturbed")["params_sha256"], bench.summary("calm")["params_sha256"]);
}
