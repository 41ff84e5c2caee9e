//! Which hosts take part, as `--hostfile` and `--hosts` say it in the manner of DeepSpeed, Horovod and Open MPI. Pure.

/// A host, and how many workers it is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// As ssh knows it.
    pub name: String,
    /// Workers there.
    pub slots: u32,
}

/// More workers than a host has.
const MOST_SLOTS: u32 = 4096;

/// Reads a hostfile: a host a line, `node1 slots=4`, where one slot is meant without; `#` begins a comment.
///
/// # Errors
/// A line that says something else, with its number.
pub fn read(text: &str) -> Result<Vec<Host>, String> {
    let lines = (1..).zip(text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty());
    let hosts = lines.map(|(number, text)| line(text).map_err(|problem| format!("line {number}: {problem}")));
    together(hosts.collect::<Result<_, _>>()?)
}

/// Reads `node1:4,node2:2`.
///
/// # Errors
/// What says something else.
pub fn list(text: &str) -> Result<Vec<Host>, String> {
    together(text.split(',').map(|text| line(text.trim())).collect::<Result<_, _>>()?)
}

fn line(text: &str) -> Result<Host, String> {
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default();
    let (name, mut slots) = match first.split_once(':') {
        // An address of version 6 has more than one.
        Some((name, count)) if !count.contains(':') => (name, count),
        _ => (first, "1"),
    };
    for word in words {
        slots = match word.split_once('=') {
            Some(("slots", count)) => count,
            // Open MPI's word for what a host can have at most.
            Some(("max_slots" | "max-slots", _)) => slots,
            _ => return Err(format!("\"{word}\" is not slots=N, as in node1 slots=4")),
        };
    }
    // What ssh would take for an option or for a command of a shell is no host.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._:@".contains(c);
    if name.is_empty() || name.starts_with('-') || !name.chars().all(is_name) {
        return Err(format!("\"{name}\" is no host"));
    }
    let count = slots.parse().ok().filter(|count| (1..=MOST_SLOTS).contains(count));
    let slots = count.ok_or_else(|| format!("{name} has {slots} slots: must be a number from 1 to {MOST_SLOTS}"))?;
    Ok(Host { name: name.into(), slots })
}

fn together(hosts: Vec<Host>) -> Result<Vec<Host>, String> {
    if hosts.is_empty() {
        return Err("names no host".into());
    }
    let twice = hosts.iter().enumerate().find(|(at, host)| hosts[..*at].iter().any(|other| other.name == host.name));
    match twice {
        Some((_, host)) => Err(format!("{} is there twice: say slots=N", host.name)),
        None => Ok(hosts),
    }
}

/// Those hosts that are named, or, with `is_exclude`, those that are not.
///
/// # Errors
/// A name that no host has, or nobody left.
pub fn filter(hosts: Vec<Host>, names: &str, is_exclude: bool) -> Result<Vec<Host>, String> {
    // DeepSpeed separates them by @, which may be part of a name here.
    let has_users = hosts.iter().any(|host| host.name.contains('@'));
    let separates = |c: char| c == ',' || c == '@' && !has_users;
    let names: Vec<&str> = names.split(separates).map(str::trim).filter(|name| !name.is_empty()).collect();
    for name in &names {
        if let Some((host, _)) = name.split_once(':').filter(|(host, _)| hosts.iter().any(|known| known.name == *host))
        {
            return Err(format!("slots of {host} cannot be chosen; CUDA_VISIBLE_DEVICES says which GPUs count"));
        }
        if !hosts.iter().any(|host| host.name == *name) {
            let known: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
            return Err(format!("{name} is none of the hosts, which are {}", known.join(", ")));
        }
    }
    let left: Vec<Host> = hosts.into_iter().filter(|host| names.contains(&host.name.as_str()) != is_exclude).collect();
    if left.is_empty() { Err("leaves no host".into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, slots: u32) -> Host {
        Host { name: name.into(), slots }
    }

    #[test]
    fn hosts_are_read_as_peers_write_them() {
        let text = "# the cluster\nnode1 slots=4\n\nnode2:2  # old\nme@node3 slots=1 max_slots=8\nfe80::1\n";
        let hosts = [host("node1", 4), host("node2", 2), host("me@node3", 1), host("fe80::1", 1)];
        assert_eq!(read(text), Ok(hosts.to_vec()));
        assert_eq!(list("node1:4, node2"), Ok(vec![host("node1", 4), host("node2", 1)]));
    }

    #[test]
    fn what_is_no_host_is_refused_with_its_line() {
        for (text, problem) in [
            ("", "names no host"),
            ("a\nb slots=x", "line 2: b has x slots"),
            ("a slots=0", "a has 0 slots"),
            ("a gpus=2", "\"gpus=2\" is not slots=N"),
            ("-oProxyCommand=x", "is no host"),
            ("a;rm", "is no host"),
            ("$(x)", "is no host"),
            ("a\na", "a is there twice"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(problem), "{text}: {refused}");
        }
    }

    #[test]
    fn hosts_are_chosen_by_name() {
        let hosts = || vec![host("a", 1), host("b", 2), host("c", 3)];
        assert_eq!(filter(hosts(), "a@c", false), Ok(vec![host("a", 1), host("c", 3)]));
        assert_eq!(filter(hosts(), "a,c", true), Ok(vec![host("b", 2)]));
        let users = vec![host("me@a", 1), host("b", 1)];
        assert_eq!(filter(users, "me@a", true), Ok(vec![host("b", 1)]));
        assert!(filter(hosts(), "d", true).unwrap_err().contains("d is none of the hosts, which are a, b, c"));
        assert!(filter(hosts(), "a,b,c", true).unwrap_err().contains("leaves no host"));
        assert!(filter(hosts(), "a:0,1", false).unwrap_err().contains("CUDA_VISIBLE_DEVICES"));
    }
}
