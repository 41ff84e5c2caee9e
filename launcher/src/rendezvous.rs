//! `--nnodes`: the same command on each machine, as torchrun has it. One of them coordinates, the others join it.
//!
//! The machine that has the endpoint's address coordinates, or the one whose `--node-rank` is 0. There is no other
//! agreement, so there can be no two: the endpoint is one socket, and only one process can have it.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs},
};

use crate::{
    args::{JoinArgs, Places, TrainArgs},
    outcome::Failure,
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

fn endpoint(text: &str) -> Result<Endpoint, Failure> {
    let problem = "must be a host and a port, such as node1:29400";
    let (host, port) = text.rsplit_once(':').ok_or_else(|| wrong("--rdzv-endpoint", text, problem))?;
    let port = port.parse().ok().filter(|port| *port > 0);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match port {
        Some(port) if !host.is_empty() => Ok(Endpoint { host: host.into(), port }),
        _ => Err(wrong("--rdzv-endpoint", text, problem)),
    }
}

/// The flags of the machine that coordinates, among so many, each with so many workers.
fn coordinating(args: &TrainArgs, (least, most): (u32, u32), local: u32) -> TrainArgs {
    let mut args = args.clone();
    args.workers = Some((least * local).to_string());
    args.local_workers = Some(local.to_string());
    args.max_workers.get_or_insert_with(|| (most * local).to_string());
    // Results depend on it, and so must not on how many machines happen to be there.
    args.slices.get_or_insert_with(|| (most * local).to_string());
    args
}

/// What this machine does in the run that it is asked to train.
///
/// # Errors
/// Flags that do not fit each other, or an endpoint that does not resolve.
pub fn part(args: &TrainArgs, places: &Places) -> Result<Part, Failure> {
    let Some(text) = &args.rendezvous.nnodes else {
        let given = [
            ("--node-rank", args.rendezvous.node_rank.is_some()),
            ("--rdzv-endpoint", args.rendezvous.rdzv_endpoint.is_some()),
            ("--rdzv-id", args.rendezvous.rdzv_id.is_some()),
        ];
        return match given.iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) => Err(Failure::Usage(format!("{flag} means nothing without --nnodes"))),
            None => Ok(Part::Coordinate(Box::new(args.clone()), places.clone())),
        };
    };
    let range = nodes(text)?;
    let asked = args.workers.as_deref().unwrap_or("1");
    let local = asked.parse::<u32>().ok().filter(|count| (1..=4096).contains(count));
    let local =
        local.ok_or_else(|| wrong("--workers", asked, "with --nnodes, must be a number: that of each machine"))?;
    if range.1.saturating_mul(local) > 4096 {
        return Err(wrong("--nnodes", text, "makes more than 4096 workers"));
    }
    let problem = "is needed with --nnodes: where the machines meet, the same on all, such as node1:29400";
    let place =
        args.rendezvous.rdzv_endpoint.as_deref().ok_or_else(|| wrong("--rdzv-endpoint", "HOST:PORT", problem))?;
    let endpoint = endpoint(place)?;
    let listen = match args.rendezvous.node_rank {
        Some(0) => resolve(&endpoint)?.first().copied(),
        Some(_) => None,
        None => resolve(&endpoint)?.into_iter().find(is_free_here),
    };
    Ok(match listen {
        Some(listen) => {
            let mut args = coordinating(args, range, local);
            args.network.listen = Some(listen.to_string());
            if endpoint.host.parse::<IpAddr>().is_err() {
                args.network.advertise_addr.get_or_insert(endpoint.host);
            }
            let name = args.rendezvous.rdzv_id.clone();
            Part::Coordinate(Box::new(args), Places { name: name.or_else(|| places.name.clone()), ..places.clone() })
        }
        None => Part::Join(JoinArgs {
            coordinator: place.into(),
            workers: local,
            id: args.rendezvous.rdzv_id.clone(),
            backend: args.backend.clone(),
            data: args.data.clone().filter(|data| data.contains(':')),
            certs: args.network.certs.as_ref().map(Into::into),
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

/// Whether an address is this machine's, and nobody has its port.
fn is_free_here(address: &SocketAddr) -> bool {
    match TcpListener::bind(address) {
        Ok(_) => true,
        // Another on this machine coordinates; or the address is another's.
        Err(problem) => !matches!(problem.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable),
    }
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
        for text in ["node1", "node1:", ":5", "node1:0", "node1:70000"] {
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
