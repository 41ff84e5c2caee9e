//! A table as a source of rows that can be gone through again and again, so that it is never held as text.

use std::path::Path;

use super::DataError;

/// A cell as it was read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// Nothing.
    Missing,
    /// A number, and how it was written (empty where it never was text).
    Number(f64, &'a str),
    /// Anything else that is text.
    Text(&'a str),
    /// A list, a date of a kind of its own, bytes.
    Unusable,
}

/// Which row it is: its number, from 0, and where people find it, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Its number.
    pub row: u64,
    /// Its line, or its number where there are no lines.
    pub line: u64,
}

/// What is done with each row.
pub type Visit<'a> = dyn FnMut(At, &[Cell<'_>]) -> Result<(), DataError> + 'a;

/// A table.
pub trait Rows {
    /// Its file.
    fn path(&self) -> &Path;

    /// The names of its columns.
    fn names(&self) -> &[String];

    /// What was found out about its form, in a few words.
    fn form(&self) -> String;

    /// How people call a row with this line.
    fn place(&self, line: u64) -> String;

    /// Goes through all rows in order.
    ///
    /// # Errors
    /// A row that does not fit, or what the visitor says.
    fn scan(&self, visit: &mut Visit<'_>) -> Result<(), DataError>;
}

/// A problem with a row.
pub fn row_error(rows: &dyn Rows, line: u64, problem: impl ToString) -> DataError {
    DataError::Row { path: rows.path().into(), place: rows.place(line), problem: problem.to_string() }
}

/// A problem with a column.
pub fn column_error(rows: &dyn Rows, column: usize, problem: impl ToString) -> DataError {
    let column = rows.names()[column].clone();
    DataError::Column { path: rows.path().into(), column, problem: problem.to_string() }
}

/// A cell from its text: white space around it does not count. With `decimal_comma`, `1,5` is a number, too.
pub fn parse(text: &str, decimal_comma: bool) -> Cell<'_> {
    let text = text.trim();
    let is_european = || decimal_comma && text.matches(',').count() == 1 && !text.contains('.');
    match text.parse::<f64>() {
        _ if text.is_empty() => Cell::Missing,
        Ok(number) => Cell::Number(number, text),
        Err(_) if is_european() => {
            text.replace(',', ".").parse().map_or(Cell::Text(text), |number| Cell::Number(number, text))
        }
        Err(_) => Cell::Text(text),
    }
}
