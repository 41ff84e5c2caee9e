//! Samples as data sets hand them over, on the host.

use super::{DataError, Dataset, Part};

/// Samples, row by row. A data set fills what its samples have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostBatch {
    /// How many samples there are.
    pub rows: usize,
    /// Channel-major.
    pub features: Vec<f32>,
    /// One class a row.
    pub labels: Vec<i32>,
    /// One number to predict a row.
    pub targets: Vec<f32>,
    /// A context and one more a row: each token is followed by the one to predict.
    pub tokens: Vec<i32>,
}

impl HostBatch {
    /// Reads samples.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub fn read(
        data: &dyn Dataset,
        part: Part,
        indices: impl IntoIterator<Item = u32>,
    ) -> Result<HostBatch, DataError> {
        let mut batch = HostBatch::default();
        for index in indices {
            data.read(part, index, &mut batch)?;
            batch.rows += 1;
        }
        Ok(batch)
    }

    /// Adds a sample's class.
    pub fn label(&mut self, class: u32) {
        self.labels.push(class as i32);
    }
}
