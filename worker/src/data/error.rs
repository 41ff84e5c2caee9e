//! Why there is no data: which file, where in it, what is wrong.

use std::path::{Path, PathBuf};

/// Why there is no data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A spec that names no source, or not enough.
    #[error("`data` = \"{spec}\": {problem}")]
    Spec {
        /// The spec.
        spec: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or folder that cannot be read, or is wrong as a whole.
    #[error("cannot read {}: {problem}", path.display())]
    Read {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// A file that is not what it should be.
    #[error("{}: at offset {offset}: {problem}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where in the (decompressed) file.
        offset: u64,
        /// What is there, and what was expected.
        problem: String,
    },
    /// A table's row that does not fit the others.
    #[error("{}: {place}: {problem}", path.display())]
    Row {
        /// Which file.
        path: PathBuf,
        /// The line, or the row counted from 1.
        place: String,
        /// What is there, and what to do.
        problem: String,
    },
    /// A table's column that cannot be used.
    #[error("{}: column `{column}`: {problem}", path.display())]
    Column {
        /// Which file.
        path: PathBuf,
        /// Its name.
        column: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl DataError {
    /// A file or folder that cannot be read.
    pub fn read(path: &Path, problem: impl ToString) -> DataError {
        DataError::Read { path: path.into(), problem: one_line(&problem.to_string()) }
    }

    /// A file that is not what it should be at an offset.
    pub fn malformed(path: &Path, offset: u64, problem: impl ToString) -> DataError {
        DataError::Malformed { path: path.into(), offset, problem: one_line(&problem.to_string()) }
    }
}

/// What a library says may have several lines; an error has one.
fn one_line(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(", ")
}
