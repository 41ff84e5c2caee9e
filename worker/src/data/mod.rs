//! Data sets: samples by index, in two disjoint parts.
//!
//! A data set is named by a spec such as `digits` or `csv:FILE`; [`SOURCES`] is the table of them. Which sample belongs
//! to which step is not decided here (`convoy_proto::order`).

use std::{path::PathBuf, sync::Arc};

use convoy_proto::config::{Config, Input, keys};

mod batch;
mod cifar;
mod digits;
mod error;
mod files;
mod idx;
mod images;
mod inspect;
mod mnist;
mod pixels;
mod split;
mod table;
#[cfg(test)]
mod testing;
mod text;
pub mod vocabulary;

pub use batch::HostBatch;
pub use error::DataError;
pub use inspect::{PartReport, Report, inspect};

/// The part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What is trained on.
    Train,
    /// What is held out for evaluation.
    Test,
}

/// What a sample is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// Numbers, labelled with a class.
    Classes {
        /// Channels, height and width.
        shape: [usize; 3],
        /// How many classes there are.
        classes: usize,
    },
    /// Numbers, and a number to predict, which is standardised.
    Numbers {
        /// Channels, height and width.
        shape: [usize; 3],
        /// What one unit of the target is in the source's own.
        unit: f64,
        /// What a target of 0 is in the source's own.
        zero: f64,
    },
    /// Tokens, each to be predicted from those before it.
    Tokens {
        /// How many are seen at once.
        context: usize,
        /// How many different ones there are.
        vocabulary: usize,
    },
}

/// What a data set consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct DataInfo {
    /// One line for people: what it is and how large.
    pub about: String,
    /// What a sample is made of.
    pub form: Form,
    /// Samples to train on.
    pub train: u32,
    /// Samples held out.
    pub test: u32,
    /// Names of the classes, where they have some.
    pub class_names: Vec<String>,
    /// SHA-256 over what determines every sample.
    pub fingerprint: Vec<u8>,
}

impl DataInfo {
    /// Channels, height and width of a sample, and the number of classes.
    ///
    /// # Errors
    /// Samples without classes; says what there is, for `task`.
    pub fn classes(&self, task: &str) -> Result<([usize; 3], usize), String> {
        match self.form {
            Form::Classes { shape, classes } => Ok((shape, classes)),
            Form::Numbers { .. } => Err(format!("the task `{task}` needs classes, and the data hold numbers")),
            Form::Tokens { .. } => Err(format!("the task `{task}` needs classes, and the data are text: try `gpt`")),
        }
    }

    /// Channels, height and width of a sample that has a number to predict.
    ///
    /// # Errors
    /// Samples without; says what there is, for `task`.
    pub fn numbers(&self, task: &str) -> Result<[usize; 3], String> {
        match self.form {
            Form::Numbers { shape, .. } => Ok(shape),
            _ => Err(format!("the task `{task}` needs a number to predict: data such as csv:FILE have one")),
        }
    }

    /// Context and vocabulary of text.
    ///
    /// # Errors
    /// Samples that are no text, for `task`.
    pub fn tokens(&self, task: &str) -> Result<(usize, usize), String> {
        match self.form {
            Form::Tokens { context, vocabulary } => Ok((context, vocabulary)),
            _ => Err(format!("the task `{task}` needs text: data such as text:FILE")),
        }
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

    /// Appends a sample to a batch: what its form says, and nothing else.
    ///
    /// # Errors
    /// A file that can no longer be read.
    fn read(&self, part: Part, index: u32, batch: &mut HostBatch) -> Result<(), DataError>;

    /// Names of the features, where they have some.
    fn feature_names(&self) -> Vec<String> {
        Vec::new()
    }

    /// What was noteworthy when it was opened.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// What a task needs of its samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A class each.
    Classes,
    /// A number each.
    Numbers,
    /// Text.
    Tokens,
}

/// What to open, and how.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What follows the source's name.
    pub argument: Option<&'a str>,
    /// Splits a source that brings no test part.
    pub seed: u64,
    /// How to read.
    pub input: &'a Input,
    /// What the task needs.
    pub wanted: Wanted,
    /// Tokens that are seen at once.
    pub context: usize,
    /// Where to keep what is costly to compute.
    pub cache: PathBuf,
}

impl Request<'_> {
    /// The file or folder that the source's name is followed by.
    fn path(&self, name: &str, what: &str) -> Result<PathBuf, DataError> {
        let given = self.argument.filter(|path| !path.is_empty());
        given.map(PathBuf::from).ok_or_else(|| DataError::Spec {
            spec: name.into(),
            problem: format!("needs a {}: {name}:{what}", if what == "DIR" { "folder" } else { "file" }),
        })
    }
}

/// Opens a source.
type Open = fn(&Request<'_>) -> Result<Arc<dyn Dataset>, DataError>;

/// A kind of data set.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The word before the colon.
    pub name: &'static str,
    /// How it is written.
    pub usage: &'static str,
    /// Whether a path follows the name.
    pub takes_path: bool,
    /// The task that suits it.
    pub task: &'static str,
    /// Steps that a run makes at least if its length is not said; small data need many passes.
    pub least_steps: u64,
    open: Open,
}

const fn from_path(name: &'static str, usage: &'static str, task: &'static str, open: Open) -> Source {
    Source { name, usage, takes_path: true, task, least_steps: 0, open }
}

/// Every kind of data set.
pub const SOURCES: &[Source] = &[
    Source {
        name: "digits",
        usage: "digits[:SEED]",
        takes_path: false,
        task: "cnn",
        least_steps: 0,
        open: digits::open,
    },
    from_path("mnist", "mnist:DIR", "cnn", mnist::open),
    from_path("cifar10", "cifar10:DIR", "cnn", cifar::open),
    from_path("images", "images:DIR", "cnn", images::open),
    Source { least_steps: 1500, ..from_path("csv", "csv:FILE", "mlp", table::open_csv) },
    Source { least_steps: 1500, ..from_path("parquet", "parquet:FILE", "mlp", table::open_parquet) },
    from_path("text", "text:FILE|DIR", "gpt", text::open),
];

/// The source that a spec names, and what follows the name.
///
/// # Errors
/// A spec that names none; with the nearest.
pub fn source(spec: &str) -> Result<(&'static Source, Option<&str>), DataError> {
    let (name, argument) = spec.split_once(':').map_or((spec, None), |(name, rest)| (name, Some(rest)));
    let found = SOURCES.iter().find(|source| source.name == name).ok_or_else(|| {
        let hint = keys::nearest(name, SOURCES.iter().map(|source| source.name));
        let hint = hint.map(|name| format!("did you mean `{name}`? ")).unwrap_or_default();
        let known: Vec<_> = SOURCES.iter().map(|source| source.usage).collect();
        DataError::Spec { spec: spec.into(), problem: format!("{hint}there is {}", known.join(", ")) }
    })?;
    Ok((found, argument))
}

/// A spec with its path made absolute, where it has one.
pub fn absolute(spec: &str) -> String {
    match source(spec) {
        Ok((Source { name, takes_path: true, .. }, Some(path))) => format!("{name}:{}", absolute_path(path)),
        _ => spec.into(),
    }
}

/// A path made absolute; as it is if that cannot be.
pub fn absolute_path(path: &str) -> String {
    std::path::absolute(path).map_or_else(|_| path.into(), |path| path.display().to_string())
}

/// Opens the data of a run, for a task that needs samples of a kind.
///
/// # Errors
/// A spec that names nothing, or files that are not what they should be.
pub fn open(config: &Config, wanted: Wanted) -> Result<Arc<dyn Dataset>, DataError> {
    let (source, argument) = source(&config.data)?;
    let context = config.model.context.map_or(text::CONTEXT, |context| context as usize);
    let cache = PathBuf::from(&config.run_dir).join(".cache");
    let (seed, input) = (config.seed, &config.input);
    (source.open)(&Request { argument, seed, input, wanted, context, cache })
}
