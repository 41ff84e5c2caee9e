//! `--hostfile` and `--hosts`: other machines, on each of which a launcher is started through ssh that joins the run.
//!
//! The system's ssh and its configuration say how a host is reached; [`hostfile`] reads which there are, [`sessions`]
//! keeps one session each, [`credentials`] are made for the run where none are said.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs},
    process::{Command, Stdio},
};

use convoy_proto::{config::RawConfig, process};

use crate::{
    args::{HostsArgs, Places, TrainArgs},
    machine,
    outcome::Failure,
    settings,
};

pub mod credentials;
pub mod hostfile;
pub mod sessions;

use credentials::Credentials;
use hostfile::Host;
use sessions::SessionSpec;

/// How long a launcher on another machine looks for the coordinator that it has lost, in seconds.
const WAIT_SECONDS: u32 = 60;

/// What ssh is told: not to ask for a password, which would wait for ever for an answer, and to find out in time that a
/// machine cannot be reached, or not any more.
const OPTIONS: [&str; 4] = ["BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=3"];

/// The machines that ssh reaches, and how.
#[derive(Debug, Default)]
pub struct Remotes {
    hosts: Vec<Reached>,
    ssh: Vec<String>,
    launcher: String,
    backend: String,
    certs: Certs,
}

/// What launchers elsewhere show to this one.
#[derive(Debug, Default)]
enum Certs {
    /// Nothing.
    #[default]
    None,
    /// What a person put there, in the same place as here.
    There(String),
    /// What this launcher made.
    Handed(Credentials),
}

/// A host, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reached {
    host: Host,
    /// What ssh's configuration makes of the name.
    name: String,
    address: Option<IpAddr>,
}

impl Remotes {
    /// Looks at what hosts there are, and fills in what that means for this one.
    ///
    /// # Errors
    /// A hostfile that is none, an ssh that cannot be run, or no one address that all of them reach this machine at.
    pub fn gather(args: &mut TrainArgs) -> Result<Remotes, Failure> {
        let Some(hosts) = hosts(&args.hosts)? else { return Ok(Remotes::default()) };
        if args.workers.is_some() || args.local_workers.is_some() {
            return Err(Failure::Usage("the hosts' slots say how many workers there are: leave --workers out".into()));
        }
        let raw = settings::gather(args, &Places { run_dir: None, name: None })?;
        let ssh: Vec<String> = args.hosts.ssh.split_whitespace().map(Into::into).collect();
        let reached: Result<Vec<_>, _> = hosts.into_iter().map(|host| reach(&ssh, host)).collect();
        let (here, there): (Vec<_>, Vec<_>) = reached?.into_iter().partition(Reached::is_here);
        let slots = |hosts: &[Reached]| hosts.iter().map(|reached| reached.host.slots).sum::<u32>();
        args.workers = Some((slots(&here) + slots(&there)).to_string());
        args.local_workers = Some(slots(&here).to_string());
        let own = std::env::current_exe()
            .map_err(|problem| Failure::Environment(format!("cannot find this program: {problem}")))?;
        let launcher = args.hosts.remote_launcher.clone().unwrap_or_else(|| own.display().to_string());
        let backend = raw.backend.clone().unwrap_or_else(|| "auto".into());
        if raw.max_workers.is_none() {
            // A launcher that comes back takes the places that it had, and brings no more of them.
            args.max_workers = args.workers.clone();
        }
        let mut remotes = Remotes { hosts: there, ssh, launcher, backend, certs: Certs::None };
        if !remotes.hosts.is_empty() {
            remotes.reachable(args, raw)?;
        }
        Ok(remotes)
    }

    /// Where this launcher listens, and what it asks of whoever calls.
    fn reachable(&mut self, args: &mut TrainArgs, raw: RawConfig) -> Result<(), Failure> {
        let listen = match raw.listen.filter(|listen| !listen.is_empty()) {
            Some(listen) => listen,
            None => SocketAddr::new(self.way_there()?, 0).to_string(),
        };
        args.network.listen = Some(listen.clone());
        let certs = raw.certs.filter(|certs| !certs.is_empty());
        let is_loopback = listen.parse().is_ok_and(|listen: SocketAddr| listen.ip().is_loopback());
        self.certs = match certs {
            Some(certs) => Certs::There(convoy_worker::data::absolute_path(&certs)),
            None if is_loopback || raw.insecure == Some(true) || settings::has_token() => Certs::None,
            None => {
                let address = listen.rsplit_once(':').map(|(host, _)| host.trim_matches(['[', ']']).to_string());
                let hosts = [address, raw.advertise_addr, Some(process::host_name()), Some("127.0.0.1".into())];
                let mut hosts: Vec<String> = hosts.into_iter().flatten().filter(|host| !host.is_empty()).collect();
                hosts.dedup();
                let credentials = Credentials::new(&hosts)?;
                args.network.certs = Some(credentials.own().display().to_string());
                Certs::Handed(credentials)
            }
        };
        Ok(())
    }

    /// The address of this machine on the way to the others.
    fn way_there(&self) -> Result<IpAddr, Failure> {
        let mut found: Option<(IpAddr, &str)> = None;
        for Reached { host, address, name } in &self.hosts {
            let way = address.and_then(machine::way_to).ok_or_else(|| {
                let problem = format!("cannot find the way to {} ({name})", host.name);
                Failure::Environment(format!("{problem}: say with --listen IP:0 where it reaches this machine"))
            })?;
            match found {
                Some((known, first)) if known != way => {
                    return Err(Failure::Usage(format!(
                        "{first} reaches this machine at {known}, {} at {way}: say --listen IP:0, one that all reach",
                        host.name
                    )));
                }
                _ => found = Some((way, &host.name)),
            }
        }
        Ok(found.map_or(Ipv4Addr::LOCALHOST.into(), |(way, _)| way))
    }

    /// How many machines there are beside this one.
    pub fn count(&self) -> usize {
        self.hosts.len()
    }

    /// The name of one.
    pub fn name(&self, host: usize) -> &str {
        self.hosts.get(host).map_or("", |reached| &reached.host.name)
    }

    /// How to start a launcher there that joins a run.
    ///
    /// # Errors
    /// A name that no certificate can have.
    pub fn session(&self, host: usize, run: &RunPlace) -> Result<SessionSpec, Failure> {
        let Reached { host: Host { name, slots }, name: hostname, address } = &self.hosts[host];
        let mut words = vec![self.launcher.clone(), "join".into(), run.coordinator.clone()];
        let flags = [
            ("--workers", slots.to_string()),
            ("--id", run.name.clone()),
            ("--run-dir", run.root.clone()),
            ("--backend", self.backend.clone()),
            ("--wait", WAIT_SECONDS.to_string()),
        ];
        words.extend(flags.into_iter().flat_map(|(flag, value)| [flag.to_string(), value]));
        words.push("--supervised".into());
        let mut input = String::new();
        match &self.certs {
            Certs::None => {}
            Certs::There(dir) => words.extend(["--certs".into(), dir.clone()]),
            Certs::Handed(credentials) => {
                words.extend(["--certs".into(), "-".into()]);
                let own = name.rsplit_once('@').map_or(name.as_str(), |(_, host)| host);
                let mut hosts = vec![own.to_string(), hostname.clone()];
                hosts.extend(address.iter().map(ToString::to_string));
                hosts.dedup();
                input = credentials.bundle(&hosts)? + "\n";
            }
        }
        let line: Vec<_> = words.iter().map(|word| quoted(word)).collect();
        let mut command = self.ssh.clone();
        command.push("-T".into());
        command.extend(OPTIONS.iter().flat_map(|option| ["-o".to_string(), option.to_string()]));
        command.extend([name.clone(), format!("exec {}", line.join(" "))]);
        Ok(SessionSpec { host, command, input, log: run.log(name) })
    }
}

/// Where a run is that others join.
#[derive(Clone, Debug)]
pub struct RunPlace {
    /// Its name.
    pub name: String,
    /// The root of runs, absolute.
    pub root: String,
    /// Where its coordinator listens.
    pub coordinator: String,
    /// Where its logs are.
    pub logs: std::path::PathBuf,
}

impl RunPlace {
    /// Where a session's output goes.
    fn log(&self, host: &str) -> std::path::PathBuf {
        self.logs.join(format!("ssh-{host}.log"))
    }
}

/// The hosts that are said, if some are.
fn hosts(args: &HostsArgs) -> Result<Option<Vec<Host>>, Failure> {
    let (said, hosts) = match (&args.hostfile, &args.hosts) {
        (None, None) => {
            let given = [("--include", &args.include), ("--exclude", &args.exclude)];
            return match given.iter().find(|(_, text)| text.is_some()) {
                Some((flag, _)) => Err(Failure::Usage(format!("{flag} means nothing without --hostfile or --hosts"))),
                None => Ok(None),
            };
        }
        (Some(path), _) => {
            let text = fs::read_to_string(path)
                .map_err(|problem| Failure::Usage(format!("cannot read --hostfile {}: {problem}", path.display())))?;
            (format!("--hostfile {}", path.display()), hostfile::read(&text))
        }
        (None, Some(text)) => (format!("--hosts {text}"), hostfile::list(text)),
    };
    let wrong = |said: &str, problem: String| Failure::Usage(format!("{said}: {problem}"));
    let mut hosts = hosts.map_err(|problem| wrong(&said, problem))?;
    for (flag, names, is_exclude) in [("--include", &args.include, false), ("--exclude", &args.exclude, true)] {
        if let Some(names) = names {
            hosts = hostfile::filter(hosts, names, is_exclude).map_err(|problem| wrong(flag, problem))?;
        }
    }
    Ok(Some(hosts))
}

/// Asks ssh what its configuration makes of a host.
fn reach(ssh: &[String], host: Host) -> Result<Reached, Failure> {
    let own = host.name.rsplit_once('@').map_or(host.name.as_str(), |(_, name)| name);
    if own == "localhost" || own == process::host_name() {
        let (name, address) = (own.to_string(), Some(Ipv4Addr::LOCALHOST.into()));
        return Ok(Reached { host, name, address });
    }
    let cannot = |problem: String| Failure::Environment(format!("cannot run {}: {problem}", ssh.join(" ")));
    let (program, arguments) = ssh.split_first().ok_or_else(|| Failure::Usage("--ssh names no program".into()))?;
    let asked = Command::new(program).args(arguments).arg("-G").arg(&host.name).stdin(Stdio::null()).output();
    let asked = asked.map_err(|problem| cannot(format!("{problem}; is an ssh client installed?")))?;
    if !asked.status.success() {
        return Err(cannot(String::from_utf8_lossy(&asked.stderr).trim().to_string()));
    }
    let text = String::from_utf8_lossy(&asked.stdout).into_owned();
    let name = text.lines().find_map(|line| line.strip_prefix("hostname ")).unwrap_or(own).to_string();
    // Behind another host it may have no address here; then ssh alone knows the way.
    let address = (name.as_str(), 0).to_socket_addrs().ok().and_then(|mut found| found.next()).map(|at| at.ip());
    Ok(Reached { host, name, address })
}

impl Reached {
    /// Whether it is this machine.
    fn is_here(&self) -> bool {
        self.address.is_some_and(|address| TcpListener::bind((address, 0)).is_ok())
    }
}

/// A word, as a shell reads it.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._:/=@".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remotes(certs: Certs) -> Remotes {
        let host = Host { name: "me@node1".into(), slots: 4 };
        let hosts = vec![Reached { host, name: "10.0.0.2".into(), address: None }];
        let (ssh, launcher) = (vec!["ssh".into(), "-F".into(), "config".into()], "/opt/it's here/launcher".into());
        Remotes { hosts, ssh, launcher, backend: "auto".into(), certs }
    }

    fn place() -> RunPlace {
        let text = |text: &str| text.to_string();
        RunPlace { name: text("r"), root: text("/runs"), coordinator: text("10.0.0.1:7"), logs: "/runs/r/logs".into() }
    }

    #[test]
    fn a_launcher_is_started_through_ssh() {
        let spec = remotes(Certs::There("/certs".into())).session(0, &place()).unwrap();
        let command = r"exec '/opt/it'\''s here/launcher' join 10.0.0.1:7 --workers 4 --id r --run-dir /runs --backend auto --wait 60 --supervised --certs /certs";
        assert_eq!(spec.command[..6], ["ssh", "-F", "config", "-T", "-o", "BatchMode=yes"]);
        assert_eq!(spec.command[spec.command.len() - 2..], ["me@node1", command]);
        assert_eq!((spec.input.as_str(), spec.log), ("", "/runs/r/logs/ssh-me@node1.log".into()));
    }

    #[test]
    fn no_secret_is_in_a_command() {
        let credentials = Credentials::new(&["127.0.0.1".into()]).unwrap();
        let own = credentials.own();
        let remotes = remotes(Certs::Handed(credentials));
        let spec = remotes.session(0, &place()).unwrap();
        let secret = fs::read_to_string(own.join("token")).unwrap();
        let command = spec.command.join(" ");
        assert!(command.ends_with("--certs -") && !command.contains("convoy-"), "{command}");
        assert!(spec.input.contains("convoy-worker-") && !spec.input.contains(secret.trim()));
    }
}
