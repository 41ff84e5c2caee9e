//! `--nnodes`: the same command on each machine, as torchrun has it. One of them coordinates, the others join it.
//!
//! The machine that has the endpoint's address coordinates, or the one whose `--node-rank` is 0. There is no other
//! agreement: the endpoint's socket decides, which only one process can have.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs},
};

use convoy_proto::config::{RawConfig, raw::CountOrAuto};

use crate::{
    args::{JoinArgs, Places, TrainArgs},
    outcome::Failure,
    settings,
};

/// What a machine does in a run.
#[derive(Clone, Debug)]
pub enum Part {
    /// It trains, and coordinates the others if there are some.
    Coordinate(Box<TrainArgs>, Places),
    /// It joins a run.
    Join(JoinArgs),
}

/// Where the machines of a run meet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    host: String,
    port: u16,
}

/// What is wrong with a flag.
fn wrong(flag: &str, text: &str, problem: &str) -> Failure {
    Failure::Usage(format!("{flag} {text}: {problem}"))
}

/// How many machines there must be, and may be.
fn nodes(text: &str) -> Result<(u32, u32), Failure> {
    let (least, most) = text.split_once(':').unwrap_or((text, text));
    let count = |text: &str| text.parse::<u32>().ok().filter(|count| (1..=4096).contains(count));
    let range = count(least).zip(count(most)).filter(|(least, most)| least <= most);
    range.ok_or_else(|| wrong("--nnodes", text, "must be a number of machines, or the least and the most, such as 2:4"))
}

/// Whether an address says nothing: it would be every machine's.
fn is_anywhere(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

fn endpoint(text: &str) -> Result<Endpoint, Failure> {
    let problem = "must be a host and a port, such as node1:29400";
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("--rdzv-endpoint", text, problem))?;
    let port = port.parse().ok().filter(|port| *port > 0);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match port {
        Some(port) if !host.is_empty() && !is_anywhere(host) => Ok(Endpoint { host: host.into(), port }),
        _ => Err(wrong("--rdzv-endpoint", text, problem)),
    }
}

/// The flags of the machine that coordinates, among so many, each with so many workers.
fn coordinating(args: &TrainArgs, raw: &RawConfig, (least, most): (u32, u32), local: u32) -> TrainArgs {
    let mut args = args.clone();
    args.workers = Some((least * local).to_string());
    args.local_workers = Some(local.to_string());
    if raw.max_workers.is_none() {
        args.max_workers = Some((most * local).to_string());
    }
    // Results depend on it, and so must not on how many machines happen to be there.
    if raw.slices.is_none() {
        args.slices = Some((most * local).to_string());
    }
    args
}

/// A run for which nobody says what machines take part.
fn alone(args: &TrainArgs, places: &Places) -> Result<Part, Failure> {
    let given = [
        ("--node-rank", args.rendezvous.node_rank.is_some()),
        ("--rdzv-endpoint", args.rendezvous.rdzv_endpoint.is_some()),
        ("--rdzv-id", args.rendezvous.rdzv_id.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(Failure::Usage(format!("{flag} means nothing without --nnodes"))),
        None => Ok(Part::Coordinate(Box::new(args.clone()), places.clone())),
    }
}

/// What this machine does in the run that it is asked to train.
///
/// # Errors
/// Flags that do not fit each other, or an endpoint that does not resolve.
pub fn part(args: &TrainArgs, places: &Places) -> Result<Part, Failure> {
    let Some(text) = &args.rendezvous.nnodes else { return alone(args, places) };
    let range = nodes(text)?;
    // From wherever it is said: a file, a variable or the command line.
    let raw = settings::gather(args, places)?;
    let local = match raw.workers {
        None => Some(1),
        Some(CountOrAuto::Count(count)) => u32::try_from(count).ok().filter(|count| (1..=4096).contains(count)),
        Some(CountOrAuto::Auto(_)) => None,
    };
    let local = local
        .ok_or_else(|| Failure::Usage("with --nnodes, --workers must be a number: that of each machine".into()))?;
    if range.1.saturating_mul(local) > 4096 {
        return Err(wrong("--nnodes", text, "makes more than 4096 workers"));
    }
    let problem = "is needed with --nnodes: where the machines meet, the same on all, such as node1:29400";
    let place =
        args.rendezvous.rdzv_endpoint.as_deref().ok_or_else(|| wrong("--rdzv-endpoint", "HOST:PORT", problem))?;
    let endpoint = endpoint(place)?;
    let listen = match args.rendezvous.node_rank {
        Some(rank) if rank >= range.1 => {
            return Err(wrong("--node-rank", &rank.to_string(), "there are not as many machines; they count from 0"));
        }
        Some(0) => {
            let addresses = resolve(&endpoint)?;
            // Others may reach it at an address that it does not know of itself.
            let anywhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), endpoint.port);
            Some(mine(&addresses).unwrap_or(anywhere))
        }
        Some(_) => None,
        None => mine(&resolve(&endpoint)?),
    };
    // To look at the plan takes no other machine.
    let anywhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let listen = listen.or_else(|| args.dry_run.then_some(anywhere));
    Ok(match listen {
        Some(mut listen) => {
            let mut args = coordinating(args, &raw, range, local);
            let is_name = endpoint.host.parse::<IpAddr>().is_err();
            if is_name && endpoint.host != "localhost" && listen.ip().is_loopback() && !args.dry_run {
                // What this machine calls itself; others reach it by the name elsewhere.
                listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
            }
            if raw.listen.is_none() {
                args.network.listen = Some(listen.to_string());
            }
            if raw.advertise_addr.is_none() && (is_name || listen.ip().is_unspecified()) && !args.dry_run {
                args.network.advertise_addr = Some(endpoint.host);
            }
            let name = args.rendezvous.rdzv_id.clone();
            Part::Coordinate(Box::new(args), Places { name: name.or_else(|| places.name.clone()), ..places.clone() })
        }
        None => Part::Join(JoinArgs {
            coordinator: place.into(),
            workers: local,
            id: args.rendezvous.rdzv_id.clone().or(raw.name),
            backend: raw.backend,
            data: raw.data.filter(|data| data.contains(':')),
            certs: raw.certs.filter(|certs| !certs.is_empty()).map(Into::into),
            wait: args.rendezvous.rdzv_wait,
        }),
    })
}

/// The addresses of an endpoint. One that does not resolve is an end: a machine that went on by itself would train alone.
fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, Failure> {
    let found = (endpoint.host.as_str(), endpoint.port).to_socket_addrs();
    let cannot = |problem: String| {
        let Endpoint { host, port } = endpoint;
        Failure::Environment(format!("cannot resolve --rdzv-endpoint {host}:{port}: {problem}"))
    };
    let found: Vec<SocketAddr> = found.map_err(|problem| cannot(problem.to_string()))?.collect();
    if found.is_empty() { Err(cannot("it has no address".into())) } else { Ok(found) }
}

/// The address of an endpoint that is this machine's, unless somebody on this machine has its port at any of them.
fn mine(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let bind = |address: &SocketAddr| TcpListener::bind(address).map(drop).map_err(|problem| problem.kind());
    let tried: Vec<_> = addresses.iter().map(|address| (*address, bind(address))).collect();
    if tried.iter().any(|(_, bound)| *bound == Err(ErrorKind::AddrInUse)) {
        return None;
    }
    let is_mine = |bound: &Result<(), ErrorKind>| matches!(bound, Ok(()) | Err(ErrorKind::PermissionDenied));
    tried.into_iter().find(|(_, bound)| is_mine(bound)).map(|(address, _)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(nnodes: &str, workers: &str, rank: Option<u32>) -> TrainArgs {
        let mut args = TrainArgs { workers: Some(workers.into()), ..TrainArgs::default() };
        args.rendezvous.nnodes = Some(nnodes.into());
        args.rendezvous.node_rank = rank;
        args.rendezvous.rdzv_endpoint = Some("127.0.0.1:29400".into());
        args.rendezvous.rdzv_id = Some("job".into());
        args
    }

    const PLACES: Places = Places { run_dir: None, name: None };

    #[test]
    fn machines_are_counted() {
        assert_eq!((nodes("3").unwrap(), nodes("2:4").unwrap()), ((3, 3), (2, 4)));
        for text in ["", "0", "4:2", "a", "1:2:3", "-1", "5000"] {
            assert!(nodes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_are_read() {
        let read = |text: &str| endpoint(text).map(|Endpoint { host, port }| (host, port)).ok();
        assert_eq!(read("node1:29400"), Some(("node1".into(), 29400)));
        assert_eq!(read("[::1]:5"), Some(("::1".into(), 5)));
        for text in ["node1", "node1:", ":5", "0.0.0.0:5", "[::]:5", "node1:0", "node1:70000"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_coordinates_and_the_others_join() {
        let Part::Coordinate(first, places) = part(&args("2:3", "4", Some(0)), &PLACES).unwrap() else { panic!() };
        let text = |text: &str| Some(text.to_string());
        assert_eq!((first.workers, first.local_workers), (text("8"), text("4")));
        assert_eq!((first.slices, first.max_workers), (text("12"), text("12")));
        assert_eq!((first.network.listen, places.name), (text("127.0.0.1:29400"), text("job")));
        let Part::Join(other) = part(&args("2:3", "4", Some(1)), &PLACES).unwrap() else { panic!() };
        assert_eq!((other.coordinator.as_str(), other.workers, other.id), ("127.0.0.1:29400", 4, text("job")));
    }

    #[test]
    fn flags_that_do_not_fit_are_refused() {
        let refused = |args: &TrainArgs| part(args, &PLACES).unwrap_err().to_string();
        assert!(refused(&args("2", "auto", None)).contains("must be a number: that of each machine"));
        assert!(refused(&args("2", "1", Some(2))).contains("there are not as many machines"));
        assert!(refused(&args("2000", "4", None)).contains("more than 4096"));
        let mut nowhere = args("2", "1", None);
        nowhere.rendezvous.rdzv_endpoint = None;
        assert!(refused(&nowhere).contains("is needed with --nnodes"));
        nowhere.rendezvous.nnodes = None;
        assert!(refused(&nowhere).contains("--rdzv-id means nothing without --nnodes"));
        let mut unknown = args("2", "1", Some(0));
        unknown.rendezvous.rdzv_endpoint = Some("no.such.host.invalid:1".into());
        assert!(refused(&unknown).contains("cannot resolve --rdzv-endpoint no.such.host.invalid:1"));
    }
}
