//! Tables for people.

use std::fmt::Write;

use serde_json::{Map, Value};

/// A line of a table: names and values, in order.
pub type Row = Vec<(&'static str, Value)>;

/// A line as an object.
pub fn object(row: Row) -> Map<String, Value> {
    row.into_iter().map(|(name, value)| (name.into(), value)).collect()
}

/// Rows with the same fields, one below the other; numbers to the right, texts to the left.
pub fn table(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let head = first.iter().map(|(name, _)| name.replace('_', " ")).collect();
    let body = rows.iter().map(|row| row.iter().map(|(_, value)| cell_text(value)).collect());
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(body).collect();
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let is_text = |column: usize| rows.iter().all(|row| row.get(column).is_some_and(|(_, value)| value.is_string()));
    let columns: Vec<_> = (0..first.len()).map(|column| (width(column).unwrap_or(0), is_text(column))).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&columns).map(|(cell, (width, is_text))| match is_text {
            true => format!("{cell:<width$}"),
            false => format!("{cell:>width$}"),
        });
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// A value as a person reads it.
pub fn cell_text(value: &Value) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_its_columns_below_each_other() {
        let rows = [
            vec![("a_b", 1.into()), ("c", 0.001_236.into()), ("d", "one".into())],
            vec![("a_b", 22.into()), ("c", "skipped".into()), ("d", "three".into())],
        ];
        assert_eq!(table(&rows), "a b         c  d\n  1  0.001236  one\n 22   skipped  three\n");
        assert_eq!([rounded(12_345.678), rounded(1.23456), rounded(0.0)], ["12346", "1.235", "0"]);
        assert_eq!((table(&[]), object(rows[0].clone())["a_b"].clone()), (String::new(), 1.into()));
    }
}
