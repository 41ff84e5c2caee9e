//! Layers of configuration: each replaces what lies below it, key by key.
//!
//! A layer knows its origin, so that every error says where the value came from.

use toml::{Table, Value};

use crate::access;

use super::{
    ConfigError, RawConfig,
    keys::{self, Kind},
    origins::Origins,
};

/// Pairs of keys of which the higher layer's wins.
const EXCLUSIVE: [(&str, &str); 4] = [
    ("certs", "insecure"),
    ("steps", "epochs"),
    ("optimizer.clip_norm", "optimizer.clip_value"),
    ("consistency.quorum", "consistency.backup_workers"),
];
/// Names that give other keys their meaning: a higher layer that changes the name starts these anew.
const NAMED: [(&str, &[&str]); 4] = [
    (
        "optimizer.name",
        &["optimizer.momentum", "optimizer.alpha", "optimizer.beta1", "optimizer.beta2", "optimizer.epsilon"],
    ),
    ("schedule.name", &["schedule.min_factor", "schedule.every", "schedule.factor"]),
    ("consistency.compensation", &["consistency.overlap"]),
    (
        "mode",
        &[
            "consistency.quorum",
            "consistency.backup_workers",
            "consistency.max_staleness",
            "consistency.staleness_lr",
            "consistency.compensation",
            "consistency.overlap",
            "consistency.local_steps",
            "consistency.outer_lr",
            "consistency.outer_momentum",
            "consistency.inner_state",
        ],
    ),
];

/// Values gathered so far, lowest layer first.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    values: Table,
    /// Which layer the value of a key is from.
    origins: Origins,
}

/// Whether a value is more than that there is none.
fn says_something(value: &Value) -> bool {
    !matches!(value, Value::Boolean(false)) && value.as_str() != Some("")
}

impl Layers {
    /// No layer yet.
    pub fn new() -> Layers {
        Layers::default()
    }

    /// Adds a TOML document.
    ///
    /// # Errors
    /// A text that is no TOML, a key that does not exist, a value of the wrong kind.
    pub fn toml(self, origin: &str, text: &str) -> Result<Layers, ConfigError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            ConfigError::Syntax {
                origin: origin.into(),
                problem: format!("line {line}: {}", error.message().replace('\n', ", ")),
            }
        })?;
        let mut pairs = Vec::new();
        flatten("", table, &mut pairs);
        let checked = pairs.into_iter().map(|(path, value)| Ok((check(origin, &path, value)?, path)));
        self.layer(origin, checked.collect::<Result<_, _>>()?)
    }

    /// Adds values given as text, as from the environment, `--set` or flags.
    ///
    /// # Errors
    /// A key that does not exist, a text that is not of the key's kind.
    pub fn texts(self, origin: &str, pairs: &[(String, String)]) -> Result<Layers, ConfigError> {
        let values = pairs.iter().map(|(path, text)| {
            let key = keys::find(path).ok_or_else(|| unknown(origin, path))?;
            let value = match key.kind {
                Kind::Text | Kind::StepsOrTime => Value::String(text.clone()),
                Kind::CountOrAuto if text == "auto" => Value::String(text.clone()),
                Kind::Texts if !text.trim_start().starts_with('[') => words(text),
                _ => parse(text).unwrap_or_else(|| Value::String(text.clone())),
            };
            Ok((check(origin, path, value)?, path.clone()))
        });
        let values = values.collect::<Result<_, _>>()?;
        self.layer(origin, values)
    }

    /// Adds `CONVOY_*` variables; others are left alone.
    ///
    /// # Errors
    /// As [`Layers::texts`]; a `CONVOY_` variable that no key has is refused, too.
    pub fn environment(self, variables: impl IntoIterator<Item = (String, String)>) -> Result<Layers, ConfigError> {
        let mut layers = self;
        for (name, text) in
            variables.into_iter().filter(|(name, _)| name.starts_with("CONVOY_") && name != access::VARIABLE)
        {
            let Some(key) = keys::KEYS.iter().find(|key| key.variable() == name) else {
                let names: Vec<_> = keys::KEYS.iter().map(|key| key.variable()).collect();
                let suggestion = keys::nearest(&name, names.iter().map(String::as_str)).map(Into::into);
                return Err(ConfigError::UnknownKey { origin: "environment".into(), key: name, suggestion });
            };
            layers = layers.texts(&format!("environment variable {name}"), &[(key.path.into(), text)])?;
        }
        Ok(layers)
    }

    /// What all layers together say.
    ///
    /// # Errors
    /// None that a layer's own checks have not found, but the types decide.
    pub fn raw(&self) -> Result<RawConfig, ConfigError> {
        Ok(RawConfig { origins: self.origins.clone(), ..RawConfig::try_from_table(self.values.clone())? })
    }

    fn layer(mut self, origin: &str, pairs: Vec<(Value, String)>) -> Result<Layers, ConfigError> {
        for (one, other) in EXCLUSIVE {
            let has = |key: &str| pairs.iter().any(|(value, path)| path == key && says_something(value));
            match (has(one), has(other)) {
                (true, true) => return Err(ConfigError::Conflict { origin: origin.into(), one, other }),
                (true, false) => self.forget(other),
                (false, true) => self.forget(one),
                (false, false) => {}
            }
        }
        for (name, keys) in NAMED {
            let given = pairs.iter().find(|(_, path)| path == name).map(|(value, _)| value);
            if given.is_some_and(|given| self.get(name).is_some_and(|old| old != given)) {
                keys.iter().for_each(|key| self.forget(key));
            }
        }
        for (value, path) in pairs {
            self.origins.0.insert(path.clone(), origin.into());
            match path.split_once('.') {
                None => drop(self.values.insert(path, value)),
                Some((section, key)) => {
                    let section = self.values.entry(section).or_insert_with(|| Value::Table(Table::new()));
                    if let Value::Table(section) = section {
                        section.insert(key.into(), value);
                    }
                }
            }
        }
        Ok(self)
    }
}

impl Layers {
    fn get(&self, path: &str) -> Option<&Value> {
        match path.split_once('.') {
            None => self.values.get(path),
            Some((section, key)) => self.values.get(section)?.get(key),
        }
    }

    fn forget(&mut self, path: &str) {
        match path.split_once('.') {
            None => drop(self.values.remove(path)),
            Some((section, key)) => {
                if let Some(Value::Table(section)) = self.values.get_mut(section) {
                    section.remove(key);
                }
            }
        }
    }
}

fn flatten(prefix: &str, table: Table, pairs: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) if keys::find(&path).is_none() => flatten(&path, table, pairs),
            value => pairs.push((path, value)),
        }
    }
}

fn parse(text: &str) -> Option<Value> {
    format!("value = {text}").parse::<Table>().ok()?.remove("value")
}

/// A list as it is written on a command line: commas between the parts.
fn words(text: &str) -> Value {
    Value::Array(text.split(',').map(str::trim).filter(|word| !word.is_empty()).map(Value::from).collect())
}

fn unknown(origin: &str, path: &str) -> ConfigError {
    let suggestion = keys::nearest(path, keys::KEYS.iter().map(|key| key.path)).map(Into::into);
    ConfigError::UnknownKey { origin: origin.into(), key: path.into(), suggestion }
}

fn check(origin: &str, path: &str, value: Value) -> Result<Value, ConfigError> {
    let key = keys::find(path).ok_or_else(|| unknown(origin, path))?;
    let count = |value: &Value| value.as_integer().is_some_and(|n| n >= 0);
    let fits = match key.kind {
        Kind::Text => value.is_str(),
        Kind::StepsOrTime => value.is_str() || count(&value),
        Kind::Count => count(&value),
        Kind::CountOrAuto => count(&value) || value.as_str() == Some("auto"),
        Kind::Number => value.is_integer() || value.is_float(),
        Kind::Counts => value.as_array().is_some_and(|list| list.iter().all(count)),
        Kind::Flag => value.is_bool(),
        Kind::Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_str)),
        Kind::Tables => value.as_array().is_some_and(|list| list.iter().all(Value::is_table)),
    };
    match (fits, key.kind) {
        (false, kind) => Err(ConfigError::Kind {
            origin: origin.into(),
            key: path.into(),
            found: value.to_string(),
            wanted: kind.describe().into(),
        }),
        (true, Kind::StepsOrTime) => Ok(value.as_integer().map_or(value, |n| Value::String(n.to_string()))),
        (true, Kind::Number) => Ok(value.as_integer().map_or(value, |n| Value::Float(n as f64))),
        (true, _) => Ok(value),
    }
}
