//! What Slurm says to the tasks of a step.

use super::claims::{Group, Reader, Word, loopback, port_of};
use crate::plan::Share;

/// Reads a task's place in its step.
pub(super) fn read(reader: Reader<'_>) -> Result<Group, Word> {
    if reader.text("SLURM_STEP_NUM_TASKS").is_none() {
        // A batch script's own shell has a rank, too, and is one of one.
        let nodes = reader.number("SLURM_JOB_NUM_NODES")?.unwrap_or(1);
        let job = if nodes > 1 { format!("a job of {nodes} nodes") } else { "a job".into() };
        return Err(Word::Nothing(format!(
            "{job}, but not in a step of it: `srun launcher …` starts one on each node"
        )));
    }
    let (rank, size) = reader.place("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")?;
    let share = share(reader)?;
    let job = format!("{}-{}", reader.text("SLURM_JOB_ID").unwrap_or("0"), reader.text("SLURM_STEP_ID").unwrap_or("0"));
    let port = port_of(&job);
    let endpoint = loopback(share, size, port);
    let endpoint = match reader.text("SLURM_STEP_NODELIST").map(first_host) {
        None => endpoint,
        Some(None) => return Err(Word::Nonsense("SLURM_STEP_NODELIST is no list of nodes".into())),
        Some(Some(first)) => {
            let own = reader.text("SLURMD_NODENAME");
            if let Some(own) = own.filter(|own| rank == 0 && *own != first) {
                let problem = format!("task 0 is on {own}, not on the first node, {first}");
                return Err(Word::Nonsense(format!("{problem}: say --rdzv-endpoint {own}:{port} in all tasks")));
            }
            endpoint.or_else(|| Some(format!("{first}:{port}")))
        }
    };
    Ok(Group {
        nnodes: Some(size.to_string()),
        rank: Some(rank),
        share,
        workers: None,
        endpoint,
        id: Some(format!("slurm-{job}")),
    })
}

/// Which task this is of those on its node.
fn share(reader: Reader<'_>) -> Result<Option<Share>, Word> {
    let Some(rank) = reader.number("SLURM_LOCALID")? else { return Ok(None) };
    let node = reader.number("SLURM_NODEID")?.unwrap_or(0);
    let Some(text) = reader.text("SLURM_STEP_TASKS_PER_NODE") else { return Ok(None) };
    let size = tasks_on(text, node).filter(|size| rank < *size);
    let size = size.ok_or_else(|| {
        Word::Nonsense(format!("SLURM_STEP_TASKS_PER_NODE={text} has no task {rank} on node {node} of the step"))
    })?;
    Ok(Some(Share { rank, size }))
}

/// How many tasks a node has, of a list such as `2(x3),1`.
fn tasks_on(text: &str, node: u32) -> Option<u32> {
    let mut before = 0u32;
    for part in text.split(',') {
        let (tasks, times) = match part.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        before = before.checked_add(times)?;
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
}

/// The first host of a list such as `rack[1-2]node[001-003,7],gpu1`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list;
    while let Some(end) = rest.find(['[', ',']) {
        host += &rest[..end];
        if rest[end..].starts_with(',') {
            rest = "";
            break;
        }
        let (ranges, after) = rest[end + 1..].split_once(']')?;
        let first = ranges.split([',', '-']).next().filter(|first| !first.is_empty())?;
        host += first;
        rest = after;
    }
    host += rest;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    Some(host).filter(|host| !host.is_empty() && host.chars().all(is_name))
}

#[cfg(test)]
mod tests {
    use super::{super::claims::Variables, *};

    const STEP: [(&str, &str); 9] = [
        ("SLURM_JOB_ID", "123"),
        ("SLURM_STEP_ID", "4"),
        ("SLURM_PROCID", "5"),
        ("SLURM_STEP_NUM_TASKS", "7"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_NODEID", "2"),
        ("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
        ("SLURM_STEP_NODELIST", "node[003-005,009]"),
        ("SLURMD_NODENAME", "node005"),
    ];

    fn of(pairs: &[(&str, &str)]) -> Result<Group, Word> {
        let variables: Variables = pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        read(Reader(&variables))
    }

    fn changed(name: &'static str, text: &'static str) -> Vec<(&'static str, &'static str)> {
        let mut pairs = STEP.to_vec();
        pairs.iter_mut().filter(|(known, _)| *known == name).for_each(|pair| pair.1 = text);
        pairs
    }

    #[test]
    fn a_task_knows_its_place_and_where_the_first_node_is() {
        let group = of(&STEP).unwrap();
        assert_eq!(
            (group.rank, group.nnodes.as_deref(), group.id.as_deref()),
            (Some(5), Some("7"), Some("slurm-123-4"))
        );
        assert_eq!(group.share, Some(Share { rank: 1, size: 2 }));
        assert_eq!(group.endpoint, Some(format!("node003:{}", port_of("123-4"))));
    }

    #[test]
    fn a_step_on_one_node_stays_on_loopback() {
        let mut one = changed("SLURM_STEP_TASKS_PER_NODE", "7");
        one.extend([("SLURM_NODEID", "0")]);
        assert_eq!(of(&one).unwrap().endpoint, Some(format!("127.0.0.1:{}", port_of("123-4"))));
    }

    #[test]
    fn a_batch_scripts_own_shell_is_told_what_to_do() {
        let shell = [("SLURM_JOB_ID", "1"), ("SLURM_PROCID", "0"), ("SLURM_JOB_NUM_NODES", "4")];
        assert!(matches!(of(&shell), Err(Word::Nothing(why)) if why.contains("4 nodes") && why.contains("srun")));
    }

    #[test]
    fn what_does_not_fit_is_no_reason_to_train_alone() {
        for wrong in [
            changed("SLURM_PROCID", "7"),
            changed("SLURM_STEP_NUM_TASKS", "x"),
            changed("SLURM_NODEID", "4"),
            changed("SLURM_STEP_TASKS_PER_NODE", "2(y3)"),
            changed("SLURM_STEP_NODELIST", "node[003"),
        ] {
            assert!(matches!(of(&wrong), Err(Word::Nonsense(_))), "{wrong:?}");
        }
        let mut elsewhere = changed("SLURM_PROCID", "0");
        elsewhere.retain(|(name, _)| !name.contains("LOCALID"));
        assert!(matches!(of(&elsewhere), Err(Word::Nonsense(why)) if why.contains("--rdzv-endpoint node005")));
    }

    #[test]
    fn lists_of_nodes_begin_with_one() {
        for (list, first) in [
            ("n1", Some("n1")),
            ("n1,n2", Some("n1")),
            ("node[001-003,7]", Some("node001")),
            ("node[7]-ib", Some("node7-ib")),
            ("rack[1-2]n[01,03-04].lab,x", Some("rack1n01.lab")),
            ("", None),
            ("[", None),
            ("a[]", None),
            ("a b", None),
        ] {
            assert_eq!(first_host(list).as_deref(), first, "{list}");
        }
        for (text, node, tasks) in
            [("2(x3),1", 2, Some(2)), ("2(x3),1", 3, Some(1)), ("2(x3),1", 4, None), ("4", 0, Some(4))]
        {
            assert_eq!(tasks_on(text, node), tasks, "{text} {node}");
        }
    }
}
