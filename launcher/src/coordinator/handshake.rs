//! The handshake: what a member must have in common with the cluster.

use convoy_proto::{
    BUILD, PROTOCOL,
    config::Config,
    hex,
    manifest::Manifest,
    messages::{JoinOffer, JoinPart},
    schedule::Horizon,
};

use super::{evaluation::Kind, refusal::Refusal};

/// What the launcher itself found the run to be: members are compared with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// The model's tensors.
    pub manifest: Manifest,
    /// SHA-256 over the data.
    pub data_fingerprint: Vec<u8>,
    /// The run's length.
    pub horizon: Horizon,
    /// How held-out data are scored.
    pub kind: Kind,
}

fn start_of(bytes: &[u8]) -> String {
    hex(&bytes[..bytes.len().min(6)]) + "…"
}

/// Refuses who differs in something from the cluster, with both sides.
///
/// # Errors
/// The difference.
pub fn same(member: &str, what: &'static str, theirs: String, ours: String) -> Result<(), Refusal> {
    if theirs == ours { Ok(()) } else { Err(Refusal::Different { member: member.into(), what, theirs, ours }) }
}

/// Compares what a process offers with the run.
///
/// # Errors
/// The first thing that differs, with both sides.
pub fn compare(offer: &JoinOffer, config: &Config, reference: &Reference) -> Result<(), Refusal> {
    let member = format!("{} {} (process {} on {})", offer.role, offer.rank, offer.pid, offer.host);
    let same = |what, theirs: String, ours: String| same(&member, what, theirs, ours);
    same("protocol version", offer.protocol.to_string(), PROTOCOL.to_string())?;
    same("build", offer.build.clone(), BUILD.into())?;
    same("run", offer.run_id.clone(), config.run_id().into())?;
    same("configuration fingerprint", start_of(&offer.config_fingerprint), start_of(&config.fingerprint()))?;
    let JoinPart::Worker(theirs) = &offer.part else { return Ok(()) };
    same("data fingerprint", start_of(&theirs.data_fingerprint), start_of(&reference.data_fingerprint))?;
    match theirs.manifest.difference(&reference.manifest) {
        None => Ok(()),
        Some(theirs) => {
            let ours = "that of the launcher".into();
            Err(Refusal::Different { member, what: "model", theirs, ours })
        }
    }
}
