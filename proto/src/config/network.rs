//! Where a run can be reached, and by whom.

use std::{net::SocketAddr, path::Path};

use super::{
    ConfigError,
    checkpoint::RawCheckpoints,
    raw::{choice, count, value_error},
};

/// Where a run's processes listen, and what they ask of whoever calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Where the coordinator listens; servers listen on the same address, each with a port of its own.
    pub listen: SocketAddr,
    /// What others are told to reach this machine at, if it is not the address listened on. Never rewritten.
    pub advertise_addr: Option<String>,
    /// The directory of certificates and a token.
    pub certs: Option<String>,
    /// Whether whoever reaches a process off loopback may call it.
    pub insecure: bool,
    /// How tensors get from one process to another.
    pub transport: Transport,
}

/// How tensors get from one process to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Through shared memory where both are on one machine, and connections elsewhere.
    #[default]
    Auto,
    /// Through shared memory; a worker that sees no memory of a server's fails.
    Shm,
    /// Through connections.
    Grpc,
}

impl Transport {
    /// What a configuration names.
    pub(super) fn named(word: Option<&str>) -> Result<Transport, ConfigError> {
        Ok(match choice("transport", word.unwrap_or("auto"), &["auto", "shm", "grpc"])? {
            "shm" => Transport::Shm,
            "grpc" => Transport::Grpc,
            _ => Transport::Auto,
        })
    }
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Transport::Auto => "auto",
            Transport::Shm => "shm",
            Transport::Grpc => "grpc",
        })
    }
}

impl Network {
    /// The directory of certificates and a token.
    pub fn certs_dir(&self) -> Option<&Path> {
        self.certs.as_deref().map(Path::new)
    }

    /// Where others reach a port of this machine, `host:port`.
    pub fn reached_at(&self, port: u16) -> String {
        reached_at(self.advertise_addr.as_deref(), SocketAddr::new(self.listen.ip(), port))
    }
}

/// Where others reach a listener: at the name or address that it is said to be at, or where it listens.
pub fn reached_at(advertised: Option<&str>, local: SocketAddr) -> String {
    match advertised {
        None => local.to_string(),
        Some(host) if host.contains(':') => format!("[{host}]:{}", local.port()),
        Some(host) => format!("{host}:{}", local.port()),
    }
}

/// Checks what belongs to the network.
pub(super) fn network(
    listen: Option<&str>,
    advertise_addr: Option<String>,
    certs: Option<String>,
    insecure: bool,
    transport: Transport,
) -> Result<Network, ConfigError> {
    let listen_text = listen.unwrap_or("127.0.0.1:0");
    let wrong = |problem: &str| value_error("listen", format!("\"{listen_text}\""), problem);
    let listen: SocketAddr =
        listen_text.parse().map_err(|_| wrong("must be an address and a port such as 127.0.0.1:0"))?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let (advertise_addr, certs) = (given(advertise_addr).map(host).transpose()?, given(certs));
    if certs.is_some() && insecure {
        return Err(value_error(
            "insecure",
            true,
            "excludes `certs`: with certificates and a token, not anybody may call",
        ));
    }
    if !listen.ip().is_loopback() && certs.is_none() && !insecure {
        return Err(wrong(
            "is off loopback, where calls need certificates and a token: say --certs DIR (`launcher certs DIR` makes \
             them), or --insecure to let anybody call who reaches it",
        ));
    }
    if listen.ip().is_unspecified() && advertise_addr.is_none() {
        return Err(wrong("is no address that others can reach; say which is with --advertise-addr HOST"));
    }
    Ok(Network { listen, advertise_addr, certs, insecure, transport })
}

/// How many of the servers are on the coordinator's machine. The first is, which keeps accounts there; others write their
/// part of a checkpoint where they are, so those have to be kept where all reach them.
pub(super) fn local_servers(said: Option<u64>, servers: u32, checkpoint: &RawCheckpoints) -> Result<u32, ConfigError> {
    let here = count("local_servers", said.unwrap_or(servers.into()), 1, servers)?;
    if here < servers && checkpoint.to.as_ref().is_none_or(String::is_empty) {
        return Err(value_error(
            "local_servers",
            here,
            "leaves servers to other machines, which takes checkpoints that all reach: say where with --checkpoint-to",
        ));
    }
    Ok(here)
}

/// A name or address, without a port.
fn host(text: String) -> Result<String, ConfigError> {
    let is_address = text.parse::<std::net::IpAddr>().is_ok_and(|address| !address.is_unspecified());
    let is_name = text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) && !is_address_like(&text);
    if is_address || is_name {
        return Ok(text);
    }
    let problem = "must be a host name or an address that others can reach, without a port, such as node1 or 10.0.0.1";
    Err(value_error("advertise_addr", format!("\"{text}\""), problem))
}

/// Whether a text could only be an address, and a wrong one.
fn is_address_like(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit() || c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(listen: &str, advertised: &str, certs: &str, insecure: bool) -> Result<Network, String> {
        let network = network(Some(listen), Some(advertised.into()), Some(certs.into()), insecure, Transport::Auto);
        network.map_err(|problem| problem.to_string())
    }

    #[test]
    fn off_loopback_only_with_certificates_or_insecure() {
        for listen in ["127.0.0.1:0", "127.3.2.1:80", "[::1]:0"] {
            assert!(of(listen, "", "", false).is_ok(), "{listen}");
        }
        for listen in ["10.0.0.1:0", "0.0.0.0:7000", "[::]:0", "[fe80::1]:0", "192.168.1.1:0"] {
            let refused = of(listen, "node", "", false).unwrap_err();
            assert!(refused.contains("off loopback") && refused.contains("--insecure"), "{refused}");
            assert!(of(listen, "node", "certs", false).is_ok(), "{listen}");
            assert!(of(listen, "node", "", true).is_ok(), "{listen}");
        }
        assert!(of("127.0.0.1:0", "", "certs", true).unwrap_err().contains("excludes `certs`"));
        assert!(of("here", "", "", false).unwrap_err().contains("must be an address and a port"));
    }

    #[test]
    fn what_cannot_be_reached_is_not_told_to_others() {
        for listen in ["0.0.0.0:0", "[::]:0"] {
            assert!(of(listen, "", "certs", false).unwrap_err().contains("--advertise-addr"), "{listen}");
        }
        for wrong in ["node:80", "0.0.0.0", "::", "a b", "http://node", "10.0.0", "1.2.3.4.5"] {
            let refused = of("0.0.0.0:0", wrong, "certs", false).unwrap_err();
            assert!(refused.contains("must be a host name or an address"), "{wrong}: {refused}");
        }
        for (told, reached) in [("node-1.lab", "node-1.lab:7"), ("10.0.0.1", "10.0.0.1:7"), ("fe80::1", "[fe80::1]:7")]
        {
            assert_eq!(of("0.0.0.0:0", told, "certs", false).unwrap().reached_at(7), reached);
        }
        assert_eq!(of("[::1]:0", "", "", false).unwrap().reached_at(9), "[::1]:9");
    }
}
