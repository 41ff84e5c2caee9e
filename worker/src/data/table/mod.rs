//! Tables: rows of numbers and texts, one column of which is to be predicted.
//!
//! A table is gone through three times and never held as text: once to find out what its columns hold ([`profile`]),
//! once for the means and deviations of the training part, once to encode it. What stays in memory is four bytes a number
//! and one a category.

use std::{path::PathBuf, sync::Arc};

use convoy_proto::config::Input;
use sha2::{Digest, Sha256};

use super::{DataError, DataInfo, Dataset, Form, HostBatch, Part, Request, files, files::Files, split::split};

mod columnar;
mod delimited;
mod profile;
mod rows;

use profile::{Feature, Plan, Target};
use rows::{Cell, Rows};

/// The code of an empty cell in a category column.
const NOTHING: u8 = u8::MAX;

/// What brings a column to mean 0 and deviation 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Scale {
    mean: f64,
    deviation: f64,
}

impl Scale {
    fn apply(self, value: f64) -> f32 {
        ((value - self.mean) / self.deviation) as f32
    }
}

/// Sums over a column, shifted by its first value so that large values lose nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    shift: Option<f64>,
    count: f64,
    sum: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, value: f64) {
        let shifted = value - *self.shift.get_or_insert(value);
        self.count += 1.0;
        self.sum += shifted;
        self.squares += shifted * shifted;
    }

    /// A constant column has deviation 1, so that it becomes 0.
    fn scale(self) -> Scale {
        let count = self.count.max(1.0);
        let mean = self.sum / count;
        let deviation = (self.squares / count - mean * mean).max(0.0).sqrt();
        let is_constant = deviation <= self.shift.unwrap_or(0.0).abs() * 1e-12;
        Scale { mean: self.shift.unwrap_or(0.0) + mean, deviation: if is_constant { 1.0 } else { deviation } }
    }
}

struct Table {
    info: DataInfo,
    names: Vec<String>,
    /// Numeric cells, row by row, standardised.
    numbers: Vec<f32>,
    /// Category codes, row by row.
    codes: Vec<u8>,
    /// By category column: the share of each value in the training part, which stands for an empty cell.
    shares: Vec<Vec<f32>>,
    labels: Vec<u32>,
    targets: Vec<f32>,
    train: Vec<u32>,
    test: Vec<u32>,
    notes: Vec<String>,
}

impl Dataset for Table {
    fn info(&self) -> &DataInfo {
        &self.info
    }

    fn read(&self, part: Part, index: u32, batch: &mut HostBatch) -> Result<(), DataError> {
        let rows = match part {
            Part::Train => &self.train,
            Part::Test => &self.test,
        };
        let row = rows[index as usize] as usize;
        let numbers = self.numbers.len() / self.rows();
        batch.features.extend_from_slice(&self.numbers[row * numbers..][..numbers]);
        let codes = &self.codes[row * self.shares.len()..][..self.shares.len()];
        for (code, shares) in codes.iter().zip(&self.shares) {
            match code {
                &NOTHING => batch.features.extend_from_slice(shares),
                code => batch.features.extend((0..shares.len()).map(|value| f32::from(value == usize::from(*code)))),
            }
        }
        if let Some(label) = self.labels.get(row) {
            batch.label(*label);
        }
        batch.targets.extend(self.targets.get(row));
        Ok(())
    }

    fn feature_names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

impl Table {
    fn rows(&self) -> usize {
        self.train.len() + self.test.len()
    }
}

/// Opens `csv:FILE`.
pub fn open_csv(request: &Request<'_>) -> Result<Arc<dyn Dataset>, DataError> {
    let path = request.path("csv", "FILE")?;
    load("csv", &delimited::Delimited::open(path, request.input)?, request)
}

/// Opens `parquet:FILE`.
pub fn open_parquet(request: &Request<'_>) -> Result<Arc<dyn Dataset>, DataError> {
    let path = request.path("parquet", "FILE")?;
    load("parquet", &columnar::Columnar::open(path)?, request)
}

fn load(kind: &str, rows: &dyn Rows, request: &Request<'_>) -> Result<Arc<dyn Dataset>, DataError> {
    let plan = Plan::of(rows, request.input, request.wanted)?;
    let (train, test) = split(plan.rows, request.input.test_size, request.seed);
    let scales = Scales::of(rows, &plan, &train)?;
    let fingerprint = fingerprint(rows.path().into(), request)?;
    let mut table = Table {
        names: plan.feature_names(rows),
        info: info(kind, rows, &plan, (&train, &test), &scales, fingerprint),
        numbers: Vec::new(),
        codes: Vec::new(),
        shares: scales.shares.clone(),
        labels: Vec::new(),
        targets: Vec::new(),
        train,
        test,
        notes: plan.notes.clone(),
    };
    rows.scan(&mut |_, cells| {
        table.encode(&plan, &scales, cells);
        Ok(())
    })?;
    if table.numbers.len() + table.codes.len() != table.rows() * plan.features.len() {
        return Err(DataError::read(rows.path(), "it changed while it was read"));
    }
    Ok(Arc::new(table))
}

/// Of a run, with everything that decides what a sample is.
fn fingerprint(path: PathBuf, request: &Request<'_>) -> Result<Vec<u8>, DataError> {
    let Input { test_size, label, drop, missing, delimiter, header, .. } = request.input;
    let mut hash = Sha256::new();
    Files::open(&[path])?.fingerprint(&mut hash)?;
    hash.update(format!("{} {test_size} {label:?} {drop:?} {missing:?} {delimiter:?} {header:?}", request.seed));
    hash.update(format!("{:?}", request.wanted));
    Ok(hash.finalize().to_vec())
}

fn info(
    kind: &str,
    rows: &dyn Rows,
    plan: &Plan,
    (train, test): (&[u32], &[u32]),
    scales: &Scales,
    fingerprint: Vec<u8>,
) -> DataInfo {
    let features = plan.feature_names(rows).len();
    let shape = [1, 1, features];
    let label = &rows.names()[plan.label];
    let (form, class_names, what) = match &plan.target {
        Target::Class(values) => {
            let names: Vec<_> = values.keys().map(ToString::to_string).collect();
            let what = format!("`{label}`, one of {} classes", values.len());
            (Form::Classes { shape, classes: values.len() }, names, what)
        }
        Target::Number => {
            let Scale { mean: zero, deviation: unit } = scales.target;
            (Form::Numbers { shape, unit, zero }, Vec::new(), format!("the number `{label}`"))
        }
    };
    let about = format!(
        "{kind}: {} rows to train on, {} held out, {features} features, to predict {what}, from {}{}",
        train.len(),
        test.len(),
        rows.path().display(),
        rows.form()
    );
    DataInfo { about, form, train: train.len() as u32, test: test.len() as u32, class_names, fingerprint }
}

/// Means, deviations and shares over the training part.
struct Scales {
    numbers: Vec<Scale>,
    shares: Vec<Vec<f32>>,
    target: Scale,
}

impl Scales {
    fn of(rows: &dyn Rows, plan: &Plan, train: &[u32]) -> Result<Scales, DataError> {
        let mut is_train = vec![false; plan.rows as usize];
        train.iter().for_each(|row| is_train[*row as usize] = true);
        let mut numbers = vec![Sums::default(); plan.features.len()];
        let mut counts: Vec<Vec<u32>> = plan.features.iter().map(|(_, feature)| empty_counts(feature)).collect();
        let mut target = Sums::default();
        rows.scan(&mut |at, cells| {
            if !is_train.get(at.row as usize).copied().unwrap_or(false) {
                return Ok(());
            }
            for (((at, feature), sums), counts) in plan.features.iter().zip(&mut numbers).zip(&mut counts) {
                match (feature, cells[*at]) {
                    (Feature::Number, Cell::Number(value, _)) => sums.add(value),
                    (Feature::Categories(values), cell) => {
                        profile::category(values, cell).into_iter().for_each(|code| counts[usize::from(code)] += 1);
                    }
                    _ => {}
                }
            }
            if let Cell::Number(value, _) = cells[plan.label] {
                target.add(value);
            }
            Ok(())
        })?;
        let share = |counts: Vec<u32>| {
            let all = counts.iter().sum::<u32>().max(1) as f32;
            counts.into_iter().map(|count| count as f32 / all).collect()
        };
        Ok(Scales {
            numbers: numbers.into_iter().map(Sums::scale).collect(),
            shares: counts.into_iter().filter(|counts| !counts.is_empty()).map(share).collect(),
            target: target.scale(),
        })
    }
}

fn empty_counts(feature: &Feature) -> Vec<u32> {
    match feature {
        Feature::Number => Vec::new(),
        Feature::Categories(values) => vec![0; values.len()],
    }
}

impl Table {
    /// Appends a row. An empty number becomes 0, which is the mean.
    fn encode(&mut self, plan: &Plan, scales: &Scales, cells: &[Cell<'_>]) {
        for ((at, feature), scale) in plan.features.iter().zip(&scales.numbers) {
            match (feature, cells[*at]) {
                (Feature::Number, Cell::Number(value, _)) => self.numbers.push(scale.apply(value)),
                (Feature::Number, _) => self.numbers.push(0.0),
                (Feature::Categories(values), cell) => {
                    self.codes.push(profile::category(values, cell).unwrap_or(NOTHING));
                }
            }
        }
        match (&plan.target, cells[plan.label]) {
            (Target::Class(values), cell) => self.labels.push(profile::class(values, cell).unwrap_or(0)),
            (Target::Number, Cell::Number(value, _)) => self.targets.push(scales.target.apply(value)),
            (Target::Number, _) => self.targets.push(0.0),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
