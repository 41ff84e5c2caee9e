//! `launcher emit`: what another system needs to start a run on several machines, ready to be handed to it.
//!
//! Pure but for the credentials that a Secret is filled with. What it prints says the same as a person would on the command
//! line: the same launcher on each machine, and where they meet.

use std::path::Path;

use crate::{
    args::{EmitArgs, Places, Target},
    cli,
    outcome::Failure,
    remote::credentials::{Credentials, read},
};

mod compose;
mod kubernetes;
mod slurm;

/// Names that are used where none is said.
const NAME: &str = "convoy";

/// A run on several machines, as the other system is told.
pub(super) struct Job<'a> {
    /// Its name, that of a host by the rules of DNS.
    pub name: String,
    /// What is asked for.
    pub asked: &'a EmitArgs,
}

/// Prints what the target needs.
///
/// # Errors
/// A name or a number that the target cannot have, or certificates that cannot be read.
pub fn emit(args: &EmitArgs, places: &Places) -> Result<(), Failure> {
    let job = job(args, places)?;
    let files = |hosts: &[String]| match &args.certs {
        Some(dir) => read(dir),
        None => read(&Credentials::new(hosts)?.own()),
    };
    let text = match args.target {
        Target::Slurm => slurm::script(&job),
        Target::K8s => kubernetes::indexed_job(&job, &files(&kubernetes::hosts(&job, false))?),
        Target::Jobset => kubernetes::job_set(&job, &files(&kubernetes::hosts(&job, true))?),
        Target::Compose => compose::file(&job, args.certs.as_deref().unwrap_or(Path::new("certs"))),
    };
    cli::print(text)
}

/// What is asked for, checked.
fn job<'a>(args: &'a EmitArgs, places: &Places) -> Result<Job<'a>, Failure> {
    let name = places.name.clone().unwrap_or_else(|| NAME.into());
    // Of what a host may be called, what is left after an index is put behind it.
    let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_name = name.len() <= 40 && name.chars().all(is_label) && name.starts_with(|c: char| c.is_ascii_lowercase());
    if !is_name || name.ends_with('-') {
        let problem = "must be up to 40 small letters, digits and -, beginning with a letter, as a host's name";
        return Err(Failure::Usage(format!("--name {name}: {problem}")));
    }
    if args.workers != "auto" && !args.workers.parse().is_ok_and(|count: u32| (1..=4096).contains(&count)) {
        return Err(Failure::Usage(format!("--workers {}: must be a number from 1 to 4096, or auto", args.workers)));
    }
    let ours =
        ["--workers", "--nnodes", "--node-rank", "--rdzv-endpoint", "--rdzv-id", "--certs", "--name", "--listen"];
    let is_ours = |argument: &&String| ours.iter().any(|flag| argument.split('=').next() == Some(*flag));
    if let Some(flag) = args.arguments.iter().find(is_ours) {
        return Err(Failure::Usage(format!("{flag} after -- is not yours to say: `launcher emit` says it")));
    }
    Ok(Job { name, asked: args })
}

/// A text as YAML has it, whatever is in it: JSON's way, which YAML reads.
pub(super) fn text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A list of texts on one line.
pub(super) fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    format!("[{}]", texts.into_iter().map(text).collect::<Vec<_>>().join(", "))
}
