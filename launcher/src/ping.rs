//! `launcher ping`: whether a run's coordinator answers, for probes of other systems.

use std::path::PathBuf;

use convoy_proto::{
    access::TokenRole,
    process,
    transport::{TransportError, ping as ask},
};

use crate::{args::PingArgs, cli::say, outcome::Failure, rendezvous::asked::ENDPOINT, settings};

/// Where certificates are if nobody says.
const CERTS: &str = "CONVOY_CERTS";

/// Asks a coordinator whether it serves.
///
/// # Errors
/// It does not, or not for this process.
pub fn ping(args: &PingArgs) -> Result<(), Failure> {
    let variables = settings::variables();
    let address = args.coordinator.as_ref().or_else(|| variables.get(ENDPOINT));
    let address = address.ok_or_else(|| Failure::Usage(format!("say HOST:PORT, or set {ENDPOINT}")))?;
    let certs = args.certs.clone().or_else(|| variables.get(CERTS).map(PathBuf::from));
    let credentials = process::load_security(certs.as_deref())?.credentials(TokenRole::Observer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|problem| Failure::Environment(format!("cannot start the runtime: {problem}")))?;
    match runtime.block_on(ask(address, &credentials)) {
        Ok(took) => say(format_args!("{address} answers within {:.1} ms", took.as_secs_f64() * 1e3)),
        Err(problem @ TransportError::Distrusted { .. }) => Err(Failure::Usage(problem.to_string())),
        Err(problem) => Err(Failure::Environment(problem.to_string())),
    }
}
