//! `launcher scale`: asks a run that trains for another number of workers.

use std::{fs, path::Path};

use convoy_proto::{
    access::TokenRole,
    process,
    transport::{Coordinator, TransportError},
};
use serde::{Deserialize, Serialize};

use crate::{
    args::{Places, ScaleArgs},
    cli::say,
    outcome::Failure,
    run_dir,
};

/// The file that says where a run's coordinator is, while there is one.
pub const FILE: &str = "coordinator.json";

/// Where a run's coordinator is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Whereabouts {
    /// `host:port`.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// Its machine.
    #[serde(default)]
    pub host: String,
}

/// Asks a run for another number of workers.
///
/// # Errors
/// The run does not train, or cannot have as many.
pub fn scale(args: &ScaleArgs, places: &Places) -> Result<(), Failure> {
    let path = run_dir::find(places.root(), places.meant(&args.run)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|problem| Failure::Environment(format!("cannot start the runtime: {problem}")))?;
    let before = runtime.block_on(ask(&path, args.workers))?;
    say(format_args!("{} goes on with {} workers in place of {before}", path.display(), args.workers))
}

/// Asks a run for another number of workers; gives how many it had.
///
/// # Errors
/// The run does not train, or cannot have as many.
pub async fn ask(run: &Path, workers: u32) -> Result<u32, Failure> {
    let there = whereabouts(run)?;
    let config = process::load_config(run)?;
    let credentials = process::load_security(config.network.certs_dir())?.credentials(TokenRole::Admin);
    let asked = async { Coordinator::connect(&there.address, credentials).await?.scale(workers).await };
    asked.await.map_err(|problem| match problem {
        TransportError::Refused { message, .. } => Failure::Usage(message),
        other => Failure::Failed(format!("the run {} does not answer: {other}", run.display())),
    })
}

/// Where a run's coordinator is.
///
/// # Errors
/// The run does not train.
pub fn whereabouts(run: &Path) -> Result<Whereabouts, Failure> {
    let text = fs::read_to_string(run.join(FILE))
        .map_err(|_| Failure::Usage(format!("the run {} does not train now", run.display())))?;
    serde_json::from_str(&text)
        .map_err(|problem| Failure::Usage(format!("cannot read {}: {problem}", run.join(FILE).display())))
}
