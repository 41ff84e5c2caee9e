//! `launcher doctor --rank`: which place this launcher has among others, who says so, and why they are believed.

use std::fmt::Write;

use crate::{
    args::{DoctorArgs, Places, TrainArgs},
    cli,
    outcome::Failure,
    plan::Share,
    rendezvous::{
        self, Part,
        asked::{Asked, Told, asked, believed, is_same_group},
        claims::{self, Claim, Group, Variables, Word},
    },
    settings,
    train::losses::workers,
};

/// Prints what this launcher would do among others, with these flags and this environment.
///
/// # Errors
/// What is said makes no sense; the explanation is printed nevertheless.
pub fn doctor(args: &DoctorArgs, places: &Places) -> Result<(), Failure> {
    let variables = settings::variables();
    let train =
        TrainArgs { workers: args.workers.clone(), rendezvous: args.rendezvous.clone(), ..TrainArgs::default() };
    let asked = asked(&args.rendezvous, &variables);
    let counted = asked.as_ref().ok().and_then(|asked| asked.nnodes.clone()).filter(Told::is_said);
    cli::print(sources(&variables, counted.as_ref()))?;
    let asked = asked.map_err(|problem| Failure::Usage(problem.to_string()))?;
    cli::print(values(&asked, claims::share(&variables)))?;
    let part = rendezvous::part_of(&train, places, &asked)?;
    cli::say(match part {
        Part::Join(join) => format!("so this launcher joins {}, with {}", join.coordinator, workers(join.workers)),
        Part::Coordinate(args, ..) => match (&args.network.listen, &args.local_workers) {
            (Some(listen), Some(local)) => format!(
                "so this launcher coordinates, listens on {listen}, and has {local} of {} workers",
                args.workers.as_deref().unwrap_or("all")
            ),
            _ => "so this launcher trains alone".into(),
        },
    })
}

/// A line for each source, and which is believed.
fn sources(variables: &Variables, counted: Option<&Told>) -> String {
    let claims = claims::claims(variables);
    let first = believed(&claims, counted).ok().flatten().map(|(source, _)| source);
    let mut text = String::from("sources, those that are believed first\n");
    for source in claims::sources() {
        let what = match claims.iter().find(|claim| claim.source == source) {
            None => "says nothing".to_string(),
            Some(claim) => told(claim, first, counted),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {source:<18}{what}");
    }
    text
}

/// What a source says, and what comes of it.
fn told(claim: &Claim, first: Option<&str>, counted: Option<&Told>) -> String {
    let variables: Vec<_> = claim.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let verdict = match (&claim.word, first) {
        (Word::Group(_), Some(first)) if first == claim.source => "believed".to_string(),
        (Word::Group(group), _) if group.nnodes.is_none() && counted.is_none() => {
            "passed over: it does not say of how many, and neither does --nnodes".into()
        }
        (Word::Group(group), _) if !is_same_group(group, counted) => {
            "passed over: it counts others than are meant".into()
        }
        (Word::Group(_), Some(first)) => format!("passed over: {first} comes first"),
        (Word::Group(_), None) => "passed over: what comes first makes no sense".into(),
        (Word::Nothing(why), _) => format!("passed over: {why}"),
        (Word::Nonsense(why), _) => format!("makes no sense: {why}"),
    };
    let place = match &claim.word {
        Word::Group(Group { nnodes: Some(nnodes), rank: Some(rank), .. }) => format!("rank {rank} of {nnodes}, "),
        Word::Group(Group { rank: Some(rank), .. }) => format!("rank {rank}, "),
        _ => String::new(),
    };
    format!("{place}{verdict}  [{}]", variables.join(" "))
}

/// A line for each value, and who says it.
fn values(asked: &Asked, share: Share) -> String {
    let mut text = String::from("\n");
    let mut line = |what: &str, told: &Option<Told>, otherwise: &str| {
        let told = told.as_ref().map_or_else(|| otherwise.to_string(), ToString::to_string);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{what:<22}{told}");
    };
    line("launchers", &asked.nnodes, "this one (nobody says more)");
    line("this one's rank", &asked.node_rank, "nobody says; whose address the meeting place is has 0");
    line("meeting place", &asked.endpoint, "nobody says");
    line("name of the run", &asked.id, "nobody says");
    line("workers of each", &asked.workers, "--workers, or what suits the machine");
    if share.size > 1 {
        let _ = writeln!(
            text,
            "{:<22}launcher {} of {}, each with its part of cores and GPUs",
            "on this machine", share.rank, share.size
        );
    }
    asked.note.iter().for_each(|note| text += &format!("note: {note}\n"));
    text
}
