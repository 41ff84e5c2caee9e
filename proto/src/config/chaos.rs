//! Faults that a run brings about in itself.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Every, raw::value_error};
use crate::chaos::Chaos;

/// The `[chaos]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawChaos {
    pub faults: Option<String>,
    pub mtbf: Option<String>,
    pub seed: Option<u64>,
}

impl RawChaos {
    pub(super) fn resolve(&self) -> Result<Option<Chaos>, ConfigError> {
        let (mtbf, seed) = (self.mtbf.as_deref().unwrap_or(""), self.seed.unwrap_or(0));
        match self.faults.as_deref().unwrap_or("") {
            "" if !mtbf.is_empty() => {
                Err(value_error("chaos.mtbf", format!("\"{mtbf}\""), "needs faults, such as --chaos kill-worker"))
            }
            "" => Ok(None),
            faults => {
                let wrong = |problem: String| value_error("chaos.faults", format!("\"{faults}\""), problem);
                Chaos::new(faults, mtbf, seed).map(Some).map_err(wrong)
            }
        }
    }
}

impl From<&Option<Chaos>> for RawChaos {
    fn from(chaos: &Option<Chaos>) -> Self {
        let mtbf = chaos.as_ref().and_then(|chaos| chaos.mtbf);
        RawChaos {
            faults: Some(chaos.as_ref().map(Chaos::faults_text).unwrap_or_default()),
            mtbf: Some(mtbf.map(|time| Every::Millis(time.as_millis() as u64).to_string()).unwrap_or_default()),
            seed: Some(chaos.as_ref().map_or(0, |chaos| chaos.seed)),
        }
    }
}
