//! What DVC reads: `dvclive/metrics.json`, `params.yaml`, and a table for each metric below `plots/metrics`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{Export, Scalar};
use crate::run_dir::Replacer;

/// The directory of a run.
pub struct Live {
    dir: PathBuf,
    files: Replacer,
    /// The last value of each metric, and the step that it is of.
    last: BTreeMap<String, (u64, f64)>,
    step: u64,
    /// Lines that are not written yet, by metric.
    lines: BTreeMap<String, String>,
}

impl Live {
    /// Opens that of a run, which another launcher may have begun.
    pub fn open(run: &Path) -> io::Result<Live> {
        let dir = run.join("dvclive");
        fs::create_dir_all(dir.join("plots/metrics"))?;
        let config = fs::read_to_string(run.join("config.toml"))?;
        let files = Replacer::of(&dir);
        files.replace_text("params.yaml", &yaml(&config.parse::<toml::Table>().unwrap_or_default(), 0))?;
        let (step, last) = before(&fs::read(dir.join("metrics.json")).unwrap_or_default());
        Ok(Live { dir, files, last, step, lines: BTreeMap::new() })
    }

    fn table(&self, name: &str) -> PathBuf {
        self.dir.join("plots/metrics").join(format!("{name}.tsv"))
    }

    fn tables(&self) -> io::Result<Vec<PathBuf>> {
        let mut tables = Vec::new();
        for group in fs::read_dir(self.dir.join("plots/metrics"))? {
            let group = group?.path();
            if group.is_dir() {
                tables.extend(fs::read_dir(group)?.filter_map(|file| Some(file.ok()?.path())));
            }
        }
        Ok(tables)
    }
}

impl Export for Live {
    fn add(&mut self, scalar: &Scalar) -> io::Result<()> {
        self.step = scalar.step;
        self.last.insert(scalar.name.clone(), (scalar.step, scalar.value));
        // As others print numbers: 1 and not 1.0.
        let line = format!("{}\t{}\n", scalar.step, scalar.value);
        self.lines.entry(scalar.name.clone()).or_default().push_str(&line);
        Ok(())
    }

    fn undo(&mut self, step: u64, _time: f64) -> io::Result<()> {
        self.flush()?;
        self.last.retain(|_, (at, _)| *at <= step);
        for table in self.tables()? {
            let text = fs::read_to_string(&table)?;
            let is_kept = |line: &&str| {
                let first = line.split('\t').next().and_then(|cell| cell.parse::<u64>().ok());
                first.is_none_or(|at| at <= step)
            };
            let kept: String = text.lines().filter(is_kept).map(|line| format!("{line}\n")).collect();
            fs::write(&table, kept)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        for (name, lines) in std::mem::take(&mut self.lines) {
            let path = self.table(&name);
            if let Some(group) = path.parent() {
                fs::create_dir_all(group)?;
            }
            let mut file = File::options().create(true).append(true).open(&path)?;
            if file.metadata()?.len() == 0 {
                let column = name.rsplit('/').next().unwrap_or(&name);
                writeln!(file, "step\t{column}")?;
            }
            file.write_all(lines.as_bytes())?;
        }
        let mut metrics = json!({ "step": self.step });
        for (name, (_, value)) in &self.last {
            let (group, leaf) = name.split_once('/').unwrap_or(("", name));
            let group = metrics.as_object_mut().map(|all| all.entry(group).or_insert(Value::Object(Map::new())));
            group.and_then(Value::as_object_mut).map(|group| group.insert(leaf.into(), json!(value)));
        }
        self.files.replace_json("metrics.json", &metrics)
    }
}

/// The step and the values that another launcher left.
fn before(metrics: &[u8]) -> (u64, BTreeMap<String, (u64, f64)>) {
    let metrics: Value = serde_json::from_slice(metrics).unwrap_or_default();
    let step = metrics["step"].as_u64().unwrap_or(0);
    let groups = metrics.as_object().into_iter().flatten();
    let values = groups.flat_map(|(group, values)| {
        let values = values.as_object().into_iter().flatten();
        values.filter_map(move |(leaf, value)| Some((format!("{group}/{leaf}"), (step, value.as_f64()?))))
    });
    (step, values.collect())
}

/// A table as YAML: keys in order, values as JSON has them, which YAML takes.
fn yaml(table: &toml::Table, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let line = |(key, value): (&String, &toml::Value)| match value {
        toml::Value::Table(inner) if inner.is_empty() => format!("{indent}{key}: {{}}\n"),
        toml::Value::Table(inner) => format!("{indent}{key}:\n{}", yaml(inner, depth + 1)),
        value => format!("{indent}{key}: {}\n", json!(value)),
    };
    let mut keys: Vec<_> = table.iter().collect();
    keys.sort_by_key(|(key, _)| key.as_str());
    keys.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_where_they_have_to_be() {
        let table: toml::Table = "a = 'x: \"y\"'\nb = [1, 2]\n[c]\nd = true\n[e]\n".parse().unwrap();
        assert_eq!(yaml(&table, 0), "a: \"x: \\\"y\\\"\"\nb: [1,2]\nc:\n  d: true\ne: {}\n");
    }
}
