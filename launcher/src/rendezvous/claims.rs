//! What schedulers and other launchers say of this process in its environment: how many there are, which of them this one
//! is, and where they meet. Pure: variables come in, what they say comes out, in the order in which sources are believed.

use std::collections::BTreeMap;

use super::slurm;
use crate::plan::Share;

/// An environment.
pub type Variables = BTreeMap<String, String>;

/// Where launchers meet if only the host is said: torchrun's port.
pub const PORT: u16 = 29_400;

/// A launcher's place among others that were started together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// How many there are, or the least and the most, as `--nnodes` has it.
    pub nnodes: Option<String>,
    /// Which this is, from 0; where nobody says, it is 0 at whose address they meet.
    pub rank: Option<u32>,
    /// Which it is of those on this machine.
    pub share: Option<Share>,
    /// Workers of each.
    pub workers: Option<String>,
    /// Where they meet, `host:port`.
    pub endpoint: Option<String>,
    /// What they have in common and others have not.
    pub id: Option<String>,
}

/// What comes of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// A place in a group.
    Group(Group),
    /// Nothing that could be used, and why.
    Nothing(String),
    /// What cannot be: to go on as if it were not there would be to train alone.
    Nonsense(String),
}

/// A source that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub source: &'static str,
    /// The variables that it is read from.
    pub variables: Vec<(&'static str, String)>,
    /// What they say.
    pub word: Word,
}

struct Source {
    name: &'static str,
    variables: &'static [&'static str],
    /// Reads what is there; whether anything is, has been looked at.
    read: fn(Reader<'_>) -> Result<Group, Word>,
}

/// In the order in which they are believed: what starts processes inside of another comes before that.
const SOURCES: [Source; 7] = [
    Source {
        name: "torch",
        variables: &["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"],
        read: torch,
    },
    Source {
        name: "Horovod",
        variables: &["HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"],
        read: horovod,
    },
    Source {
        name: "Kubeflow",
        variables: &[
            "PET_NODE_RANK",
            "PET_NNODES",
            "PET_NPROC_PER_NODE",
            "PET_RDZV_ENDPOINT",
            "PET_MASTER_ADDR",
            "PET_MASTER_PORT",
            "PET_RDZV_ID",
        ],
        read: kubeflow,
    },
    Source {
        name: "Open MPI",
        variables: &[
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
            "PMIX_NAMESPACE",
        ],
        read: open_mpi,
    },
    Source { name: "MPICH", variables: &["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"], read: mpich },
    Source {
        name: "Slurm",
        variables: &[
            "SLURM_PROCID",
            "SLURM_STEP_NUM_TASKS",
            "SLURM_LOCALID",
            "SLURM_NODEID",
            "SLURM_STEP_TASKS_PER_NODE",
            "SLURM_STEP_NODELIST",
            "SLURM_STEP_NUM_NODES",
            "SLURM_JOB_ID",
            "SLURM_STEP_ID",
            "SLURMD_NODENAME",
            "SLURM_JOB_NUM_NODES",
        ],
        read: slurm::read,
    },
    Source { name: "Kubernetes", variables: &["JOB_COMPLETION_INDEX"], read: kubernetes },
];

/// What the sources that are there say, those that are believed first.
pub fn claims(variables: &Variables) -> Vec<Claim> {
    let claim = |source: &Source| {
        let there = source.variables.iter().filter_map(|name| Some((*name, variables.get(*name)?.clone())));
        let there: Vec<_> = there.collect();
        if there.is_empty() {
            return None;
        }
        let word = (source.read)(Reader(variables)).map_or_else(|word| word, Word::Group);
        Some(Claim { source: source.name, variables: there, word })
    };
    SOURCES.iter().filter_map(claim).collect()
}

/// The names of all sources, in their order.
pub fn sources() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|source| source.name)
}

/// Where a person, or a scheduler in torch's manner, says that processes meet.
pub fn master(variables: &Variables) -> Option<String> {
    let host = variables.get("MASTER_ADDR").filter(|host| !host.is_empty())?;
    let port = variables.get("MASTER_PORT").cloned().unwrap_or_else(|| PORT.to_string());
    // torchrun listens there itself and says so; another port that all its processes agree on is as good.
    let is_taken = variables.get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True");
    let run = variables.get("TORCHELASTIC_RUN_ID").map_or("", String::as_str);
    Some(at(host, &if is_taken { port_of(&format!("{run}:{host}:{port}")).to_string() } else { port }))
}

/// This launcher's part of its machine, as the first source says that knows.
pub fn share(variables: &Variables) -> Share {
    let share = |claim: Claim| match claim.word {
        Word::Group(group) => group.share,
        _ => None,
    };
    claims(variables).into_iter().find_map(share).unwrap_or_default()
}

/// A host and a port, an address of version 6 in brackets.
fn at(host: &str, port: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// An environment, looked at by a source.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub &'a Variables);

impl<'a> Reader<'a> {
    /// A variable that is there and not empty.
    pub fn text(self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    /// A number that may be missing.
    pub fn number(self, name: &str) -> Result<Option<u32>, Word> {
        let read = |text: &str| text.parse().map_err(|_| Word::Nonsense(format!("{name}={text} is no number")));
        self.text(name).map(read).transpose()
    }

    /// A number without which the rest says nothing.
    pub fn need(self, name: &str) -> Result<u32, Word> {
        self.number(name)?.ok_or_else(|| Word::Nothing(format!("{name} is not there")))
    }

    /// This launcher's place among those on its machine, if both are said.
    pub fn share(self, rank: &str, size: &str) -> Result<Option<Share>, Word> {
        let Some((at, of)) = self.number(rank)?.zip(self.number(size)?) else { return Ok(None) };
        if at < of { Ok(Some(Share { rank: at, size: of })) } else { Err(outside(rank, at, size, of)) }
    }

    /// A place among all.
    pub fn place(self, rank: &str, size: &str) -> Result<(u32, u32), Word> {
        let (at, of) = (self.need(rank)?, self.need(size)?);
        if at < of { Ok((at, of)) } else { Err(outside(rank, at, size, of)) }
    }
}

fn outside(rank: &str, at: u32, size: &str, of: u32) -> Word {
    Word::Nonsense(format!("{rank}={at} is not below {size}={of}"))
}

fn torch(reader: Reader<'_>) -> Result<Group, Word> {
    if reader.text("LOCAL_RANK").is_none() && reader.text("PET_NNODES").is_some() {
        // A PyTorchJob: these count processes, of which torchrun would start several.
        return Err(Word::Nothing("Kubeflow's own variables are there, which count launchers".into()));
    }
    let (rank, size) = reader.place("RANK", "WORLD_SIZE")?;
    let share = reader.share("LOCAL_RANK", "LOCAL_WORLD_SIZE")?;
    let rank = Some(rank);
    let id = reader.text("TORCHELASTIC_RUN_ID").filter(|id| *id != "none").map(Into::into);
    Ok(Group { nnodes: Some(size.to_string()), rank, share, id, endpoint: loopback(share, size, PORT), workers: None })
}

fn horovod(reader: Reader<'_>) -> Result<Group, Word> {
    let (rank, size) = reader.place("HOROVOD_RANK", "HOROVOD_SIZE")?;
    let share = reader.share("HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")?;
    let (nnodes, endpoint) = (Some(size.to_string()), loopback(share, size, PORT));
    Ok(Group { nnodes, rank: Some(rank), share, endpoint, ..Group::default() })
}

fn kubeflow(reader: Reader<'_>) -> Result<Group, Word> {
    let rank = reader.number("PET_NODE_RANK")?;
    let port = reader.text("PET_MASTER_PORT").map_or_else(|| PORT.to_string(), Into::into);
    let master = reader.text("PET_MASTER_ADDR").map(|host| at(host, &port));
    let endpoint = reader.text("PET_RDZV_ENDPOINT").map(Into::into).or(master);
    if rank.is_none() && endpoint.is_none() {
        // Enough to know that there are others, and too little to find them.
        let problem = "neither PET_NODE_RANK nor PET_RDZV_ENDPOINT is there";
        return Err(match reader.text("PET_NNODES") {
            Some(nodes) if nodes != "1" => Word::Nonsense(format!("PET_NNODES={nodes}, but {problem}")),
            _ => Word::Nothing(problem.into()),
        });
    }
    Ok(Group {
        nnodes: reader.text("PET_NNODES").map(Into::into),
        rank,
        share: None,
        // Of the words that torchrun has, those that mean something here.
        workers: reader.text("PET_NPROC_PER_NODE").map(|text| if text == "gpu" { "auto" } else { text }.into()),
        endpoint,
        id: reader.text("PET_RDZV_ID").map(Into::into),
    })
}

fn open_mpi(reader: Reader<'_>) -> Result<Group, Word> {
    let (rank, size) = reader.place("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")?;
    let share = reader.share("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")?;
    let job = reader.text("PMIX_NAMESPACE");
    let port = job.map_or(PORT, port_of);
    Ok(Group {
        nnodes: Some(size.to_string()),
        rank: Some(rank),
        share,
        workers: None,
        endpoint: loopback(share, size, port),
        id: job.map(|job| format!("mpi-{}", plain(job))),
    })
}

fn mpich(reader: Reader<'_>) -> Result<Group, Word> {
    let (rank, size) = reader.place("PMI_RANK", "PMI_SIZE")?;
    let share = reader.share("MPI_LOCALRANKID", "MPI_LOCALNRANKS")?;
    if share.is_none() {
        let problem = "MPI_LOCALRANKID and MPI_LOCALNRANKS, which mpiexec sets, are not there";
        // Slurm's srun has these, too, without those of the machine, and its own say more.
        let is_slurm = reader.text("SLURM_STEP_NUM_TASKS").is_some();
        return Err(match size {
            2.. if !is_slurm => Word::Nonsense(format!("PMI_SIZE={size}, but {problem}")),
            _ => Word::Nothing(problem.into()),
        });
    }
    let (nnodes, endpoint) = (Some(size.to_string()), loopback(share, size, PORT));
    Ok(Group { nnodes, rank: Some(rank), share, endpoint, ..Group::default() })
}

fn kubernetes(reader: Reader<'_>) -> Result<Group, Word> {
    Ok(Group { rank: Some(reader.need("JOB_COMPLETION_INDEX")?), ..Group::default() })
}

/// Where a group meets that is all on one machine.
pub(super) fn loopback(share: Option<Share>, size: u32, port: u16) -> Option<String> {
    share.filter(|share| share.size == size).map(|_| at("127.0.0.1", &port.to_string()))
}

/// A port that a job's launchers agree on, and other jobs' hardly: FNV-1a of its name, above [`PORT`].
pub(super) fn port_of(job: &str) -> u16 {
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    PORT + (job.bytes().fold(0x811c_9dc5, mix) % 3000) as u16
}

/// A text with what a run's name may hold.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Vec<Claim> {
        claims(&pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect())
    }

    fn word(pairs: &[(&str, &str)]) -> Word {
        let mut claims = of(pairs);
        assert_eq!(claims.len(), 1);
        claims.remove(0).word
    }

    fn share(rank: u32, size: u32) -> Option<Share> {
        Some(Share { rank, size })
    }

    fn text(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn torch_says_who_is_where() {
        let said = word(&[("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")]);
        assert_eq!(
            said,
            Word::Group(Group { nnodes: text("4"), rank: Some(3), share: share(1, 2), ..Group::default() })
        );
        assert_eq!(word(&[("RANK", "0")]), Word::Nothing("WORLD_SIZE is not there".into()));
        assert_eq!(word(&[("RANK", "a"), ("WORLD_SIZE", "4")]), Word::Nonsense("RANK=a is no number".into()));
        assert_eq!(
            word(&[("RANK", "4"), ("WORLD_SIZE", "4")]),
            Word::Nonsense("RANK=4 is not below WORLD_SIZE=4".into())
        );
    }

    #[test]
    fn kubeflow_says_where_to_meet_and_how_many_workers_there_are() {
        let said = word(&[
            ("PET_NODE_RANK", "1"),
            ("PET_NNODES", "2:4"),
            ("PET_NPROC_PER_NODE", "gpu"),
            ("PET_MASTER_ADDR", "job-node-0-0.job"),
            ("PET_MASTER_PORT", "29500"),
        ]);
        let group = Group {
            nnodes: text("2:4"),
            rank: Some(1),
            workers: text("auto"),
            endpoint: text("job-node-0-0.job:29500"),
            ..Group::default()
        };
        assert_eq!(said, Word::Group(group));
    }

    #[test]
    fn a_pytorchjob_is_counted_by_launchers_and_may_leave_ranks_out() {
        let pairs = [("RANK", "1"), ("WORLD_SIZE", "16"), ("PET_NODE_RANK", "1"), ("PET_NNODES", "2")];
        let both = of(&pairs);
        assert!(matches!(&both[0].word, Word::Nothing(why) if why.contains("count launchers")), "{both:?}");
        assert!(matches!(&both[1].word, Word::Group(group) if group.nnodes == text("2")), "{both:?}");
        let Word::Group(elastic) = word(&[("PET_NNODES", "2:3"), ("PET_RDZV_ENDPOINT", "job-worker-0:23456")]) else {
            panic!()
        };
        assert_eq!((elastic.rank, elastic.endpoint), (None, text("job-worker-0:23456")));
        assert!(matches!(word(&[("PET_NNODES", "2")]), Word::Nonsense(_)));
    }

    #[test]
    fn mpi_on_one_machine_meets_on_loopback() {
        let vars = |local_size| {
            [
                ("OMPI_COMM_WORLD_RANK", "1"),
                ("OMPI_COMM_WORLD_SIZE", "2"),
                ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
                ("OMPI_COMM_WORLD_LOCAL_SIZE", local_size),
                ("PMIX_NAMESPACE", "2948530177"),
            ]
        };
        let Word::Group(apart) = word(&vars("1")) else { panic!() };
        assert_eq!((apart.endpoint, apart.share), (None, share(0, 1)));
        let Word::Group(together) = word(&vars("2")) else { panic!() };
        assert_eq!(together.endpoint, Some(format!("127.0.0.1:{}", port_of("2948530177"))));
        assert_eq!(together.id, text("mpi-2948530177"));
        let hydra = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")];
        let Word::Group(hydra_says) = word(&hydra) else { panic!() };
        assert_eq!((hydra_says.rank, hydra_says.endpoint), (Some(1), text("127.0.0.1:29400")));
        // As Slurm's own process manager interface has it.
        let of_slurm = [hydra[0], hydra[1], ("SLURM_STEP_NUM_TASKS", "2")];
        assert!(matches!(&of(&of_slurm)[0].word, Word::Nothing(why) if why.contains("MPI_LOCALRANKID")));
        assert!(matches!(word(&hydra[..2]), Word::Nonsense(why) if why.contains("MPI_LOCALRANKID")));
    }

    #[test]
    fn what_starts_processes_inside_of_another_comes_first() {
        let both = [
            ("SLURM_PROCID", "0"),
            ("SLURM_STEP_NUM_TASKS", "1"),
            ("OMPI_COMM_WORLD_RANK", "2"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("JOB_COMPLETION_INDEX", "5"),
        ];
        let order: Vec<_> = of(&both).into_iter().map(|claim| claim.source).collect();
        assert_eq!(order, ["Open MPI", "Slurm", "Kubernetes"]);
        assert_eq!(of(&[("HOME", "/")]), []);
    }

    #[test]
    fn an_index_alone_says_of_how_many_not() {
        let said = word(&[("JOB_COMPLETION_INDEX", "2")]);
        assert_eq!(said, Word::Group(Group { rank: Some(2), ..Group::default() }));
    }

    #[test]
    fn torch_names_a_master() {
        let vars = |pairs: &[(&str, &str)]| {
            master(&pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect())
        };
        assert_eq!(vars(&[("MASTER_ADDR", "n1"), ("MASTER_PORT", "5")]), text("n1:5"));
        assert_eq!(vars(&[("MASTER_ADDR", "fe80::1")]), text("[fe80::1]:29400"));
        assert_eq!(vars(&[("MASTER_PORT", "5")]), None);
        let beside = vars(&[("MASTER_ADDR", "n1"), ("MASTER_PORT", "5"), ("TORCHELASTIC_USE_AGENT_STORE", "True")]);
        assert!(beside.as_ref().is_some_and(|at| at.starts_with("n1:") && at != "n1:5"), "{beside:?}");
    }

    #[test]
    fn ports_of_jobs_are_below_those_that_systems_give_out() {
        assert!((0..5000).all(|job| (PORT..32_768).contains(&port_of(&format!("{job}")))));
        assert_ne!(port_of("1"), port_of("2"));
    }
}
