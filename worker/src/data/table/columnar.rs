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
    DataError,
    rows::{Cell, Rows, Visit},
};

/// A Parquet file without nested columns.
pub struct Columnar {
    path: PathBuf,
    names: Vec<String>,
}

impl Columnar {
    /// Opens a file and reads its schema.
    ///
    /// # Errors
    /// A file that cannot be read, is not Parquet, or has nested columns.
    pub fn open(path: PathBuf) -> Result<Columnar, DataError> {
        let mut names = Vec::new();
        let reader = reader(&path)?;
        for field in reader.metadata().file_metadata().schema().get_fields() {
            if field.is_group() || field.get_basic_info().repetition() == parquet::basic::Repetition::REPEATED {
                let problem = "is nested; only flat columns can be features".into();
                return Err(DataError::Column { path, column: field.name().into(), problem });
            }
            names.push(field.name().to_string());
        }
        if names.len() < 2 {
            return Err(DataError::read(&path, "has one column only; a label needs features beside it"));
        }
        Ok(Columnar { path, names })
    }
}

/// The parser checks lengths, but not everything: what it panics at is a broken file, too.
fn guarded<T>(path: &Path, read: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, DataError> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|problem| DataError::read(path, problem)),
        Err(_) => Err(DataError::read(path, "the Parquet file is broken")),
    }
}

fn reader(path: &Path) -> Result<SerializedFileReader<File>, DataError> {
    let file = File::open(path).map_err(|problem| DataError::read(path, problem))?;
    guarded(path, || SerializedFileReader::new(file))
}

/// A field as a cell; `None` for a kind that is neither number nor text.
fn cell<'a>(field: &'a Field) -> Option<Cell<'a>> {
    let number = |value: f64| Some(Cell::Number(value, ""));
    match field {
        Field::Null => Some(Cell::Missing),
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
        Field::Str(text) if text.trim().is_empty() => Some(Cell::Missing),
        Field::Str(text) => Some(Cell::Text(text.trim())),
        _ => None,
    }
}

impl Rows for Columnar {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn place(&self, row: u64) -> String {
        format!("row {}", row + 1)
    }

    fn scan(&self, visit: &mut Visit<'_>) -> Result<(), DataError> {
        let reader = reader(&self.path)?;
        let mut rows = guarded(&self.path, || reader.get_row_iter(None))?;
        let mut number = 0;
        while let Some(row) = guarded(&self.path, || rows.next().transpose())? {
            let fields: Vec<&Field> = row.get_column_iter().map(|(_, field)| field).collect();
            let mut cells = Vec::with_capacity(fields.len());
            for (name, field) in self.names.iter().zip(&fields) {
                let Some(cell) = cell(field) else {
                    let problem = "holds neither numbers nor text; leave it out with --drop".into();
                    return Err(DataError::Column { path: self.path.clone(), column: name.clone(), problem });
                };
                cells.push(cell);
            }
            visit(number, &cells)?;
            number += 1;
        }
        Ok(())
    }
}
