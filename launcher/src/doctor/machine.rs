//! Cores, memory, limits, the network, the disk and the clock.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs},
    path::Path,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use convoy_proto::{
    process,
    shared::{Segment, View},
};
use sysinfo::{Disks, System};

use super::Finding;
use crate::{bench::raw, machine, watch::web};

const GIB: f64 = 1_073_741_824.0;
/// What is written to see how fast the disk is.
const WRITTEN: usize = 64 << 20;
/// What is sent over loopback.
const SENT: usize = 64 << 20;
/// Files and connections that a server of many workers may have open.
const MANY_FILES: usize = 4_096;
/// Machines that share certificates must agree on the time to within this, in seconds.
const SKEW: f64 = 60.0;

/// Cores and memory.
pub fn processor() -> Vec<Finding> {
    let mut system = System::new();
    system.refresh_memory();
    let cores = machine::cores();
    let online = std::thread::available_parallelism().map_or(cores, Into::into);
    let kind = convoy_worker::device::instruction_set();
    let cores = format!("{cores} of {online} for this launcher, {} with {kind}", std::env::consts::ARCH);
    let (mut total, mut free) = (system.total_memory() as f64, system.available_memory() as f64);
    let mut of = "";
    if let Some(limits) = system.cgroup_limits().filter(|limits| (limits.total_memory as f64) < total) {
        (total, free, of) =
            (limits.total_memory as f64, limits.free_memory as f64, ", which is the control group's limit");
    }
    let memory = format!("{:.1} GiB free of {:.1} GiB{of}", free / GIB, total / GIB);
    let few = "a worker needs a few hundred MiB and its data: fewer --workers, or other programs ended";
    vec![
        Finding::good(
            "system",
            format!("Convoy {}, {}", env!("CARGO_PKG_VERSION"), System::long_os_version().unwrap_or_default()),
        ),
        Finding::good("cores", cores),
        if free < GIB { Finding::note("memory", memory, few) } else { Finding::good("memory", memory) },
        Finding::good("memory speed", format!("a copy moves {:.1} GB/s", raw::copy(SENT, 1) / 1e9)),
    ]
}

/// Shared memory and open files.
pub fn limits() -> Vec<Finding> {
    let seen = Segment::new(1 << 20).and_then(|segment| View::open(&segment.pass()));
    let shared = match seen.map(drop) {
        Ok(()) => Finding::good("shared memory", "memory of one process is seen by another"),
        Err(problem) => Finding::note(
            "shared memory",
            problem.to_string(),
            "tensors go through connections instead, which takes longer; a container may forbid memfd_create or /proc",
        ),
    };
    let files = process::raise_file_limit();
    let found = format!("{files} may be open");
    let files = if files < MANY_FILES {
        Finding::note("open files", found, "many workers need more: ulimit -Hn, or LimitNOFILE= of a service")
    } else {
        Finding::good("open files", found)
    };
    vec![shared, files]
}

/// Ports, loopback, and this machine's name.
pub fn network() -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match TcpListener::bind(("127.0.0.1", 0)) {
        Ok(_) => Finding::good("ports", "a free one is found on loopback"),
        Err(problem) => Finding::bad("ports", format!("none on loopback: {problem}"), "is the interface `lo` up?"),
    });
    if let Err(problem) = TcpListener::bind(("127.0.0.1", web::PORT)) {
        let found = format!("{} on loopback is taken: {problem}", web::PORT);
        findings.push(Finding::note("dashboard", found, "--dashboard takes another port, and prints it"));
    }
    findings.push(match raw::tcp(SENT) {
        Ok(speed) => Finding::good("loopback", format!("a connection carries {:.1} GB/s", speed / 1e9)),
        Err(problem) => {
            Finding::bad("loopback", problem.to_string(), "is the interface `lo` up, and no firewall before it?")
        }
    });
    let host = process::host_name();
    let there =
        (host.as_str(), 9).to_socket_addrs().map(|all| all.map(|address: SocketAddr| address.ip()).collect::<Vec<_>>());
    findings.push(named(&host, there.map_err(|problem| problem.to_string())));
    findings
}

fn named(host: &str, there: Result<Vec<IpAddr>, String>) -> Finding {
    let advice =
        "matters to runs on several machines only: say --advertise-addr with a name or address that others reach";
    match there {
        Err(problem) => Finding::note("host name", format!("{host} is not found: {problem}"), advice),
        Ok(all) if all.iter().all(IpAddr::is_loopback) => {
            Finding::note("host name", format!("{host} is an address of loopback here"), advice)
        }
        Ok(all) => {
            let all: Vec<_> = all.iter().map(ToString::to_string).collect();
            Finding::good("host name", format!("{host} is {}", all.join(", ")))
        }
    }
}

/// Where runs are kept.
pub fn disk(root: &Path) -> Vec<Finding> {
    let cannot = |problem: std::io::Error| {
        let advice = "choose another place with --run-dir";
        vec![Finding::bad("disk", format!("cannot write in {}: {problem}", root.display()), advice)]
    };
    // Looking leaves nothing behind where nothing was.
    let there = if root.is_dir() {
        root.to_path_buf()
    } else {
        root.ancestors().find(|dir| dir.is_dir()).map_or(".".into(), Into::into)
    };
    let there = if there.as_os_str().is_empty() { Path::new(".").to_path_buf() } else { there };
    let speed = match write_speed(&there) {
        Ok(speed) => speed,
        Err(problem) => return cannot(problem),
    };
    let path = there.canonicalize().unwrap_or_else(|_| there.clone());
    let disks = Disks::new_with_refreshed_list();
    let disk = disks.iter().filter(|disk| path.starts_with(disk.mount_point()));
    let free = disk.max_by_key(|disk| disk.mount_point().as_os_str().len()).map(|disk| disk.available_space() as f64);
    let told = format!("{} takes {:.0} MB/s", path.display(), speed / 1e6);
    let told = free.map_or(told.clone(), |free| format!("{told}, {:.1} GiB are free", free / GIB));
    if free.is_some_and(|free| free < GIB) {
        return vec![Finding::note("disk", told, "checkpoints need room: another --run-dir, or fewer --keep-last")];
    }
    if speed < 20e6 {
        return vec![Finding::note(
            "disk",
            told,
            "checkpoints take long there: another --run-dir, or a larger --checkpoint-every",
        )];
    }
    vec![Finding::good("disk", told)]
}

/// Bytes a second, until they are on the disk.
fn write_speed(dir: &Path) -> std::io::Result<f64> {
    let mut file = tempfile::tempfile_in(dir)?;
    let chunk = vec![1u8; 1 << 20];
    let start = Instant::now();
    for _ in 0..WRITTEN / chunk.len() {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    Ok(WRITTEN as f64 / start.elapsed().as_secs_f64())
}

/// The clock, beside that of the disk's machine.
pub fn clock() -> Vec<Finding> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let advice = "machines of one run need one time, for certificates and for timelines: chrony, or systemd-timesyncd";
    let written = tempfile::NamedTempFile::new_in(".").and_then(|file| file.as_file().metadata()?.modified());
    let there = written.ok().and_then(|at| Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs_f64()));
    if let Some(skew) = there.map(|there| there - now()).filter(|skew| skew.abs() > SKEW) {
        return vec![Finding::note(
            "clock",
            format!("{skew:.0} s beside that of this directory's file system"),
            advice,
        )];
    }
    let is_kept =
        ["/run/systemd/timesync/synchronized", "/run/chrony/chronyd.pid"].iter().any(|file| Path::new(file).exists());
    match is_kept {
        true => vec![Finding::good("clock", "kept by a time service")],
        false => vec![Finding::note("clock", "no time service is seen to keep it", advice)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn this_machine_can_train() {
        let root = tempfile::tempdir().unwrap();
        let all = [processor(), limits(), network(), disk(&root.path().join("runs")), clock()].concat();
        assert!(all.iter().all(|finding| finding.state != State::Bad), "{all:?}");
        assert!(!root.path().join("runs").exists());
        for what in ["cores", "memory", "shared memory", "open files", "ports", "loopback", "disk", "clock"] {
            assert!(all.iter().any(|finding| finding.what == what), "{what}");
        }
    }

    #[test]
    fn what_cannot_be_written_is_in_the_way() {
        let found = disk(Path::new("/proc/no/such/runs"));
        assert!(found[0].state == State::Bad && found[0].line().contains("--run-dir"), "{found:?}");
    }

    #[test]
    fn a_name_that_others_do_not_reach_is_noted() {
        let address = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        assert_eq!(named("h", Ok(address("127.0.1.1"))).state, State::Note);
        assert_eq!(named("h", Err("no".into())).state, State::Note);
        assert_eq!(named("h", Ok(address("10.0.0.1"))).found, "h is 10.0.0.1");
    }
}
