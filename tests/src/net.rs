//! Several machines on one: network namespaces with addresses of their own, joined by a bridge in one more.

use std::{
    ffi::OsStr,
    fs,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use tempfile::NamedTempFile;

use crate::{
    Bench,
    cable::{Cable, Carried},
};

/// Networks of this process so far.
static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// Machines that reach each other and nothing else. They are gone with this.
#[derive(Debug)]
pub struct Net {
    stem: String,
    machines: u32,
    hosts: Option<NamedTempFile>,
}

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip").args(arguments.split_whitespace()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

impl Net {
    /// So many machines; nothing where they cannot be made, which is said, and no excuse in CI.
    pub fn new(machines: u32) -> Option<Net> {
        let number = NETWORKS.fetch_add(1, Relaxed);
        let net = Net { stem: format!("cv{}x{number}", std::process::id()), machines, hosts: None };
        if net.build() {
            return Some(net);
        }
        assert!(std::env::var("CI").is_err(), "network namespaces cannot be made: is iproute2 there, and this root?");
        println!("SKIPPED: network namespaces cannot be made here (iproute2 and root are needed)");
        None
    }

    fn build(&self) -> bool {
        let hub = self.hub();
        let mut steps = vec![
            format!("netns add {hub}"),
            format!("-n {hub} link add br0 type bridge"),
            format!("-n {hub} link set br0 up"),
        ];
        for machine in 0..self.machines {
            let (name, port, address) = (self.name(machine), Net::port(machine), Net::address(machine));
            steps.extend([
                format!("netns add {name}"),
                format!("-n {hub} link add {port} type veth peer name eth0 netns {name}"),
                format!("-n {hub} link set {port} master br0 up"),
                format!("-n {name} addr add {address}/24 dev eth0"),
                format!("-n {name} link set eth0 up"),
                format!("-n {name} link set lo up"),
            ]);
        }
        steps.iter().all(|step| ip(step))
    }

    fn hub(&self) -> String {
        format!("{}hub", self.stem)
    }

    fn name(&self, machine: u32) -> String {
        format!("{}n{machine}", self.stem)
    }

    fn port(machine: u32) -> String {
        format!("p{machine}")
    }

    /// Where the others reach a machine.
    pub fn address(machine: u32) -> String {
        format!("10.77.0.{}", machine + 1)
    }

    /// The program's command on a machine.
    pub fn command(&self, bench: &Bench, machine: u32, arguments: &str) -> Command {
        let inner = bench.command(arguments);
        self.run(bench, machine, inner.get_program(), inner.get_args())
    }

    /// A command on a machine.
    pub fn run<A: AsRef<OsStr>>(
        &self,
        bench: &Bench,
        machine: u32,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = match &self.hosts {
            None => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &self.name(machine)]);
                command
            }
            // With what the machine calls others in the place of /etc/hosts, and all else as it is.
            Some(hosts) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{}", self.name(machine)));
                command.args(["unshare", "--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
                command.arg(hosts.path());
                command
            }
        };
        command.arg(program).args(arguments).current_dir(bench.path());
        // Real machines share no memory.
        command.env("CONVOY_TRANSPORT", "grpc");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Gives hosts names, on all machines.
    pub fn name_hosts(&mut self, lines: &str) {
        let file = NamedTempFile::new().expect("a file");
        fs::write(file.path(), format!("127.0.0.1 localhost\n{lines}\n")).expect("names of hosts");
        self.hosts = Some(file);
    }

    /// Reaches a machine by another cable from now on; nothing where the system cannot make that, which is said.
    pub fn rewire(&self, machine: u32, cable: Cable) -> Option<Carried> {
        let (hub, name, port) = (self.hub(), self.name(machine), Net::port(machine));
        let ends = ["a", "b"].map(|end| format!("{}{end}", self.stem));
        let laid = match cable.lay([&ends[0], &ends[1]]) {
            Ok(laid) => laid,
            // A device of the system's, which nothing can install.
            Err(problem) => {
                println!("SKIPPED: no cable can be made of /dev/net/tun here: {problem}");
                return None;
            }
        };
        let address = Net::address(machine);
        let steps = [
            format!("-n {hub} link del {port}"),
            format!("link set {} netns {hub} name {port}", ends[0]),
            format!("-n {hub} link set {port} master br0 up"),
            format!("link set {} netns {name} name eth0", ends[1]),
            format!("-n {name} addr add {address}/24 dev eth0"),
            format!("-n {name} link set eth0 up"),
        ];
        assert!(steps.iter().all(|step| ip(step)), "the cable cannot be plugged in");
        Some(laid.carry())
    }

    /// Cuts a machine off, without a word to anybody.
    pub fn cut(&self, machine: u32) {
        assert!(ip(&format!("-n {} link set {} down", self.hub(), Net::port(machine))));
    }

    /// Connects it again.
    pub fn heal(&self, machine: u32) {
        assert!(ip(&format!("-n {} link set {} up", self.hub(), Net::port(machine))));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let names = (0..self.machines).map(|machine| self.name(machine)).chain([self.hub()]);
        for name in names {
            ip(&format!("netns del {name}"));
        }
    }
}
