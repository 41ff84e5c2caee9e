//! The same command on each machine, as torchrun has it. One of them coordinates, the others join it.
//!
//! [`asked`] puts together what flags and the environment say, [`claims`] reads what schedulers do ([`slurm`] is one of
//! them). The machine that has the endpoint's address coordinates, or the one whose rank is 0. There is no other
//! agreement: the endpoint's socket decides, which only one process can have.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs},
    time::{Duration, Instant},
};

use convoy_proto::config::{RawConfig, raw::CountOrAuto};

use crate::{
    args::{JoinArgs, Places, RendezvousArgs, TrainArgs},
    machine,
    outcome::Failure,
    remote::Remotes,
    settings,
};

pub mod asked;
pub mod claims;
mod slurm;

use asked::{Asked, Told, asked};

/// More workers than a run has.
const MOST_WORKERS: u32 = 4096;
/// How long a name may take to become known: that of a pod does, which has just been started.
const RESOLVE: Duration = Duration::from_secs(60);
/// How often it is looked up meanwhile.
const AGAIN: Duration = Duration::from_millis(500);

/// What a machine does in a run.
#[derive(Debug)]
pub enum Part {
    /// It trains, and coordinates the others if there are some; it starts those that ssh reaches.
    Coordinate(Box<TrainArgs>, Places, Remotes),
    /// It joins a run.
    Join(JoinArgs),
}

/// Where the machines of a run meet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    host: String,
    port: u16,
}

/// What is wrong with a value.
fn wrong(told: &Told, problem: &str) -> Failure {
    Failure::Usage(format!("{} {}: {problem}", told.by, told.text))
}

/// How many machines there must be, and may be.
fn nodes(told: &Told) -> Result<(u32, u32), Failure> {
    let (least, most) = told.text.split_once(':').unwrap_or((&told.text, &told.text));
    let count = |text: &str| text.parse::<u32>().ok().filter(|count| (1..=MOST_WORKERS).contains(count));
    let range = count(least).zip(count(most)).filter(|(least, most)| least <= most);
    range.ok_or_else(|| wrong(told, "must be a number of machines, or the least and the most, such as 2:4"))
}

/// Whether an address says nothing: it would be every machine's.
fn is_anywhere(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

fn endpoint(told: &Told) -> Result<Endpoint, Failure> {
    let problem = "must be a host and a port, such as node1:29400";
    let (host, port) = told.text.rsplit_once(':').ok_or_else(|| wrong(told, problem))?;
    let port = port.parse().ok().filter(|port| *port > 0);
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    // An address of version 6 without brackets could have any part of it as its port.
    let host = inner.or_else(|| Some(host).filter(|host| !host.contains(':'))).unwrap_or_default();
    match port {
        Some(port) if !host.is_empty() && !is_anywhere(host) => Ok(Endpoint { host: host.into(), port }),
        _ => Err(wrong(told, problem)),
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
fn alone(args: &TrainArgs, places: &Places, asked: &Asked) -> Result<Part, Failure> {
    let given = [&asked.node_rank, &asked.endpoint, &asked.id].into_iter().flatten();
    // Variables may be there for another purpose, flags are not.
    match given.map(|told| told.by).find(|by| by.starts_with("--")) {
        Some(flag) => Err(Failure::Usage(format!("{flag} means nothing without --nnodes"))),
        None => Ok(Part::Coordinate(Box::new(args.clone()), places.clone(), Remotes::default())),
    }
}

/// What this machine does in the run that it is asked to train.
///
/// # Errors
/// Flags that do not fit each other, or an endpoint that does not resolve.
pub fn part(args: &TrainArgs, places: &Places) -> Result<Part, Failure> {
    let mut args = args.clone();
    machine::settle(&mut args.network)?;
    if args.hosts.are_said() {
        let RendezvousArgs { nnodes, node_rank, rdzv_endpoint, rdzv_id, .. } = &args.rendezvous;
        if nnodes.is_some() || node_rank.is_some() || rdzv_endpoint.is_some() || rdzv_id.is_some() {
            let problem =
                "--nnodes, --node-rank and --rdzv-… are for machines that come by themselves, --hostfile starts them";
            return Err(Failure::Usage(format!("{problem}; --name is the run's name")));
        }
        let remotes = Remotes::gather(&mut args)?;
        return Ok(Part::Coordinate(Box::new(args), places.clone(), remotes));
    }
    let asked =
        asked(&args.rendezvous, &settings::variables()).map_err(|problem| Failure::Usage(problem.to_string()))?;
    asked.note.iter().for_each(|note| eprintln!("{note}"));
    part_of(&args, places, &asked)
}

/// As [`part`], with what is asked put together.
///
/// # Errors
/// As [`part`].
pub fn part_of(args: &TrainArgs, places: &Places, asked: &Asked) -> Result<Part, Failure> {
    // Who says where its own workers are gathers others by itself.
    let is_head = args.local_workers.is_some() && args.rendezvous.nnodes.is_none();
    let Some(told) = asked.nnodes.as_ref().filter(|_| !is_head) else { return alone(args, places, asked) };
    let range = nodes(told)?;
    // One that is alone needs no place to meet, unless a person says one.
    if range == (1, 1) && !asked.endpoint.as_ref().is_some_and(Told::is_said) {
        return Ok(Part::Coordinate(Box::new(args.clone()), places.clone(), Remotes::default()));
    }
    // From wherever it is said: a file, a variable or the command line.
    let raw = settings::gather(args, places)?;
    let local = local_workers(&raw, asked)?;
    if range.1.saturating_mul(local) > MOST_WORKERS {
        return Err(wrong(told, "makes more than 4096 workers"));
    }
    let place = asked.endpoint.as_ref().ok_or_else(|| nowhere(asked))?;
    let endpoint = endpoint(place)?;
    let listen = seat(args, (place, &endpoint), asked.node_rank.as_ref(), range.1)?;
    // To look at the plan takes no other machine.
    let anywhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let listen = listen.or_else(|| args.dry_run.then_some(anywhere));
    // A name that a person gave to this run is meant before a scheduler's.
    let id = asked.id.as_ref().map(|told| told.text.clone());
    let is_flag = asked.id.as_ref().is_some_and(|told| told.by == "--rdzv-id");
    let said = raw.name.clone().filter(|name| !name.is_empty());
    let name = if is_flag { id } else { said.or(id) };
    let Some(listen) = listen else {
        return Ok(Part::Join(JoinArgs {
            coordinator: place.text.clone(),
            workers: local,
            servers: 0,
            listen: None,
            interface: None,
            advertise_addr: None,
            id: name,
            backend: raw.backend,
            data: raw.data.filter(|data| data.contains(':')),
            certs: raw.certs.filter(|certs| !certs.is_empty()).map(Into::into),
            wait: args.rendezvous.rdzv_wait,
            supervised: false,
        }));
    };
    let mut args = coordinating(args, &raw, range, local);
    reachable(&mut args, &raw, endpoint, listen);
    Ok(Part::Coordinate(Box::new(args), Places { name, ..places.clone() }, Remotes::default()))
}

/// Where this machine listens, if it is the one that coordinates.
fn seat(
    args: &TrainArgs,
    (place, endpoint): (&Told, &Endpoint),
    rank: Option<&Told>,
    most: u32,
) -> Result<Option<SocketAddr>, Failure> {
    let is_first = rank.map(|rank| node_rank(rank, most)).transpose()?.map(|rank| rank == 0);
    if is_first == Some(false) {
        return Ok(None);
    }
    let wait = if args.dry_run { 0 } else { args.rendezvous.rdzv_wait };
    let addresses = resolve(place, endpoint, Duration::from_secs(wait).min(RESOLVE))?;
    match (mine(&addresses), is_first) {
        (Seat::Mine(address), _) => Ok(Some(address)),
        (_, None) => Ok(None),
        // Others may reach it at an address that it does not know of itself.
        (Seat::Elsewhere, _) => Ok(Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), endpoint.port))),
        (Seat::Taken, _) => {
            let problem = format!("the port of {} {} is taken on this machine", place.by, place.text);
            Err(Failure::Environment(format!("{problem}: say another with --rdzv-endpoint on all")))
        }
    }
}

/// Where the machine that coordinates listens, and what others are told.
fn reachable(args: &mut TrainArgs, raw: &RawConfig, endpoint: Endpoint, mut listen: SocketAddr) {
    let is_name = endpoint.host.parse::<IpAddr>().is_err();
    if is_name && endpoint.host != "localhost" && listen.ip().is_loopback() && !args.dry_run {
        // What this machine calls itself; others reach it by the name elsewhere.
        listen.set_ip(Ipv4Addr::UNSPECIFIED.into());
    }
    match raw.listen.as_ref().and_then(|text| text.parse::<SocketAddr>().ok()) {
        // An interface has no port; the endpoint has.
        Some(said) if said.port() == 0 => {
            args.network.listen = Some(SocketAddr::new(said.ip(), listen.port()).to_string());
        }
        Some(_) => {}
        None => args.network.listen = Some(listen.to_string()),
    }
    if raw.advertise_addr.is_none() && (is_name || listen.ip().is_unspecified()) && !args.dry_run {
        args.network.advertise_addr = Some(endpoint.host);
    }
}

/// How many workers each machine has; `auto` is what suits this one.
fn local_workers(raw: &RawConfig, asked: &Asked) -> Result<u32, Failure> {
    let told = asked.workers.as_ref();
    let count = |text: &str| text.parse::<u32>().ok().filter(|count| (1..=MOST_WORKERS).contains(count));
    match (&raw.workers, told) {
        (Some(CountOrAuto::Count(workers)), _) => count(&workers.to_string())
            .ok_or_else(|| Failure::Usage(format!("--workers {workers}: must be from 1 to {MOST_WORKERS}"))),
        (None, Some(told)) if !["auto", "cpu"].contains(&told.text.as_str()) => {
            count(&told.text).ok_or_else(|| wrong(told, "must be a number of workers, auto, gpu or cpu"))
        }
        (None, Some(told)) if told.text == "cpu" => Ok(1),
        _ => machine::auto_workers(raw.backend()?),
    }
}

/// A launcher's number among so many at most.
fn node_rank(told: &Told, most: u32) -> Result<u32, Failure> {
    let rank = told.text.parse::<u32>().map_err(|_| wrong(told, "must be a number"))?;
    if rank >= most {
        return Err(wrong(told, "there are not as many machines; they count from 0"));
    }
    Ok(rank)
}

/// Nobody says where to meet.
fn nowhere(asked: &Asked) -> Failure {
    let needed = "is needed: where the machines meet, the same on all, such as --rdzv-endpoint node1:29400";
    Failure::Usage(match asked.source {
        None => format!("--rdzv-endpoint HOST:PORT {needed}"),
        Some(source) => format!(
            "{source} starts launchers on several machines, but does not say where the first is: --rdzv-endpoint \
             HOST:PORT (or CONVOY_RDZV_ENDPOINT, or MASTER_ADDR) {needed}"
        ),
    })
}

/// The addresses of an endpoint. One that does not resolve is an end: a machine that went on by itself would train alone.
fn resolve(told: &Told, endpoint: &Endpoint, patience: Duration) -> Result<Vec<SocketAddr>, Failure> {
    let deadline = Instant::now() + patience;
    let mut has_said = false;
    loop {
        let problem = match (endpoint.host.as_str(), endpoint.port).to_socket_addrs().map(Vec::from_iter) {
            Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
            Ok(_) => "it has no address".to_string(),
            Err(problem) => problem.to_string(),
        };
        if Instant::now() >= deadline {
            return Err(Failure::Environment(format!("cannot resolve {} {}: {problem}", told.by, told.text)));
        }
        if !has_said {
            eprintln!("waiting for {} to resolve, for {} s at most: {problem}", told.text, patience.as_secs());
            has_said = true;
        }
        std::thread::sleep(AGAIN);
    }
}

/// Whose an endpoint is.
enum Seat {
    /// This machine's, at an address that is free.
    Mine(SocketAddr),
    /// Another machine's.
    Elsewhere,
    /// This machine's, and somebody has it.
    Taken,
}

/// Whose an endpoint with these addresses is.
fn mine(addresses: &[SocketAddr]) -> Seat {
    let bind = |address: &SocketAddr| TcpListener::bind(address).map(drop).map_err(|problem| problem.kind());
    let tried: Vec<_> = addresses.iter().map(|address| (*address, bind(address))).collect();
    if tried.iter().any(|(_, bound)| *bound == Err(ErrorKind::AddrInUse)) {
        return Seat::Taken;
    }
    let is_mine = |bound: &Result<(), ErrorKind>| matches!(bound, Ok(()) | Err(ErrorKind::PermissionDenied));
    tried.into_iter().find(|(_, bound)| is_mine(bound)).map_or(Seat::Elsewhere, |(address, _)| Seat::Mine(address))
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

    fn told(text: &str) -> Told {
        Told { text: text.into(), by: "--flag" }
    }

    fn part_alone(args: &TrainArgs) -> Result<Part, Failure> {
        part_of(args, &PLACES, &asked(&args.rendezvous, &claims::Variables::new()).unwrap())
    }

    #[test]
    fn machines_are_counted() {
        let count = |text: &str| nodes(&told(text));
        assert_eq!((count("3").unwrap(), count("2:4").unwrap()), ((3, 3), (2, 4)));
        for text in ["", "0", "4:2", "a", "1:2:3", "-1", "5000"] {
            assert!(count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_are_read() {
        let read = |text: &str| endpoint(&told(text)).map(|Endpoint { host, port }| (host, port)).ok();
        assert_eq!(read("node1:29400"), Some(("node1".into(), 29400)));
        assert_eq!(read("[::1]:5"), Some(("::1".into(), 5)));
        for text in ["node1", "node1:", ":5", "0.0.0.0:5", "[::]:5", "node1:0", "node1:70000", "fd00::1:5"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_coordinates_and_the_others_join() {
        let Part::Coordinate(first, places, _) = part_alone(&args("2:3", "4", Some(0))).unwrap() else { panic!() };
        let text = |text: &str| Some(text.to_string());
        assert_eq!((first.workers, first.local_workers), (text("8"), text("4")));
        assert_eq!((first.slices, first.max_workers), (text("12"), text("12")));
        assert_eq!((first.network.listen, places.name), (text("127.0.0.1:29400"), text("job")));
        let Part::Join(other) = part_alone(&args("2:3", "4", Some(1))).unwrap() else { panic!() };
        assert_eq!((other.coordinator.as_str(), other.workers, other.id), ("127.0.0.1:29400", 4, text("job")));
    }

    #[test]
    fn a_schedulers_word_is_enough() {
        let task = |rank: &str| {
            let pairs = [
                ("PET_NODE_RANK", rank),
                ("PET_NNODES", "2"),
                ("PET_NPROC_PER_NODE", "3"),
                ("PET_MASTER_ADDR", "127.0.0.1"),
            ];
            let variables = pairs.map(|(name, text)| (name.to_string(), text.to_string())).into();
            let mut args = TrainArgs::default();
            args.network.insecure = true;
            part_of(&args, &PLACES, &asked(&args.rendezvous, &variables).unwrap()).unwrap()
        };
        let Part::Coordinate(first, ..) = task("0") else { panic!() };
        assert_eq!((first.workers.as_deref(), first.network.listen.as_deref()), (Some("6"), Some("127.0.0.1:29400")));
        let Part::Join(other) = task("1") else { panic!() };
        assert_eq!((other.coordinator.as_str(), other.workers), ("127.0.0.1:29400", 3));
    }

    #[test]
    fn flags_that_do_not_fit_are_refused() {
        let refused = |args: &TrainArgs| part_alone(args).unwrap_err().to_string();
        assert!(refused(&args("2", "0", None)).contains("--workers 0: must be from 1"));
        assert!(refused(&args("2", "1", Some(2))).contains("there are not as many machines"));
        assert!(refused(&args("2000", "4", None)).contains("more than 4096"));
        let mut nowhere = args("2", "1", None);
        nowhere.rendezvous.rdzv_endpoint = None;
        assert!(refused(&nowhere).contains("is needed: where the machines meet"));
        nowhere.rendezvous.nnodes = None;
        assert!(refused(&nowhere).contains("--rdzv-id means nothing without --nnodes"));
        let mut unknown = args("2", "1", Some(0));
        unknown.rendezvous.rdzv_endpoint = Some("no.such.host.invalid:1".into());
        assert!(refused(&unknown).contains("cannot resolve --rdzv-endpoint no.such.host.invalid:1"));
    }
}
