//! What a table's columns hold, found out in one pass, and how each becomes features.

use std::collections::BTreeMap;

use convoy_proto::config::{Input, input::Missing};

use super::{
    DataError,
    rows::{Cell, Rows, column_error, row_error},
};
use crate::data::Wanted;

/// The most values that a text column is one-hot encoded for.
const CATEGORIES: usize = 50;
/// The most classes.
const CLASSES: usize = 100;
/// Whole numbers above which classes are worth a word.
const MANY: usize = 20;

/// What a column holds.
#[derive(Clone, Debug, Default)]
struct Column {
    numbers: u64,
    texts: u64,
    /// The first lines with no cell, with what is no cell of a table, and with a number that is none.
    unusable: Option<u64>,
    missing: Option<u64>,
    empty: u64,
    /// The first text, and its line.
    text: Option<(u64, String)>,
    non_finite: Option<u64>,
    /// Whether all numbers are whole.
    fractions: u64,
    /// Values and how often each comes, up to one more than there may be.
    values: BTreeMap<Value, u64>,
}

/// A value that may be a category or a class: whole numbers in their order, then texts in theirs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// A whole number.
    Whole(i64),
    /// A text.
    Text(String),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Whole(number) => write!(f, "{number}"),
            Value::Text(text) => f.write_str(text),
        }
    }
}

fn value_of(cell: Cell<'_>, is_text: bool) -> Option<Value> {
    match cell {
        Cell::Missing | Cell::Unusable => None,
        Cell::Number(number, _) if !is_text && number.fract() == 0.0 && number.abs() < 9e15 => {
            Some(Value::Whole(number as i64))
        }
        Cell::Number(number, "") => Some(Value::Text(number.to_string())),
        Cell::Number(_, text) | Cell::Text(text) => Some(Value::Text(text.into())),
    }
}

impl Column {
    fn add(&mut self, line: u64, cell: Cell<'_>) {
        match cell {
            Cell::Unusable => drop(self.unusable.get_or_insert(line)),
            Cell::Missing => {
                self.missing.get_or_insert(line);
                self.empty += 1;
            }
            Cell::Text(text) => {
                self.text.get_or_insert_with(|| (line, text.into()));
                self.texts += 1;
            }
            Cell::Number(number, _) => {
                self.numbers += 1;
                self.fractions += u64::from(number.fract() != 0.0);
                // Features have 32 bits.
                if !(number as f32).is_finite() {
                    self.non_finite.get_or_insert(line);
                }
            }
        }
        // Kept as written, because text may come later; numbers written differently are the same number.
        if let (Some(value), true) = (value_of(cell, true), self.values.len() <= CLASSES) {
            *self.values.entry(value).or_default() += 1;
        }
    }

    /// Where a column of numbers, for the most part, holds a text: the row, the text, and how many cells are numbers.
    fn stray(&self) -> Option<(u64, &str, String)> {
        let (row, text) = self.text.as_ref().filter(|_| self.numbers > self.texts)?;
        Some((*row, text, format!("{} of {} cells are numbers", self.numbers, self.numbers + self.texts)))
    }

    /// The values as whole numbers, if all are. Digits that begin with zeros are codes and not numbers.
    fn whole(&self) -> Option<BTreeMap<Value, u64>> {
        let mut whole = BTreeMap::new();
        for (value, count) in &self.values {
            let Value::Text(text) = value else { return None };
            if text.len() > 1 && text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            let number = text.parse::<f64>().ok().filter(|number| number.fract() == 0.0 && number.abs() < 9e15)?;
            *whole.entry(Value::Whole(number as i64)).or_default() += count;
        }
        Some(whole)
    }
}

/// How a column becomes features.
#[derive(Clone, Debug, PartialEq)]
pub enum Feature {
    /// One, standardised.
    Number,
    /// One for each of these values.
    Categories(BTreeMap<Value, u8>),
}

/// What is to be predicted.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// A class out of these, whole numbers or texts.
    Class(BTreeMap<Value, u32>),
    /// A number.
    Number,
}

/// How a table becomes samples.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Its rows.
    pub rows: u32,
    /// The column to predict.
    pub label: usize,
    /// What it holds.
    pub target: Target,
    /// By column that is used: its place, and how it becomes features.
    pub features: Vec<(usize, Feature)>,
    /// What deserves attention.
    pub notes: Vec<String>,
}

impl Plan {
    /// Goes through a table once and decides.
    ///
    /// # Errors
    /// What cannot be trained on, by row or column.
    pub fn of(table: &dyn Rows, input: &Input, wanted: Wanted) -> Result<Plan, DataError> {
        let mut columns = vec![Column::default(); table.names().len()];
        let mut count = 0u64;
        table.scan(&mut |at, cells| {
            columns.iter_mut().zip(cells).for_each(|(column, cell)| column.add(at.line, *cell));
            count = at.row + 1;
            Ok(())
        })?;
        let rows = u32::try_from(count).ok().filter(|rows| *rows >= 2);
        let rows =
            rows.ok_or_else(|| DataError::read(table.path(), format!("{count} row(s) cannot be split in two")))?;
        let dropped = input.drop.iter().map(|name| find(table, name, "--drop")).collect::<Result<Vec<_>, _>>()?;
        let label = match &input.label {
            None => (0..columns.len()).rev().find(|at| !dropped.contains(at)).unwrap_or(0),
            Some(label) => find(table, label, "--label")?,
        };
        if dropped.contains(&label) {
            let name = &table.names()[label];
            return Err(DataError::read(
                table.path(),
                format!("--drop {name}: it is the label; choose another --label"),
            ));
        }
        let target = target(table, label, &columns[label], wanted)?;
        let used = (0..columns.len()).filter(|at| *at != label && !dropped.contains(at));
        let features = used.map(|at| Ok((at, feature(table, at, &columns[at], input)?)));
        let features = features.collect::<Result<Vec<_>, DataError>>()?;
        if features.is_empty() {
            return Err(DataError::read(table.path(), "no column is left to predict from"));
        }
        let notes = notes(table, &columns, &features, &target);
        Ok(Plan { rows, label, target, features, notes })
    }

    /// Names of the features, as rows are encoded: numbers first, then a name a category.
    pub fn feature_names(&self, table: &dyn Rows) -> Vec<String> {
        let mut names = Vec::new();
        for (at, feature) in &self.features {
            if *feature == Feature::Number {
                names.push(table.names()[*at].clone());
            }
        }
        for (at, feature) in &self.features {
            if let Feature::Categories(values) = feature {
                names.extend(values.keys().map(|value| format!("{}={value}", table.names()[*at])));
            }
        }
        names
    }
}

/// What deserves attention, though it is no error.
fn notes(table: &dyn Rows, columns: &[Column], features: &[(usize, Feature)], target: &Target) -> Vec<String> {
    let mut notes = Vec::new();
    for (at, _) in features {
        let (name, column) = (&table.names()[*at], &columns[*at]);
        if column.empty > 0 {
            notes.push(format!("`{name}`: {} empty cells take the mean of the training part", column.empty));
        }
        if let Some((row, text, share)) = column.stray() {
            let place = table.place(row);
            notes.push(format!("`{name}`: {share}, but {place} holds \"{text}\": each value is taken as a category"));
        }
    }
    if let Target::Class(values) = target
        && let (Some(Value::Whole(_)), true) = (values.keys().next(), values.len() > MANY)
    {
        let count = values.len();
        notes.push(format!(
            "the label's {count} whole numbers are taken as classes; --task regression predicts a number"
        ));
    }
    notes
}

/// A column by its name, or by its index.
fn find(table: &dyn Rows, wanted: &str, flag: &str) -> Result<usize, DataError> {
    let names = table.names();
    let by_name = names.iter().position(|name| name == wanted);
    let by_index = wanted.parse::<usize>().ok().filter(|index| *index < names.len());
    by_name.or(by_index).ok_or_else(|| {
        let some: Vec<_> = names.iter().take(8).map(String::as_str).collect();
        let more = if names.len() > 8 { ", …" } else { "" };
        let nearest = convoy_proto::config::keys::nearest(wanted, names.iter().map(String::as_str));
        let hint = nearest.map(|name| format!("did you mean `{name}`? ")).unwrap_or_default();
        DataError::read(table.path(), format!("{flag} {wanted}: {hint}the columns are {}{more}", some.join(", ")))
    })
}

/// A column of lists and the like can only be left out.
fn check_usable(table: &dyn Rows, at: usize, column: &Column) -> Result<(), DataError> {
    if column.unusable.is_none() {
        return Ok(());
    }
    let name = &table.names()[at];
    let problem = format!("holds neither numbers nor text, or is nested; leave it out with --drop {name}");
    Err(column_error(table, at, problem))
}

fn target(table: &dyn Rows, label: usize, column: &Column, wanted: Wanted) -> Result<Target, DataError> {
    check_usable(table, label, column)?;
    if let Some(row) = column.missing {
        return Err(row_error(table, row, format!("the label `{}` is empty", table.names()[label])));
    }
    if column.texts == 0
        && let Some(row) = column.non_finite
    {
        return Err(row_error(table, row, format!("the label `{}` is not finite", table.names()[label])));
    }
    if wanted == Wanted::Numbers {
        if let Some((row, text)) = &column.text {
            let problem =
                format!("the label `{}` holds \"{text}\", but a number is to be predicted", table.names()[label]);
            return Err(row_error(table, *row, problem));
        }
        if column.values.len() < 2 {
            return Err(column_error(table, label, "the label is the same in every row, so there is nothing to learn"));
        }
        return Ok(Target::Number);
    }
    if column.texts == 0 && column.fractions > 0 {
        let problem =
            "the label holds fractions, which are no classes; say --task regression, or choose another --label";
        return Err(column_error(table, label, problem));
    }
    let values = if column.texts == 0 { column.whole() } else { None };
    let values = values.as_ref().unwrap_or(&column.values);
    // Of more spellings than that, not all were kept.
    if values.len().max(column.values.len()) > CLASSES {
        let instead = if column.texts == 0 { "say --task regression, or " } else { "" };
        let problem = format!("the label has more than {CLASSES} values; {instead}choose another --label");
        return Err(column_error(table, label, problem));
    }
    if values.len() < 2 {
        return Err(column_error(table, label, "the label is the same in every row, so there is nothing to learn"));
    }
    Ok(Target::Class(values.keys().cloned().zip(0..).collect()))
}

fn feature(table: &dyn Rows, at: usize, column: &Column, input: &Input) -> Result<Feature, DataError> {
    check_usable(table, at, column)?;
    if let (Some(row), Missing::Refuse) = (column.missing, input.missing) {
        let problem = format!("`{}` is empty; fill it, or say --missing mean", table.names()[at]);
        return Err(row_error(table, row, problem));
    }
    if column.numbers + column.texts == 0 {
        let problem = format!("is empty in every row; leave it out with --drop {}", table.names()[at]);
        return Err(column_error(table, at, problem));
    }
    if column.texts == 0 {
        return match column.non_finite {
            None => Ok(Feature::Number),
            Some(row) => {
                let problem = format!(
                    "`{}` is infinite, too large or not a number; leave it empty for --missing mean",
                    table.names()[at]
                );
                Err(row_error(table, row, problem))
            }
        };
    }
    if column.values.len() > CATEGORIES {
        let name = &table.names()[at];
        if let Some((row, text, share)) = column.stray() {
            let problem = format!(
                "`{name}` holds \"{text}\", but {share}; mend it, leave it empty for --missing mean, or leave the column out with --drop {name}"
            );
            return Err(row_error(table, row, problem));
        }
        let problem = format!("holds text with more than {CATEGORIES} values; leave it out with --drop {name}");
        return Err(column_error(table, at, problem));
    }
    Ok(Feature::Categories(column.values.keys().cloned().zip(0..).collect()))
}

/// The code of a cell in a category column; `None` if it is empty.
pub fn category(values: &BTreeMap<Value, u8>, cell: Cell<'_>) -> Option<u8> {
    value_of(cell, true).and_then(|value| values.get(&value).copied())
}

/// The class of a label's cell.
pub fn class(values: &BTreeMap<Value, u32>, cell: Cell<'_>) -> Option<u32> {
    let is_text = matches!(values.keys().next(), Some(Value::Text(_)));
    value_of(cell, is_text).and_then(|value| values.get(&value).copied())
}
