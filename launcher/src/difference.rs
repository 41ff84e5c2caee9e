//! What a command line asks for otherwise than the run that it is to go on with was configured.
//!
//! A run's configuration is resolved: what was not said has its default, paths are absolute, and slices count gradient
//! accumulation. So what is asked for is resolved in the same way before the two are compared.

use convoy_proto::config::RawConfig;
use convoy_worker::data;
use toml::{Table, Value};

use crate::{outcome::Failure, settings};

/// Keys that may change when a run is resumed: results do not depend on them.
const FREE: &[&str] = &[
    "workers",
    "min_workers",
    "local_workers",
    "local_servers",
    "max_restarts",
    "max_workers",
    "servers",
    "replicas",
    "listen",
    "advertise_addr",
    "certs",
    "insecure",
    "transport",
    "name",
    "run_dir",
    "slow_worker",
    "chaos",
    "checkpoint",
    "timeouts",
    "steps",
    "epochs",
    "watch",
];

/// The first key on which results depend and that is asked for otherwise than it is in the run.
///
/// # Errors
/// What is asked for cannot be.
pub fn between(theirs: &RawConfig, asked: &RawConfig) -> Result<Option<String>, Failure> {
    let mut asked = asked.clone();
    settings::suit_task(&mut asked)?;
    if asked.grad_accum.is_none() {
        // By default as many as there were workers at first.
        asked.slices = asked.slices.or(theirs.slices);
    }
    if asked.backend.as_deref().is_none_or(|backend| backend == "auto") {
        asked.backend = theirs.backend.clone();
    }
    let (theirs, mut asked) = (table(theirs), table(&asked));
    for key in FREE {
        match theirs.get(*key) {
            Some(value) => drop(asked.insert((*key).into(), value.clone())),
            None => drop(asked.remove(*key)),
        }
    }
    let asked: RawConfig = asked.try_into().map_err(|problem| Failure::Usage(format!("{problem}")))?;
    let mut config = asked.resolve(1)?;
    config.data = data::absolute(&config.data);
    config.input.tokenizer = config.input.tokenizer.map(|path| data::absolute_path(&path));
    Ok(differs("", &theirs, &table(&RawConfig::from(&config))))
}

fn table(raw: &RawConfig) -> Table {
    Table::try_from(raw).unwrap_or_default()
}

fn differs(prefix: &str, theirs: &Table, ours: &Table) -> Option<String> {
    let keys: std::collections::BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    keys.into_iter().filter(|key| !(prefix.is_empty() && FREE.contains(&key.as_str()))).find_map(|key| {
        let name = format!("{prefix}{key}");
        match (theirs.get(key), ours.get(key)) {
            (Some(Value::Table(theirs)), Some(Value::Table(ours))) => differs(&format!("{name}."), theirs, ours),
            (theirs, ours) if theirs == ours => None,
            (theirs, ours) => Some(format!("`{name}` is {} there and {} now", told(theirs), told(ours))),
        }
    })
}

fn told(value: Option<&Value>) -> String {
    value.map_or("not set".into(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use convoy_proto::config::layers::Layers;

    use super::*;

    fn raw(text: &str) -> RawConfig {
        Layers::new().toml("test", text).unwrap().raw().unwrap()
    }

    /// What differs between a run that was started by `first` and `then`.
    fn difference(first: &str, then: &str) -> Option<String> {
        let mut first = raw(first);
        settings::suit_task(&mut first).unwrap();
        let mut config = first.resolve(4).unwrap();
        config.data = data::absolute(&config.data);
        between(&RawConfig::from(&config), &raw(then)).unwrap()
    }

    #[test]
    fn the_same_command_differs_in_nothing() {
        for text in [
            "",
            "workers = 3\ngrad_accum = 4",
            "data = 'mnist:here/below'\nsteps = 7",
            "workers = 4\n[consistency]\nbackup_workers = 1",
            "mode = 'ssp'\n[consistency]\nmax_staleness = 2",
            "[optimizer]\nname = 'momentum'\nclip_norm = 1.0\n[schedule]\nname = 'cosine'\nwarmup = 10",
            "task = 'mlp'\n[model]\nhidden = [5]\n[timeouts]\nlease_ms = 9000",
        ] {
            assert_eq!(difference(text, text), None, "{text}");
        }
    }

    #[test]
    fn what_results_do_not_depend_on_may_change() {
        assert_eq!(difference("workers = 4\nsteps = 5", "workers = 2\nservers = 3\nsteps = 9"), None);
        assert_eq!(difference("workers = 4", "workers = 2\nchaos.faults = 'kill-worker@3'"), None);
    }

    #[test]
    fn what_they_depend_on_is_named_also_where_it_is_not_set_any_more() {
        for (first, then, told) in [
            ("", "optimizer.lr = 0.5", "`optimizer.lr` is 0.001 there and 0.5 now"),
            ("optimizer.lr = 0.5", "", "`optimizer.lr` is 0.5 there and 0.001 now"),
            ("", "optimizer.ema = 0.5", "`optimizer.ema` is 0.0 there and 0.5 now"),
            (
                "steps = 5",
                "steps = 5\nmode = 'local'\n[consistency]\nlocal_steps = 2",
                "`consistency.inner_state` is not set there and \"fresh\" now",
            ),
            ("workers = 2\nslices = 8", "workers = 2\nslices = 4", "`slices` is 8 there and 4 now"),
            ("seed = 1", "seed = 2", "`seed` is 1 there and 2 now"),
        ] {
            assert_eq!(difference(first, then).as_deref(), Some(told), "{first} then {then}");
        }
    }
}
