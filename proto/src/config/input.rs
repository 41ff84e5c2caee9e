//! How data are read, as it is configured.

use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    raw::{choice, count, number, value_error},
};

/// Whether a table's first line names its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Found out.
    Auto,
    /// It does.
    Yes,
    /// It does not.
    No,
}

/// What to do about an empty cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Refuse the table.
    Refuse,
    /// Take the column's mean over the training part.
    Mean,
}

/// How data are read.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The share that is held out where the source has no test part.
    pub test_size: f64,
    /// A table's column to predict, by name or index; the last one without.
    pub label: Option<String>,
    /// Columns to leave out, by name or index.
    pub drop: Vec<String>,
    /// What to do about empty cells.
    pub missing: Missing,
    /// What separates cells; found out without.
    pub delimiter: Option<u8>,
    /// Whether a table's first line names its columns.
    pub header: Header,
    /// A tokenizer.json; bytes are the tokens without.
    pub tokenizer: Option<String>,
    /// Height and width that pictures are brought to; theirs, if they are all alike, without.
    pub image_size: Option<u32>,
}

/// The `[input]` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs, reason = "see RawConfig")]
pub struct RawInput {
    pub test_size: Option<f64>,
    pub label: Option<String>,
    pub drop: Option<Vec<String>>,
    pub missing: Option<String>,
    pub delimiter: Option<String>,
    pub header: Option<String>,
    pub tokenizer: Option<String>,
    pub image_size: Option<u64>,
}

impl RawInput {
    /// Checks every value by itself.
    ///
    /// # Errors
    /// A value that is out of range.
    pub(super) fn resolve(self) -> Result<Input, ConfigError> {
        let test_size = self.test_size.unwrap_or(0.1);
        let header = match choice("input.header", self.header.as_deref().unwrap_or("auto"), &["auto", "yes", "no"])? {
            "yes" => Header::Yes,
            "no" => Header::No,
            _ => Header::Auto,
        };
        let missing = self.missing.as_deref().unwrap_or("refuse");
        let missing = match choice("input.missing", missing, &["refuse", "mean"])? {
            "mean" => Missing::Mean,
            _ => Missing::Refuse,
        };
        Ok(Input {
            test_size: number("input.test_size", test_size, "above 0 and below 1", |x| x > 0.0 && x < 1.0)?,
            label: self.label.filter(|label| !label.is_empty()),
            drop: self.drop.unwrap_or_default(),
            missing,
            delimiter: self.delimiter.filter(|text| text != "auto").map(|text| delimiter(&text)).transpose()?,
            header,
            tokenizer: self.tokenizer.filter(|path| !path.is_empty()),
            image_size: self.image_size.map(|n| count("input.image_size", n, 4, 4096)).transpose()?,
        })
    }
}

fn delimiter(text: &str) -> Result<u8, ConfigError> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [byte] if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"\"\r\n".contains(byte) => Ok(*byte),
        _ => Err(value_error("input.delimiter", format!("\"{text}\""), "must be one character such as `;`, or `tab`")),
    }
}

impl From<&Input> for RawInput {
    fn from(input: &Input) -> Self {
        RawInput {
            test_size: Some(input.test_size),
            label: input.label.clone(),
            drop: Some(input.drop.clone()),
            missing: Some(if input.missing == Missing::Mean { "mean" } else { "refuse" }.into()),
            delimiter: input.delimiter.map(|byte| match byte {
                b'\t' => "tab".into(),
                byte => char::from(byte).to_string(),
            }),
            header: Some(
                match input.header {
                    Header::Auto => "auto",
                    Header::Yes => "yes",
                    Header::No => "no",
                }
                .into(),
            ),
            tokenizer: input.tokenizer.clone(),
            image_size: input.image_size.map(Into::into),
        }
    }
}
