//! `--hostfile`: launchers on other machines, started through a real sshd in each.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
};

use convoy_tests::{Bench, finish, has, net::Net, until};
use nix::sys::signal::Signal;

use crate::{
    SMALL, bench,
    strikes::{send, verify},
};

/// Machines 1 and 2 with an sshd each, which machine 0 knows as node1 and node2.
struct Site {
    net: Net,
    sshds: Vec<Child>,
}

impl Drop for Site {
    fn drop(&mut self) {
        for sshd in &mut self.sshds {
            // It may have ended.
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
    }
}

fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status().unwrap();
    assert!(made.success());
}

fn site(bench: &Bench) -> Option<Site> {
    if !has("sshd") || !has("ssh") {
        return None;
    }
    let net = Net::new(3)?;
    let dir = bench.path().join("ssh");
    fs::create_dir_all(&dir).unwrap();
    fs::create_dir_all("/run/sshd").unwrap();
    keygen(&dir.join("host"));
    keygen(&dir.join("user"));
    fs::copy(dir.join("user.pub"), dir.join("authorized")).unwrap();
    let (path, key) = (dir.display(), fs::read_to_string(dir.join("host.pub")).unwrap());
    let key = key.split(' ').take(2).collect::<Vec<_>>().join(" ");
    let (mut client, mut known, mut sshds) = (String::new(), String::new(), Vec::new());
    for machine in [1, 2] {
        let address = Net::address(machine);
        known += &format!("{address} {key}\n");
        client += &format!(
            "Host node{machine}\n HostName {address}\n User root\n IdentityFile {path}/user\n \
             UserKnownHostsFile {path}/known\n GlobalKnownHostsFile none\n"
        );
        let config = format!(
            "ListenAddress {address}\nHostKey {path}/host\nAuthorizedKeysFile {path}/authorized\nPidFile none\nUsePAM \
             no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        );
        fs::write(dir.join(format!("sshd-{machine}")), config).unwrap();
        // Relative: what has the place in its command line is a process of a run.
        let arguments = ["-D", "-e", "-f", &format!("ssh/sshd-{machine}")];
        sshds.push(net.run(bench, machine, "/usr/sbin/sshd", arguments).spawn().unwrap());
    }
    fs::write(dir.join("known"), known).unwrap();
    fs::write(dir.join("config"), client).unwrap();
    let site = Site { net, sshds };
    for machine in [1, 2] {
        until("sshd listens", || site.ssh(bench, &format!("node{machine}"), "true").status().unwrap().success());
    }
    Some(site)
}

impl Site {
    fn ssh(&self, bench: &Bench, host: &str, command: &str) -> Command {
        self.net.run(bench, 0, "ssh", ["-F", "ssh/config", "-o", "BatchMode=yes", host, command])
    }

    /// The machine that coordinates.
    fn head(&self, bench: &Bench, arguments: &str) -> Child {
        let mut command = self.net.command(bench, 0, arguments);
        command.args(["--ssh", "ssh -F ssh/config"]).spawn().unwrap()
    }
}

fn run(steps: u64, delay_ms: u64) -> String {
    format!("--backend cpu --slices 4 --steps {steps} --slow-worker any:{delay_ms}ms {SMALL}")
}

#[test]
fn a_hostfile_is_all_that_several_machines_need() {
    let bench = bench();
    let Some(site) = site(&bench) else { return };
    let calm = bench.train("calm", &format!("--workers 4 {}", run(60, 5).replace("--backend cpu", "")));
    fs::write(bench.path().join("hosts"), "localhost slots=1\nnode1 slots=2  # two\nnode2\nnode3 slots=9\n").unwrap();
    // No certificates are said: the run has its own, and nothing goes in the clear.
    let ended = finish(site.head(&bench, &format!("--hostfile hosts --exclude node3 {} --name r", run(60, 5))));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let summary = bench.summary("r");
    assert_eq!(summary["params_sha256"], calm["params_sha256"]);
    let workers = summary["workers"].as_array().unwrap();
    assert_eq!((workers.len(), summary["faults"].as_u64()), (4, Some(0)), "{workers:?}");
    verify(&bench, "r");
    bench.await_no_process();
    let config = fs::read_to_string(bench.run_dir("r").join("config.toml")).unwrap();
    let certs = config.lines().find_map(|line| line.strip_prefix("certs = ")).unwrap().trim_matches('"').to_string();
    assert!(certs.contains("convoy-") && !Path::new(&certs).exists(), "{certs} is left behind");
}

#[test]
fn remote_processes_end_with_the_launcher_whatever_kills_it() {
    let bench = bench();
    let Some(site) = site(&bench) else { return };
    let child = site.head(&bench, &format!("-H node1:1,node2:1 --servers 1 {} --name r", run(5000, 20)));
    bench.await_steps("r", 5);
    let joined = || bench.processes().iter().filter(|(_, line)| line.contains(" join ")).count();
    assert!(joined() >= 2, "{:?}", bench.processes());
    send(child.id() as i32, Signal::SIGKILL);
    finish(child);
    bench.await_no_process();
    // It goes on with the same hosts, and a person stops it.
    let child = site.head(&bench, "resume r -H node1:1,node2:1");
    until("it trains again", || {
        let events = bench.metrics("r");
        events.iter().skip_while(|event| event["event"] != "resume").any(|event| event["event"] == "step")
    });
    // To the program: `ip` has become it.
    send(child.id() as i32, Signal::SIGINT);
    let ended = finish(child);
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);
    bench.await_no_process();
    // The certificates that it had made are gone with it.
    let alone = finish(site.net.command(&bench, 0, "resume r").spawn().unwrap());
    assert!(alone.code == Some(2) && alone.stderr.contains("say --hostfile again"), "{}", alone.stderr);
}

#[test]
fn a_session_that_is_lost_is_begun_again() {
    let bench = bench();
    let Some(site) = site(&bench) else { return };
    let calm = bench.train("calm", &format!("--workers 2 {}", run(150, 20).replace("--backend cpu", "")));
    let quick = "--set timeouts.heartbeat_ms=100 --set timeouts.lease_ms=1500";
    let child = site.head(&bench, &format!("-H localhost:1,node1:1 {quick} {} --name r", run(150, 20)));
    bench.await_steps("r", 10);
    let join = bench.processes().into_iter().find(|(_, line)| line.contains(" join ") && !line.contains("ssh"));
    send(join.unwrap().0, Signal::SIGKILL);
    let ended = finish(child);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("starts again in"), "{}", ended.stderr);
    assert_eq!(bench.summary("r")["params_sha256"], calm["params_sha256"]);
    assert!(bench.metrics("r").iter().any(|event| event["event"] == "session_ended"));
    verify(&bench, "r");
    bench.await_no_process();
}

#[test]
fn hosts_that_cannot_be_reached_are_named_with_what_ssh_says() {
    let bench = bench();
    let Some(site) = site(&bench) else { return };
    let ends = |arguments: &str| {
        let ended = finish(site.head(&bench, &format!("{arguments} {}", run(5, 0))));
        (ended.code, ended.stderr)
    };
    let (code, told) = ends("-H 10.77.0.9:1 --listen 10.77.0.1:0 --name unknown");
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("ssh 10.77.0.9 does not get through") && told.contains("ssh-10.77.0.9.log"), "{told}");
    let (code, told) = ends("-H node1:1 --remote-launcher /no/launcher --name nothing");
    assert_eq!(code, Some(3), "{told}");
    assert!(told.contains("node1 has no such launcher (--remote-launcher"), "{told}");
    let (code, told) = ends("-H node1:1 --workers 3");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("leave --workers out"), "{told}");
    let (code, told) = ends("--include node1");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("--include means nothing without"), "{told}");
    let (code, told) = ends("-H node1:0");
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("node1 has 0 slots"), "{told}");
    bench.await_no_process();
}
