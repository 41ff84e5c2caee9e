//! Data sets: samples by index, in two disjoint parts.
//!
//! A data set is named by a spec such as `digits` or `mnist:DIR`; [`SOURCES`] is the table of them. Which sample
//! belongs to which step is not decided here (`convoy_proto::order`).

use std::{path::PathBuf, sync::Arc};

use convoy_proto::config::keys;

mod digits;
mod idx;
mod mnist;

/// The part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What is trained on.
    Train,
    /// What is held out for evaluation.
    Test,
}

/// What a data set consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataInfo {
    /// One line for people: what it is and how large.
    pub about: String,
    /// Channels, height and width of a sample.
    pub shape: [usize; 3],
    /// How many classes labels are taken from.
    pub classes: usize,
    /// Samples to train on.
    pub train: u32,
    /// Samples held out.
    pub test: u32,
    /// SHA-256 over what determines every sample.
    pub fingerprint: Vec<u8>,
}

impl DataInfo {
    /// Elements of a sample.
    pub fn features(&self) -> usize {
        self.shape.iter().product()
    }

    /// How many samples a part has.
    pub fn len(&self, part: Part) -> u32 {
        match part {
            Part::Train => self.train,
            Part::Test => self.test,
        }
    }
}

/// Samples by index.
pub trait Dataset: Send + Sync {
    /// What it consists of.
    fn info(&self) -> &DataInfo;

    /// Appends a sample's features (channel-major, about 0 to 1) and returns its label, below `classes`.
    fn read(&self, part: Part, index: u32, features: &mut Vec<f32>) -> u32;
}

/// Why there is no data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A spec that names no source.
    #[error("`data` = \"{spec}\": {problem}")]
    Spec {
        /// The spec.
        spec: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that cannot be read.
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
        offset: usize,
        /// What is there, and what was expected.
        problem: String,
    },
}

/// Opens a source from what follows its name and the seed of a split.
type Open = fn(Option<&str>, u64) -> Result<Arc<dyn Dataset>, DataError>;

/// A kind of data set.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The word before the colon.
    pub name: &'static str,
    /// How it is written.
    pub usage: &'static str,
    open: Open,
}

/// Every kind of data set.
pub const SOURCES: &[Source] = &[
    Source { name: "digits", usage: "digits or digits:SEED", open: digits::open },
    Source { name: "mnist", usage: "mnist:DIR", open: mnist::open },
];

/// Opens what a spec names; `seed` splits a source that brings no test part.
///
/// # Errors
/// A spec that names nothing, or files that are not what they should be.
pub fn open(spec: &str, seed: u64) -> Result<Arc<dyn Dataset>, DataError> {
    let (name, argument) = spec.split_once(':').map_or((spec, None), |(name, rest)| (name, Some(rest)));
    let source = SOURCES.iter().find(|source| source.name == name).ok_or_else(|| {
        let hint = keys::nearest(name, SOURCES.iter().map(|source| source.name));
        let hint = hint.map(|name| format!("did you mean `{name}`? ")).unwrap_or_default();
        let known: Vec<_> = SOURCES.iter().map(|source| source.usage).collect();
        DataError::Spec { spec: spec.into(), problem: format!("{hint}there is {}", known.join(", ")) }
    })?;
    (source.open)(argument, seed)
}

/// Samples as a model takes them, on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostBatch {
    /// Row by row.
    pub features: Vec<f32>,
    /// One a row.
    pub labels: Vec<i32>,
}

impl HostBatch {
    /// Reads samples.
    pub fn read(data: &dyn Dataset, part: Part, indices: impl IntoIterator<Item = u32>) -> HostBatch {
        let mut batch = HostBatch::default();
        for index in indices {
            let label = data.read(part, index, &mut batch.features);
            batch.labels.push(label as i32);
        }
        batch
    }

    /// How many samples it has.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}
