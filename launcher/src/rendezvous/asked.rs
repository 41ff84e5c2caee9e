//! What this launcher is asked to be among others: flags, before `CONVOY_*` variables, before what schedulers say. Pure;
//! every value knows who said it, so that `launcher doctor --rank` can tell.

use std::fmt;

use super::claims::{self, Claim, Group, Variables, Word, master};
use crate::args::RendezvousArgs;

/// The variables that stand for flags of the rendezvous. They are no configuration: each machine has its own.
pub const VARIABLES: [&str; 4] = [NNODES, NODE_RANK, ENDPOINT, ID];
const NNODES: &str = "CONVOY_NNODES";
const NODE_RANK: &str = "CONVOY_NODE_RANK";
/// Where launchers meet.
pub const ENDPOINT: &str = "CONVOY_RDZV_ENDPOINT";
const ID: &str = "CONVOY_RDZV_ID";

/// A value, and who said it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The value.
    pub text: String,
    /// A flag, a variable or a scheduler.
    pub by: &'static str,
}

impl Told {
    /// Whether a person said it, and no scheduler.
    pub fn is_said(&self) -> bool {
        self.by.starts_with("--") || VARIABLES.contains(&self.by)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.by)
    }
}

/// All that is said of this launcher's place among others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// How many launchers there are.
    pub nnodes: Option<Told>,
    /// Which this is.
    pub node_rank: Option<Told>,
    /// Where they meet.
    pub endpoint: Option<Told>,
    /// The run's name.
    pub id: Option<Told>,
    /// Workers of each, if no flag says that.
    pub workers: Option<Told>,
    /// The source that is believed.
    pub source: Option<&'static str>,
    /// Something that a person who wants more than one machine would like to know.
    pub note: Option<String>,
}

/// Why what is said makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source_name} started this, but {problem}; --standalone trains alone")]
pub struct Nonsense {
    source_name: &'static str,
    problem: String,
}

/// Puts together what flags, variables and schedulers say.
///
/// # Errors
/// The source that comes first says what cannot be.
pub fn asked(args: &RendezvousArgs, variables: &Variables) -> Result<Asked, Nonsense> {
    if args.standalone {
        return Ok(Asked::default());
    }
    let said = |flag: &Option<String>, by: &'static str, variable: &'static str| {
        let of_flag = flag.clone().map(|text| Told { text, by });
        let of_variable = || variables.get(variable).filter(|text| !text.is_empty());
        of_flag.or_else(|| of_variable().map(|text| Told { text: text.clone(), by: variable }))
    };
    let rank = args.node_rank.map(|rank| rank.to_string());
    let mut asked = Asked {
        nnodes: said(&args.nnodes, "--nnodes", NNODES),
        node_rank: said(&rank, "--node-rank", NODE_RANK),
        endpoint: said(&args.rdzv_endpoint, "--rdzv-endpoint", ENDPOINT),
        id: said(&args.rdzv_id, "--rdzv-id", ID),
        ..Asked::default()
    };
    let claims = claims::claims(variables);
    let Some((source, group)) = believed(&claims, asked.nnodes.as_ref())? else {
        if asked.nnodes.is_none() {
            asked.note = claims.iter().find_map(in_vain);
        }
        return Ok(asked);
    };
    let tell = |text: Option<String>| text.map(|text| Told { text, by: source });
    let master = master(variables).map(|text| Told { text, by: "MASTER_ADDR" });
    asked.source = Some(source);
    asked.nnodes = asked.nnodes.or_else(|| tell(group.nnodes.clone()));
    asked.node_rank = asked.node_rank.or_else(|| tell(group.rank.map(|rank| rank.to_string())));
    asked.endpoint = asked.endpoint.or(master).or_else(|| tell(group.endpoint.clone()));
    asked.id = asked.id.or_else(|| tell(group.id.clone()));
    asked.workers = tell(group.workers.clone());
    Ok(asked)
}

/// What a source says, or would like to, and nobody makes use of.
fn in_vain(claim: &Claim) -> Option<String> {
    match &claim.word {
        Word::Nothing(why) => Some(format!("{} is passed over: {why}", claim.source)),
        Word::Group(Group { nnodes: None, rank: Some(rank), .. }) => Some(format!(
            "{} says that this is number {rank}, and nobody of how many: --nnodes, or CONVOY_NNODES",
            claim.source
        )),
        _ => None,
    }
}

/// The first source that says something of use: how many there are, or, where that is known already, a place among as many.
pub fn believed<'a>(
    claims: &'a [Claim],
    counted: Option<&Told>,
) -> Result<Option<(&'static str, &'a Group)>, Nonsense> {
    for claim in claims {
        match &claim.word {
            Word::Group(group) if is_same_group(group, counted) => return Ok(Some((claim.source, group))),
            Word::Group(_) | Word::Nothing(_) => {}
            Word::Nonsense(problem) => {
                return Err(Nonsense { source_name: claim.source, problem: problem.clone() });
            }
        }
    }
    Ok(None)
}

/// Whether a group is the one that is meant: another count is that of another group.
pub fn is_same_group(group: &Group, counted: Option<&Told>) -> bool {
    match (&group.nnodes, counted) {
        (Some(theirs), Some(said)) => *theirs == said.text,
        (theirs, said) => theirs.is_some() || said.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect()
    }

    fn told(text: &str, by: &'static str) -> Option<Told> {
        Some(Told { text: text.into(), by })
    }

    #[test]
    fn flags_come_before_variables_and_variables_before_schedulers() {
        let variables = vars(&[
            ("RANK", "1"),
            ("WORLD_SIZE", "4"),
            ("MASTER_ADDR", "n1"),
            ("CONVOY_NODE_RANK", "2"),
            ("CONVOY_RDZV_ID", "job"),
            ("SLURM_PROCID", "7"),
            ("SLURM_STEP_NUM_TASKS", "8"),
        ]);
        let args = RendezvousArgs { node_rank: Some(3), ..RendezvousArgs::default() };
        let all = asked(&args, &variables).unwrap();
        assert_eq!(all.source, Some("torch"));
        assert_eq!((all.nnodes, all.node_rank), (told("4", "torch"), told("3", "--node-rank")));
        assert_eq!((all.endpoint, all.id), (told("n1:29400", "MASTER_ADDR"), told("job", "CONVOY_RDZV_ID")));
        let alone = RendezvousArgs { standalone: true, ..args };
        assert_eq!(asked(&alone, &variables), Ok(Asked::default()));
    }

    #[test]
    fn an_index_counts_where_the_number_is_known() {
        let index = ("JOB_COMPLETION_INDEX", "2");
        let alone = asked(&RendezvousArgs::default(), &vars(&[index])).unwrap();
        assert!(alone.nnodes.is_none() && alone.note.is_some_and(|note| note.contains("this is number 2")));
        let variables = vars(&[index, ("CONVOY_NNODES", "3"), ("CONVOY_RDZV_ENDPOINT", "job-0.job:29400")]);
        let all = asked(&RendezvousArgs::default(), &variables).unwrap();
        assert_eq!((all.nnodes, all.node_rank), (told("3", "CONVOY_NNODES"), told("2", "Kubernetes")));
        assert_eq!(all.endpoint, told("job-0.job:29400", "CONVOY_RDZV_ENDPOINT"));
    }

    #[test]
    fn a_place_in_another_group_is_none_in_this() {
        // One step for each machine: in each, task 0 of 1.
        let args = RendezvousArgs { nnodes: Some("2".into()), ..RendezvousArgs::default() };
        let all = asked(&args, &vars(&[("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "n1")])).unwrap();
        assert_eq!((all.source, all.node_rank, all.endpoint), (None, None, None));
        let all = asked(&args, &vars(&[("RANK", "1"), ("WORLD_SIZE", "2")])).unwrap();
        assert_eq!((all.source, all.node_rank), (Some("torch"), told("1", "torch")));
    }

    #[test]
    fn nonsense_is_no_reason_to_train_alone() {
        let wrong = asked(&RendezvousArgs::default(), &vars(&[("RANK", "4"), ("WORLD_SIZE", "4")]));
        assert_eq!(
            wrong.unwrap_err().to_string(),
            "torch started this, but RANK=4 is not below WORLD_SIZE=4; --standalone trains alone"
        );
    }

    #[test]
    fn a_batch_script_is_told_of_its_other_nodes() {
        let shell = vars(&[("SLURM_JOB_ID", "1"), ("SLURM_PROCID", "0"), ("SLURM_JOB_NUM_NODES", "4")]);
        let note = asked(&RendezvousArgs::default(), &shell).unwrap().note;
        assert!(note.unwrap().contains("`srun launcher …` starts one on each node"));
    }
}
