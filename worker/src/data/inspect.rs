//! What is noteworthy in data before they are trained on: balance, constants, duplicates, values that are no numbers.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

use convoy_proto::hex;
use serde::Serialize;

use super::{DataError, Dataset, Form, HostBatch, Part};

/// Features up to which constant ones are named.
const NAMED: usize = 8;
/// Rows that are too few to learn from.
const FEW: u32 = 50;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// One line for people: what it is and how large.
    pub about: String,
    /// What is trained on.
    pub train: PartReport,
    /// What is held out.
    pub test: PartReport,
    /// Features of a sample, or tokens.
    pub features: usize,
    /// Features that are the same in every sample, by name or number.
    pub constant: Vec<String>,
    /// Samples of the test part that the training part has, too.
    pub duplicates: u64,
    /// Values that are infinite or not numbers.
    pub non_finite: u64,
    /// What the data are, so that others are not taken for them.
    pub fingerprint: String,
    /// What deserves a person's attention.
    pub warnings: Vec<String>,
}

/// One part.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PartReport {
    /// Samples.
    pub rows: u32,
    /// Samples that were looked at.
    pub inspected: u32,
    /// Samples by class, of those.
    pub classes: BTreeMap<String, u64>,
}

/// Looks for what is noteworthy in up to `limit` samples of each part, evenly spaced.
///
/// # Errors
/// A file that cannot be read.
pub fn inspect(data: &dyn Dataset, limit: u32) -> Result<Report, DataError> {
    let info = data.info();
    let mut looker = Looker { data, spread: Vec::new(), non_finite: 0 };
    let mut seen = HashSet::new();
    let mut duplicates = 0;
    let train = looker.part(Part::Train, limit, |hash| {
        seen.insert(hash);
    })?;
    let test = looker.part(Part::Test, limit, |hash| duplicates += u64::from(seen.contains(&hash)))?;
    let names = data.feature_names();
    let name = |at: usize| names.get(at).cloned().unwrap_or_else(|| at.to_string());
    let spread = looker.spread.iter().enumerate().filter(|(_, (low, high))| low >= high);
    let constant = spread.map(|(at, _)| name(at)).collect();
    let features = match info.form {
        Form::Classes { shape, .. } | Form::Numbers { shape, .. } => shape.iter().product(),
        Form::Tokens { context, .. } => context,
    };
    let about = info.about.clone();
    let non_finite = looker.non_finite;
    let fingerprint = hex(&info.fingerprint);
    let warnings = data.notes();
    let report = Report { about, train, test, features, constant, duplicates, non_finite, fingerprint, warnings };
    Ok(report.warn(!names.is_empty()))
}

struct Looker<'a> {
    data: &'a dyn Dataset,
    /// Lowest and highest value by feature.
    spread: Vec<(f32, f32)>,
    non_finite: u64,
}

impl Looker<'_> {
    fn part(&mut self, part: Part, limit: u32, mut each: impl FnMut(u64)) -> Result<PartReport, DataError> {
        let info = self.data.info();
        let rows = info.len(part);
        let inspected = rows.min(limit);
        let mut classes: BTreeMap<usize, u64> = BTreeMap::new();
        if let Form::Classes { classes: count, .. } = info.form {
            classes.extend((0..count).map(|class| (class, 0)));
        }
        for number in 0..inspected {
            let index = spread(number, inspected, rows);
            let mut sample = HostBatch::default();
            self.data.read(part, index, &mut sample)?;
            for label in &sample.labels {
                *classes.entry(*label as usize).or_default() += 1;
            }
            self.values(&sample.features);
            each(fingerprint(&sample));
        }
        let name = |class: usize| info.class_names.get(class).cloned().unwrap_or_else(|| class.to_string());
        let classes = classes.into_iter().map(|(class, count)| (name(class), count)).collect();
        Ok(PartReport { rows, inspected, classes })
    }

    fn values(&mut self, values: &[f32]) {
        self.spread.resize(values.len(), (f32::INFINITY, f32::NEG_INFINITY));
        for ((low, high), value) in self.spread.iter_mut().zip(values) {
            (*low, *high) = (low.min(*value), high.max(*value));
            self.non_finite += u64::from(!value.is_finite());
        }
    }
}

/// The row to look at as number `number` of so many: one in each equal stretch, at a place that keeps out of step with
/// whatever repeats in the data.
fn spread(number: u32, inspected: u32, rows: u32) -> u32 {
    let start = |number: u32| (u64::from(number) * u64::from(rows) / u64::from(inspected.max(1))) as u32;
    let stretch = start(number + 1) - start(number);
    start(number) + number.wrapping_mul(0x9e37_79b9).rotate_left(16) % stretch.max(1)
}

fn fingerprint(sample: &HostBatch) -> u64 {
    let mut hasher = DefaultHasher::new();
    sample.features.iter().for_each(|value| value.to_bits().hash(&mut hasher));
    sample.tokens.hash(&mut hasher);
    hasher.finish()
}

impl Report {
    /// Adds what deserves attention; constant features do where features have names.
    fn warn(mut self, named: bool) -> Report {
        let mut warnings = std::mem::take(&mut self.warnings);
        if self.train.rows < FEW {
            warnings.push(format!("only {} to train on", count(self.train.rows.into(), "row")));
        }
        for (part, name) in [(&self.train, "training"), (&self.test, "test")] {
            let absent: Vec<_> = part.classes.iter().filter(|(_, n)| **n == 0).map(|(c, _)| c.as_str()).collect();
            if !absent.is_empty() && part.inspected == part.rows {
                warnings.push(format!("no sample of {} in the {name} part: {}", plural(absent.len()), list(&absent)));
            }
        }
        let most = self.train.classes.values().max().copied().unwrap_or(0);
        let least = self.train.classes.values().min().copied().unwrap_or(0);
        if least > 0 && most >= 10 * least {
            warnings.push(format!("the classes are unbalanced: the largest has {most} samples, the smallest {least}"));
        }
        if named && !self.constant.is_empty() {
            let names: Vec<_> = self.constant.iter().map(String::as_str).collect();
            warnings.push(format!("the same in every row, so of no use: {}", list(&names)));
        }
        if self.duplicates > 0 {
            let (twice, of) = (self.duplicates, self.test.inspected);
            warnings.push(format!("{twice} of {of} test samples are in the training part, too: scores will flatter"));
        }
        if self.non_finite > 0 {
            warnings.push(format!("{} values are infinite or not numbers", self.non_finite));
        }
        self.warnings = warnings;
        self
    }
}

fn plural(count: usize) -> String {
    if count == 1 { "class".into() } else { format!("{count} classes") }
}

fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn list(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.about)?;
        for (part, name) in [(&self.train, "train"), (&self.test, "test")] {
            write!(f, "{name:5}  {}", count(part.rows.into(), "row"))?;
            if part.inspected < part.rows {
                write!(f, ", {} of them looked at", part.inspected)?;
            }
            let count: u64 = part.classes.values().sum();
            let shares = part.classes.iter().take(20);
            let shares: Vec<_> =
                shares.map(|(class, n)| format!("{class} {:.1} %", *n as f64 * 100.0 / count.max(1) as f64)).collect();
            let more = if part.classes.len() > 20 { ", …" } else { "" };
            writeln!(f, "{}{}{more}", if shares.is_empty() { "" } else { "  " }, shares.join(", "))?;
        }
        write!(f, "       {}, {} of them constant", count(self.features as u64, "feature"), self.constant.len())?;
        write!(f, ", {} between the parts", count(self.duplicates, "duplicate"))?;
        self.warnings.iter().try_for_each(|warning| write!(f, "\nwarning: {warning}"))
    }
}
