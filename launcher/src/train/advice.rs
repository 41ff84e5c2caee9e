//! What a person is told of the failure that ended a run: who, where, how, and what to try.

use std::path::Path;

use convoy_proto::ids::Role;

use super::{Session, restarts::Place};
use crate::children::ChildExit;

/// How a process ended, as far as advice depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a signal.
    Signal(i32),
    /// With an exit code.
    Code(i32),
    /// It did not end, but was not heard of any more.
    Silent,
}

impl From<&ChildExit> for Way {
    fn from(exit: &ChildExit) -> Way {
        match (exit.signal(), exit.status.code()) {
            (Some(signal), _) => Way::Signal(signal),
            (None, code) => Way::Code(code.unwrap_or(-1)),
        }
    }
}

/// What to try.
fn advice(way: Way, role: Role) -> &'static str {
    match (way, role) {
        (Way::Signal(9), Role::Worker) => {
            "if nobody killed it, the system did for want of memory (`dmesg` says so): fewer --workers, a smaller --batch-size or \
             more --slices need less"
        }
        (Way::Signal(9), _) => {
            "if nobody killed it, the system did for want of memory (`dmesg` says so): more --servers need less each"
        }
        (Way::Signal(15), _) => "somebody told it to end: a scheduler, or a person",
        (Way::Signal(_), _) => {
            "a driver or a library broke: `launcher doctor` looks at devices; --backend cpu does without them"
        }
        (Way::Code(2), _) => "the configuration does not suit it: see the log, and config.toml in the run's directory",
        (Way::Code(3), _) => "something on its machine is missing or taken: `launcher doctor` looks",
        (Way::Code(101), _) => "a panic is a bug: please report it, with the log",
        (Way::Code(_), _) => "its log says why",
        (Way::Silent, _) => {
            "its machine may be asleep, overloaded or cut off; if it is only slow, a larger timeouts.lease_ms waits longer"
        }
    }
}

impl Session {
    /// A few lines on the process whose failure ended the run.
    pub(super) fn first_failure(&self, place: Place, way: Way) -> String {
        let (role, rank) = place;
        let cluster = self.service.cluster();
        let rank_index = rank as usize;
        let host = match role {
            Role::Server => {
                cluster.servers().get(rank_index).and_then(Option::as_ref).map(|server| server.host.clone())
            }
            _ => cluster.workers().get(rank_index).and_then(Option::as_ref).map(|worker| worker.host.clone()),
        };
        told((place, host.as_deref()), (way, cluster.steps()), self.run_dir.path())
    }
}

fn told(((role, rank), host): (Place, Option<&str>), (way, step): (Way, u64), run: &Path) -> String {
    let how = match way {
        Way::Signal(signal) => {
            let name = nix::sys::signal::Signal::try_from(signal).map_or("unknown", |signal| signal.as_str());
            format!("signal {signal} ({name})")
        }
        Way::Code(code) => format!("exit code {code}"),
        Way::Silent => "no heartbeat".into(),
    };
    let host = host.map(|host| format!(" on {host}")).unwrap_or_default();
    format!(
        "first failure: {role} {rank}{host}, {how}, after step {step}\nto try: {}\nall it said: launcher logs {} --role {role} --rank {rank}",
        advice(way, role),
        run.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_who_where_how_and_what_to_try() {
        let text = told(((Role::Worker, 1), Some("node7")), (Way::Signal(9), 12), Path::new("runs/r"));
        assert_eq!(text.lines().next(), Some("first failure: worker 1 on node7, signal 9 (SIGKILL), after step 12"));
        assert!(
            text.contains("want of memory") && text.ends_with("launcher logs runs/r --role worker --rank 1"),
            "{text}"
        );
        let text = told(((Role::Server, 0), None), (Way::Code(101), 0), Path::new("r"));
        assert!(text.starts_with("first failure: server 0, exit code 101") && text.contains("a bug"), "{text}");
        assert!(told(((Role::Worker, 2), None), (Way::Silent, 3), Path::new("r")).contains("lease_ms"));
    }
}
