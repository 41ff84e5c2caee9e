//! TLS, tokens and roles: who may call, what the others are told, and that no secret shows.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use convoy_proto::wire::{self, coordination_service_client::CoordinationServiceClient};
use convoy_tests::{Bench, finish};
use nix::sys::signal::Signal;
use rcgen::{CertificateParams, Issuer, KeyPair};
use tonic::{
    Code,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
};

use crate::{SMALL, bench, strikes::send};

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// What no file, command line or environment may have.
fn secrets(certs: &Path) -> Vec<String> {
    let secret = read(certs.join("token"));
    let key = read(certs.join("tls.key")).lines().nth(1).unwrap().to_string();
    let tokens = ["secret", "admin", "server", "worker"].map(|role| format!("convoy-{role}-"));
    let hex = secret.trim().rsplit_once('-').unwrap().1.to_string();
    tokens.into_iter().chain([hex, key]).collect()
}

fn shows(bytes: &[u8], secrets: &[String]) -> Option<String> {
    let is_there = |secret: &&String| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
    secrets.iter().find(is_there).cloned()
}

#[test]
fn with_certificates_a_run_ends_in_the_same_bits() {
    let bench = bench();
    let run = format!("--workers 2 --servers 2 --replicas 1 --steps 60 --slices 4 --slow-worker any:10ms {SMALL}");
    let calm = bench.train("calm", &run);
    let told = bench.succeed("certs certs").stdout;
    assert!(told.contains("127.0.0.1") && told.contains("the cluster's secret"), "{told}");
    let faults = "--chaos kill-worker@15,kill-server@25";
    let child = bench.command(&format!("--backend cpu {run} --certs certs --name safe {faults}")).spawn().unwrap();
    bench.await_steps("safe", 3);
    bench.succeed("scale safe --workers 3");
    let ended = finish(child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(bench.summary("safe")["params_sha256"], calm["params_sha256"]);
    assert!(bench.summary("safe")["restarts"].as_u64() >= Some(2));
    bench.succeed("verify safe");
}

#[test]
fn no_secret_shows_anywhere() {
    let bench = bench();
    bench.succeed("certs certs");
    let secrets = secrets(&bench.path().join("certs"));
    let run = format!("--backend cpu --workers 1 --steps 12 --slow-worker any:50ms --certs certs {SMALL} --name r");
    // A pipe that nobody reads would be full in no time.
    let told = bench.path().join("stderr");
    let mut command = bench.command(&run);
    command.env("RUST_LOG", "trace").stderr(fs::File::create(&told).unwrap());
    let child = command.spawn().unwrap();
    bench.await_steps("r", 1);
    let processes = bench.processes();
    assert!(processes.len() >= 2, "{processes:?}");
    for (pid, line) in processes {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert_eq!((shows(line.as_bytes(), &secrets), shows(&environment, &secrets)), (None, None), "{line}");
    }
    let ended = finish(child);
    assert_eq!(ended.code, Some(0));
    assert_eq!(shows(&fs::read(&told).unwrap(), &secrets), None);
    let files = files(&bench.path().join("runs"));
    let traced = files.iter().any(|file| file.ends_with("logs/worker-0.log") && read(file).contains("TRACE"));
    assert!(traced, "{files:?}");
    for file in files {
        assert_eq!(shows(&fs::read(&file).unwrap(), &secrets), None, "{}", file.display());
    }
}

/// A certificate that was good until long ago.
fn expire(certs: &Path) {
    let key = KeyPair::generate().unwrap();
    let authority = KeyPair::from_pem(&read(certs.join("ca.key"))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read(certs.join("ca.crt")), authority).unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_string()]).unwrap();
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    let old = certs.parent().unwrap().join("old");
    fs::create_dir(&old).unwrap();
    fs::write(old.join("tls.crt"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(old.join("tls.key"), key.serialize_pem()).unwrap();
    for file in ["ca.crt", "token"] {
        fs::copy(certs.join(file), old.join(file)).unwrap();
    }
}

/// Starts a process of a run, which must be refused, and is told why. What the other side says of a certificate may lose
/// a race with the end of the connection.
fn refused(bench: &Bench, process: &str, how: &str, why: &str) {
    let mut told = String::new();
    for _ in 0..10 {
        let ended = bench.run(&format!("{process} {how}"));
        assert!(matches!(ended.code, Some(1 | 2)), "{process} {how}: {:?} {}", ended.code, ended.stderr);
        told = ended.stderr;
        if told.contains(why) {
            return;
        }
    }
    panic!("{process} {how}: {told}");
}

/// The command line of a process of the run `head`.
fn process(bench: &Bench, role: &str, coordinator: &str) -> String {
    format!("{role} --run {} --rank 0 --coordinator {coordinator}", bench.run_dir("head").display())
}

async fn without_token(certs: &Path, address: &str) {
    let identity = Identity::from_pem(read(certs.join("tls.crt")), read(certs.join("tls.key")));
    let tls =
        ClientTlsConfig::new().identity(identity).ca_certificate(Certificate::from_pem(read(certs.join("ca.crt"))));
    let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
    let mut client = CoordinationServiceClient::new(endpoint.connect().await.unwrap());
    let refused = client.get_status(wire::GetStatusRequest {}).await.expect_err("no token");
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("a token is missing"), "{}", refused.message());
}

#[test]
fn whoever_may_not_call_is_told_why() {
    let bench = bench();
    bench.succeed("certs certs --host 127.0.0.1");
    bench.succeed("certs other");
    expire(&bench.path().join("certs"));
    // It believes the cluster, which does not believe it.
    bench.succeed("certs stranger");
    fs::copy(bench.path().join("certs/ca.crt"), bench.path().join("stranger/ca.crt")).unwrap();
    for role in ["worker", "server", "observer"] {
        let told = bench.succeed(&format!("certs {role} --from certs --role {role}")).stdout;
        assert!(told.contains("token"), "{told}");
    }
    let run = format!("--backend cpu --workers 1 --steps 100000 --slow-worker any:20ms {SMALL}");
    let child = bench.command(&format!("{run} --certs certs --name head")).spawn().unwrap();
    bench.await_steps("head", 1);
    let there: serde_json::Value = bench.json("head", "coordinator.json");
    let address = there["address"].as_str().unwrap();
    let port = address.rsplit_once(':').unwrap().1;

    let (worker, server) = (process(&bench, "worker", address), process(&bench, "server", address));
    for (who, how, why) in [
        (&worker, "--certs other", "its certificate is of another authority than ca.crt"),
        (&worker, "--certs stranger", "this process's certificate is of another authority than its"),
        (&worker, "--certs old", "this process's certificate has expired"),
        (&worker, "--certs observer", "the token is an observer's, which may not do this: it takes a worker's"),
        (&server, "--certs worker", "the token is of the role worker, which may not join as a server"),
        (&worker, "--certs nowhere", "cannot read nowhere/ca.crt"),
    ] {
        refused(&bench, who, how, why);
    }
    let elsewhere = process(&bench, "worker", &format!("localhost:{port}"));
    refused(&bench, &elsewhere, "--certs worker", "its certificate is not for this name or address");
    // Its own token does not scale a run, another cluster's none.
    for (certs, why) in [
        ("worker", "the token is a worker's, which may not do this: it takes an admin's"),
        ("other", "the token is not one of this cluster's"),
    ] {
        let token = read(bench.path().join(certs).join("token"));
        let ended = finish(bench.command("scale head --workers 2").env("CONVOY_TOKEN", token.trim()).spawn().unwrap());
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains(why), "{certs}: {}", ended.stderr);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(without_token(&bench.path().join("certs"), address));
    // In the clear.
    let plain = bench.run_dir("head").with_file_name("plain");
    fs::create_dir(&plain).unwrap();
    let config = read(bench.run_dir("head").join("config.toml"));
    let lines: Vec<_> = config.lines().filter(|line| !line.starts_with("certs")).collect();
    fs::write(plain.join("config.toml"), lines.join("\n")).unwrap();
    let worker = format!("worker --run {} --rank 0 --coordinator {address}", plain.display());
    refused(&bench, &worker, "", "it may want TLS: say --certs");

    send(child.id() as i32, Signal::SIGTERM);
    assert_eq!(finish(child).code, Some(75));
    assert_eq!(bench.summary("head")["faults"].as_u64(), Some(0));
}

#[test]
fn certificates_are_not_shown_to_a_run_without() {
    let bench = bench();
    bench.succeed("certs certs");
    let run = format!("--backend cpu --workers 1 --steps 100000 --slow-worker any:20ms {SMALL}");
    let child = bench.command(&format!("{run} --name head")).spawn().unwrap();
    bench.await_steps("head", 1);
    let there: serde_json::Value = bench.json("head", "coordinator.json");
    let worker = process(&bench, "worker", there["address"].as_str().unwrap());
    refused(&bench, &worker, "--certs certs", "it does not speak TLS: it was started without --certs");
    send(child.id() as i32, Signal::SIGTERM);
    assert_eq!(finish(child).code, Some(75));
}

#[test]
fn what_is_secret_is_its_owners_and_never_replaced() {
    let bench = bench();
    bench.succeed("certs certs --host node1 --host 10.0.0.1");
    let mode = |file: &str| fs::metadata(bench.path().join("certs").join(file)).unwrap().permissions().mode() & 0o777;
    for (file, expected) in
        [("token", 0o600), ("tls.key", 0o600), ("ca.key", 0o600), ("tls.crt", 0o644), ("ca.crt", 0o644)]
    {
        assert_eq!(mode(file), expected, "{file}");
    }
    let token = read(bench.path().join("certs/token"));
    let again = bench.run("certs certs");
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("certs/ca.key is there already"), "{}", again.stderr);
    assert_eq!(read(bench.path().join("certs/token")), token);
    bench.succeed("certs node2 --from certs --host node2");
    for (arguments, why) in [
        ("certs x --from node2", "cannot read node2/ca.key"),
        ("certs x --from nowhere", "cannot read nowhere/ca.crt"),
        ("certs y --from certs --role boss", "--role: there is no role `boss`: observer, worker, server or admin"),
        ("--certs nowhere --name a", "cannot read nowhere/ca.crt"),
        ("--certs node2 --name a", "the token is one role's, but a launcher checks others' tokens"),
        ("--listen 0.0.0.0:0 --name a", "is off loopback, where calls need certificates and a token"),
        ("--listen 0.0.0.0:0 --certs certs --name a", "say which is with --advertise-addr HOST"),
        ("--listen 127.0.0.1:0 --certs certs --insecure --name a", "exclude each other"),
    ] {
        let ended = bench.run(arguments);
        assert_eq!(ended.code, Some(2), "{arguments}: {}", ended.stderr);
        assert!(ended.stderr.contains(why), "{arguments}: {}", ended.stderr);
    }
    let damaged = bench.path().join("certs/tls.crt");
    fs::write(&damaged, "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n").unwrap();
    let ended = bench.run("--certs certs --name a");
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("the certificates in"), "{}", ended.stderr);
}
