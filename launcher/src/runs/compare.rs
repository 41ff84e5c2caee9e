//! `launcher compare`: where runs differ, and what came of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{curves, record::Record};
use crate::{
    args::{CompareArgs, Places},
    cli,
    outcome::Failure,
    table::{object, table},
};

/// Keys that differ between any two runs and say nothing of why they end differently.
const NAMES: [&str; 2] = ["name", "run_dir"];

/// Prints the keys in which runs differ, then what they came to; draws their curves, if that is asked for.
///
/// # Errors
/// A run that is not there, or a file that cannot be written.
pub fn compare(args: &CompareArgs, places: &Places) -> Result<(), Failure> {
    let root = places.root();
    let runs = args.runs.iter().map(|run| Record::find(root, run)).collect::<Result<Vec<_>, _>>()?;
    let different = differences(&runs.iter().map(Record::configuration).collect::<Vec<_>>());
    if let Some(file) = &args.plot {
        if file.extension().is_none_or(|kind| kind != "svg") {
            return Err(Failure::Usage(format!("--plot {}: what is drawn is SVG; call it .svg", file.display())));
        }
        let curves: Vec<_> = runs.iter().map(|run| (run.name.clone(), run.events())).collect();
        curves::draw(file, &curves)?;
    }
    let rows: Vec<_> = runs.iter().map(Record::row).collect();
    if args.json {
        let rows: Vec<_> = rows.into_iter().map(object).collect();
        return cli::say(json!({ "differences": different, "runs": rows }));
    }
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    cli::print(format!("{}\n{}", told(&different, &names), table(&rows)))
}

/// Keys that not all have the same value of, and each one's.
fn differences(runs: &[BTreeMap<String, String>]) -> BTreeMap<String, Vec<Option<String>>> {
    let keys: BTreeSet<&String> = runs.iter().flat_map(BTreeMap::keys).collect();
    let values = |key: &String| runs.iter().map(|run| run.get(key).cloned()).collect::<Vec<_>>();
    let all = keys.into_iter().filter(|key| !NAMES.contains(&key.as_str())).map(|key| (key.clone(), values(key)));
    all.filter(|(_, values)| values.iter().any(|value| *value != values[0])).collect()
}

fn told(different: &BTreeMap<String, Vec<Option<String>>>, names: &[&str]) -> String {
    if different.is_empty() {
        return "the same configuration\n".into();
    }
    let value = |value: &Option<String>| Value::from(value.as_deref().unwrap_or("-"));
    let head = std::iter::once("key").chain(names.iter().copied()).map(Value::from).collect::<Vec<_>>();
    let body = different.iter().map(|(key, values)| {
        std::iter::once(Value::from(key.as_str())).chain(values.iter().map(value)).collect::<Vec<_>>()
    });
    let lines: Vec<Vec<Value>> = std::iter::once(head).chain(body).collect();
    // The head is a line like others, for names of runs are no names of columns.
    let rows: Vec<_> = lines.into_iter().map(|line| line.into_iter().map(|cell| ("", cell)).collect()).collect();
    table(&rows).lines().skip(1).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let run = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let runs = [
            run(&[("name", "a"), ("seed", "1"), ("optimizer.lr", "0.5")]),
            run(&[("name", "b"), ("seed", "1"), ("optimizer.lr", "0.25"), ("clip_norm", "1.0")]),
        ];
        let different = differences(&runs);
        assert_eq!(different.keys().map(String::as_str).collect::<Vec<_>>(), ["clip_norm", "optimizer.lr"]);
        assert_eq!(
            told(&different, &["a", "b"]),
            "key           a    b\nclip_norm     -    1.0\noptimizer.lr  0.5  0.25\n"
        );
        assert_eq!(told(&differences(&runs[..1]), &["a"]), "the same configuration\n");
    }
}
