//! `launcher bench`: how fast this machine exchanges, aggregates and trains, beside its raw limits in the same run.
//!
//! What is measured is the product: a cell of a table is a run of this program on the task `synthetic`, whose workers
//! check every parameter that they are given, or on a real task. Only raw limits are measured here: a copy, a connection.

use std::fmt::Write;

use convoy_worker::task::TaskEntry;
use serde_json::{Map, Value, json};

use crate::{
    args::{BenchArgs, BenchCommand, ShowArgs},
    cli,
    outcome::Failure,
};

mod cell;
mod exchange;
mod plain;
mod plot;
mod raw;
mod server;
mod shapes;
mod train;

/// A line of a table: names and values, in order.
type Row = Vec<(&'static str, Value)>;

/// Measures.
///
/// # Errors
/// A run that does not end well.
pub fn bench(args: &BenchArgs, tasks: &[TaskEntry]) -> Result<(), Failure> {
    match &args.what {
        BenchCommand::Net(args) => exchange::net(args),
        BenchCommand::Round(args) => exchange::rounds(args),
        BenchCommand::Train(args) => train::train(args),
        BenchCommand::Server(args) => server::server(args),
        BenchCommand::Plain(args) => plain::plain(args, tasks),
    }
}

/// Prints what was measured.
fn show(rows: Vec<Row>, raw: Row, show: ShowArgs) -> Result<(), Failure> {
    if show.json {
        let object = |row: Row| row.into_iter().map(|(name, value)| (name.into(), value)).collect::<Map<_, _>>();
        return cli::say(json!({ "rows": rows.into_iter().map(object).collect::<Vec<_>>(), "raw": object(raw) }));
    }
    let mut text = table(&rows);
    for (name, value) in &raw {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {}", name.replace('_', " "), cell_text(value));
    }
    cli::print(text)
}

/// Rows with the same fields, one below the other.
fn table(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let head = first.iter().map(|(name, _)| name.replace('_', " ")).collect();
    let body = rows.iter().map(|row| row.iter().map(|(_, value)| cell_text(value)).collect());
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..first.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<_> = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  "));
    }
    text
}

fn cell_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => rounded(number.as_f64().unwrap_or(f64::NAN)),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Four digits that count.
fn rounded(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { (3 - value.abs().log10().floor() as i32).clamp(0, 6) };
    format!("{value:.0$}", digits as usize)
}

/// The middle one.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}

/// Says what goes on, to whoever waits.
fn tell(text: &str) {
    use std::io::Write;
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

const MIB: f64 = (1 << 20) as f64;
/// Elements of a tensor, at most: 4 MiB.
const WIDTH: u64 = 1 << 20;

/// Elements of a tensor, and tensors, that make up so many MiB.
fn tensors(mib: f64) -> (u64, u64) {
    let elements = (mib * MIB / 4.0).max(1.0) as u64;
    let count = elements.div_ceil(WIDTH);
    (elements / count, count)
}

/// The largest of some sizes, in bytes.
fn most_bytes(mib: &[f64]) -> usize {
    (mib.iter().copied().fold(0.0, f64::max) * MIB) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_its_columns_below_each_other() {
        let rows =
            [vec![("a_b", 1.into()), ("c", 0.001_236.into())], vec![("a_b", 22.into()), ("c", "skipped".into())]];
        assert_eq!(table(&rows), "a b         c\n  1  0.001236\n 22   skipped\n");
        assert_eq!([rounded(12_345.678), rounded(1.23456), rounded(0.0)], ["12346", "1.235", "0"]);
    }

    #[test]
    fn sizes_are_those_that_were_asked_for() {
        for (mib, shape) in
            [(0.0625, (16_384, 1)), (4.0, (WIDTH, 1)), (6.0, (786_432, 2)), (64.0, (WIDTH, 16)), (0.0, (1, 1))]
        {
            assert_eq!(tensors(mib), shape, "{mib} MiB");
        }
        assert_eq!(most_bytes(&[1.0, 2.0, 0.5]), 2 << 20);
    }

    #[test]
    fn the_middle_of_some() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(Vec::new())), (Some(2.0), None));
    }
}
