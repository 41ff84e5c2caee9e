//! Parquet: read row group by row group, never as a whole.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
};

use super::{
    DataError, files,
    rows::{At, Cell, Rows, Visit},
};
use crate::contain::contain;

/// A Parquet file.
pub struct Columnar {
    path: PathBuf,
    names: Vec<String>,
}

impl Columnar {
    /// Opens a file and reads its schema.
    ///
    /// # Errors
    /// A file that cannot be read or is not Parquet.
    pub fn open(path: PathBuf) -> Result<Columnar, DataError> {
        let reader = reader(&path)?;
        let fields = reader.metadata().file_metadata().schema().get_fields();
        let names: Vec<String> = fields.iter().map(|field| field.name().to_string()).collect();
        if names.len() < 2 {
            return Err(DataError::read(&path, "has one column only; a label needs features beside it"));
        }
        Ok(Columnar { path, names })
    }
}

/// The parser checks lengths, but not everything: what it panics at is a broken file, too.
fn guarded<T>(path: &Path, read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, DataError> {
    match contain(read) {
        Ok(read) => read.map_err(|problem| DataError::read(path, problem)),
        Err(_) => Err(DataError::read(path, "the Parquet file is broken")),
    }
}

fn reader(path: &Path) -> Result<SerializedFileReader<File>, DataError> {
    let file = files::open(path)?;
    guarded(path, || SerializedFileReader::new(file))
}

/// A field as a cell.
fn cell(field: &Field) -> Cell<'_> {
    let number = |value: f64| Cell::Number(value, "");
    match field {
        Field::Null => Cell::Missing,
        Field::Bool(value) => number(f64::from(u8::from(*value))),
        Field::Byte(value) => number((*value).into()),
        Field::Short(value) => number((*value).into()),
        Field::Int(value) | Field::Date(value) | Field::TimeMillis(value) => number((*value).into()),
        Field::Long(value) | Field::TimeMicros(value) => number(*value as f64),
        Field::TimestampMillis(value) | Field::TimestampMicros(value) => number(*value as f64),
        Field::UByte(value) => number((*value).into()),
        Field::UShort(value) => number((*value).into()),
        Field::UInt(value) => number((*value).into()),
        Field::ULong(value) => number(*value as f64),
        Field::Float16(value) => number((*value).into()),
        Field::Float(value) => number((*value).into()),
        Field::Double(value) => number(*value),
        Field::Str(text) if text.trim().is_empty() => Cell::Missing,
        Field::Str(text) => Cell::Text(text.trim()),
        _ => Cell::Unusable,
    }
}

impl Rows for Columnar {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn form(&self) -> String {
        String::new()
    }

    fn place(&self, line: u64) -> String {
        format!("row {line}")
    }

    fn scan(&self, visit: &mut Visit<'_>) -> Result<(), DataError> {
        let reader = reader(&self.path)?;
        let mut rows = guarded(&self.path, || reader.get_row_iter(None))?;
        let mut number = 0;
        while let Some(row) = guarded(&self.path, || rows.next().transpose())? {
            let cells: Vec<Cell<'_>> = row.get_column_iter().map(|(_, field)| cell(field)).collect();
            if cells.len() != self.names.len() {
                return Err(DataError::read(&self.path, "its columns are not those of its schema"));
            }
            visit(At { row: number, line: number + 1 }, &cells)?;
            number += 1;
        }
        Ok(())
    }
}
