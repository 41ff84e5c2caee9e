//! This machine, as far as it is this launcher's: where a scheduler starts several on one, each takes its part.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use convoy_proto::config::Backend;

use crate::{
    args::NetworkArgs,
    outcome::Failure,
    plan::{self, Share},
    probe,
    rendezvous::claims,
    settings,
};

/// What says that each launcher sees its own GPUs alone.
const DIVIDED: [&str; 2] = ["SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND"];

/// This launcher's part of the machine.
fn share() -> Share {
    claims::share(&settings::variables())
}

/// This launcher's part of the GPUs that it sees.
pub fn share_of_devices() -> Share {
    let variables = settings::variables();
    let is_divided = DIVIDED.iter().any(|name| variables.contains_key(*name));
    if is_divided { Share::default() } else { claims::share(&variables) }
}

/// The cores that this launcher's processes may use.
pub fn cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, Into::into);
    // A scheduler that binds each launcher to cores of its own has divided them already.
    let share = if allowed < online(allowed) { 1 } else { share().size as usize };
    (allowed / share).max(1)
}

/// All cores of the machine.
fn online(otherwise: usize) -> usize {
    #[cfg(unix)]
    {
        use nix::unistd::{SysconfVar, sysconf};
        let count = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
        count.and_then(|count| usize::try_from(count).ok()).unwrap_or(otherwise)
    }
    #[cfg(not(unix))]
    {
        otherwise
    }
}

/// The address that the system would speak from to another. Nothing is sent.
pub fn way_to(address: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // A port is needed, any.
    socket.connect((address, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The address of a network interface, of version 4 if it has one.
///
/// # Errors
/// There is no such interface, or it has no address.
pub fn address_of(interface: &str) -> Result<IpAddr, Failure> {
    let cannot = |problem: String| Failure::Environment(format!("--interface {interface}: {problem}"));
    let all = nix::ifaddrs::getifaddrs().map_err(|problem| cannot(problem.to_string()))?;
    let (mut names, mut found) = (BTreeSet::new(), Vec::new());
    for entry in all {
        names.insert(entry.interface_name.clone());
        let address = entry.address.filter(|_| entry.interface_name == interface);
        let v4 = address.as_ref().and_then(|at| at.as_sockaddr_in().map(|at| IpAddr::from(at.ip())));
        found.extend(v4.or_else(|| address.as_ref().and_then(|at| at.as_sockaddr_in6().map(|at| at.ip().into()))));
    }
    // Those of version 4 are less than those of version 6.
    let names = || names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    match found.into_iter().min() {
        Some(address) => Ok(address),
        None if names().is_empty() => Err(cannot("this machine has none".into())),
        None => Err(cannot(format!("there is no such interface with an address; there are {}", names()))),
    }
}

/// Puts the address of an interface, if one is said, where a person would have put an address to listen on.
///
/// # Errors
/// There is no such interface, or it has no address.
pub fn settle(network: &mut NetworkArgs) -> Result<(), Failure> {
    if let Some(interface) = network.interface.take() {
        network.listen = Some(SocketAddr::new(address_of(&interface)?, 0).to_string());
    }
    Ok(())
}

/// How many workers suit this launcher: one a GPU, or one on the CPU.
///
/// # Errors
/// No device of the backend that is wanted.
pub fn auto_workers(wanted: Backend) -> Result<u32, Failure> {
    let reports = if wanted == Backend::Cpu { Vec::new() } else { probe::probe() };
    let devices = plan::choose(wanted, &reports, cores()).map_err(Failure::Environment)?;
    Ok(devices.shared(share_of_devices()).auto_workers())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_loopback_is_loopback() {
        assert_eq!(way_to(Ipv4Addr::LOCALHOST.into()), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(address_of("lo").unwrap(), IpAddr::from(Ipv4Addr::LOCALHOST));
        let refused = address_of("no-such").unwrap_err().to_string();
        assert!(refused.contains("--interface no-such") && refused.contains("lo"), "{refused}");
    }
}
