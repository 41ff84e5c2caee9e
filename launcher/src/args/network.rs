//! What is said of other machines: which there are, how they find each other, and how this one is reached.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::{Pairs, given};

/// The same command on several machines.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct RendezvousArgs {
    /// Train on this machine alone, whatever a scheduler's variables say
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "nnodes", help_heading = "Network")]
    pub standalone: bool,
    /// Machines that the run needs, or the least and the most: the same command on each; --workers is then the number on each
    /// [default: what the scheduler says; see `launcher doctor --rank`]
    #[arg(long, value_name = "N|MIN:MAX", help_heading = "Network")]
    pub nnodes: Option<String>,
    /// This machine's number: 0 coordinates [default: the one that has the address of --rdzv-endpoint does]
    #[arg(long, value_name = "N", help_heading = "Network")]
    pub node_rank: Option<u32>,
    /// Where the machines meet: an address of the one that coordinates
    #[arg(long, value_name = "HOST:PORT", help_heading = "Network")]
    pub rdzv_endpoint: Option<String>,
    /// Name of the run, the same on all machines
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub rdzv_id: Option<String>,
    /// How long the other machines wait for the one that coordinates, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = "Network")]
    pub rdzv_wait: u64,
}

/// Machines that ssh reaches.
#[derive(Args, Clone, Debug, PartialEq)]
pub struct HostsArgs {
    /// Machines that ssh reaches, one a line, `node1 slots=4`: a launcher is started on each; slots are workers
    #[arg(long, value_name = "FILE", conflicts_with = "hosts", help_heading = "Network")]
    pub hostfile: Option<PathBuf>,
    /// As --hostfile, on the command line
    #[arg(short = 'H', long, value_name = "HOST:SLOTS,…", help_heading = "Network")]
    pub hosts: Option<String>,
    /// Of the hosts, those with these names
    #[arg(long, value_name = "HOST,…", help_heading = "Network")]
    pub include: Option<String>,
    /// Of the hosts, those without these names
    #[arg(long, value_name = "HOST,…", help_heading = "Network")]
    pub exclude: Option<String>,
    /// The ssh client, and options for it
    #[arg(long, value_name = "COMMAND", default_value = "ssh", help_heading = "Network")]
    pub ssh: String,
    /// This program, on the hosts [default: where it is here]
    #[arg(long, value_name = "PATH", help_heading = "Network")]
    pub remote_launcher: Option<String>,
}

impl Default for HostsArgs {
    /// None.
    fn default() -> Self {
        let (hostfile, hosts, include, exclude, remote_launcher) = (None, None, None, None, None);
        HostsArgs { hostfile, hosts, include, exclude, ssh: "ssh".into(), remote_launcher }
    }
}

impl HostsArgs {
    /// Whether any are said, or chosen of.
    pub fn are_said(&self) -> bool {
        [self.hosts.is_some(), self.hostfile.is_some(), self.include.is_some(), self.exclude.is_some()].contains(&true)
    }
}

/// Where the run can be reached, and by whom.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct NetworkArgs {
    /// Address to listen on; port 0 takes a free one; off loopback with --certs or --insecure only [default: 127.0.0.1:0]
    #[arg(long, value_name = "IP:PORT", help_heading = "Network")]
    pub listen: Option<String>,
    /// Network interface whose address to listen on
    #[arg(long, value_name = "NAME", conflicts_with = "listen", help_heading = "Network")]
    pub interface: Option<String>,
    /// Name or address that others reach this machine at [default: that of --listen]
    #[arg(long, value_name = "HOST", help_heading = "Network")]
    pub advertise_addr: Option<String>,
    /// Directory with ca.crt, tls.crt, tls.key and token, as `launcher certs` makes: everybody shows a certificate and a
    /// token (or CONVOY_TOKEN), and nothing goes in the clear
    #[arg(long, value_name = "DIR", help_heading = "Network")]
    pub certs: Option<String>,
    /// How tensors get from process to process: auto (through shared memory on one machine, else through connections), shm
    /// or grpc [default: auto]
    #[arg(long, value_name = "WAY", help_heading = "Network")]
    pub transport: Option<String>,
    /// Let anybody call who reaches the run off loopback, in the clear
    #[arg(long, action = ArgAction::SetTrue, help_heading = "Network")]
    pub insecure: bool,
}

impl From<&NetworkArgs> for Pairs {
    fn from(args: &NetworkArgs) -> Self {
        given([
            ("listen", &args.listen),
            ("advertise_addr", &args.advertise_addr),
            ("certs", &args.certs),
            ("transport", &args.transport),
            ("insecure", &args.insecure.then(|| "true".to_string())),
        ])
    }
}
