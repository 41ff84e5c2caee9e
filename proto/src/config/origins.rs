//! Where the values of a configuration come from, so that what is wrong with one says so.

use std::collections::BTreeMap;

use super::ConfigError;

/// Where values come from, by key. Two configurations are the same wherever they come from.
#[derive(Clone, Debug, Default)]
pub struct Origins(pub BTreeMap<String, String>);

impl PartialEq for Origins {
    fn eq(&self, _: &Origins) -> bool {
        true
    }
}

impl Origins {
    /// An error that says where its value is from, unless a person has just written it.
    pub(super) fn explain(&self, problem: ConfigError) -> ConfigError {
        match problem {
            ConfigError::Value { key, value, problem } => {
                let origin = self.0.get(key).filter(|origin| !WRITTEN.contains(&origin.as_str()));
                let from = origin.map(|origin| format!(" ({origin})")).unwrap_or_default();
                ConfigError::Value { key, value: value + &from, problem }
            }
            other => other,
        }
    }
}

/// Layers that are on the screen.
const WRITTEN: [&str; 2] = ["command line", "--set"];
