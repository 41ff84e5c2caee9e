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
    /// Anything else.
    Text(&'a str),
}

/// What is done with each row: its number, from 0, and its cells.
pub type Visit<'a> = dyn FnMut(u64, &[Cell<'_>]) -> Result<(), DataError> + 'a;

/// A table.
pub trait Rows {
    /// Its file.
    fn path(&self) -> &Path;

    /// The names of its columns.
    fn names(&self) -> &[String];

    /// How people call a row.
    fn place(&self, row: u64) -> String;

    /// Goes through all rows in order.
    ///
    /// # Errors
    /// A row that does not fit, or what the visitor says.
    fn scan(&self, visit: &mut Visit<'_>) -> Result<(), DataError>;
}

/// A problem with a row.
pub fn row_error(rows: &dyn Rows, row: u64, problem: impl ToString) -> DataError {
    DataError::Row { path: rows.path().into(), place: rows.place(row), problem: problem.to_string() }
}

/// A problem with a column.
pub fn column_error(rows: &dyn Rows, column: usize, problem: impl ToString) -> DataError {
    let column = rows.names()[column].clone();
    DataError::Column { path: rows.path().into(), column, problem: problem.to_string() }
}

/// A cell from its text: white space around it does not count.
pub fn parse(text: &str) -> Cell<'_> {
    let text = text.trim();
    match text.parse::<f64>() {
        _ if text.is_empty() => Cell::Missing,
        Ok(number) => Cell::Number(number, text),
        Err(_) => Cell::Text(text),
    }
}
