//! From text to tokens and back: bytes, or a tokenizer of Hugging Face's.

use std::path::Path;

use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::DataError;
use crate::contain::contain;

/// What tokens mean.
#[derive(Debug)]
pub enum Vocabulary {
    /// A token is a byte.
    Bytes,
    /// A tokenizer.json.
    Tokenizer(Box<Tokenizer>),
}

impl Vocabulary {
    /// Reads a tokenizer.json; bytes without.
    ///
    /// # Errors
    /// A file that cannot be read or is no tokenizer.
    pub fn open(tokenizer: Option<&str>) -> Result<Vocabulary, DataError> {
        let Some(path) = tokenizer.map(Path::new) else { return Ok(Vocabulary::Bytes) };
        let bytes = std::fs::read(path).map_err(|problem| DataError::read(path, problem))?;
        let no_tokenizer = |problem: String| DataError::read(path, format!("it is no tokenizer.json: {problem}"));
        let read = contain(|| Tokenizer::from_bytes(&bytes)).map_err(no_tokenizer)?;
        let mut tokenizer = read.map_err(|problem| no_tokenizer(problem.to_string()))?;
        // These are for single sentences: text is cut by the data set.
        let _ = tokenizer.with_truncation(None);
        tokenizer.with_padding(None);
        Ok(Vocabulary::Tokenizer(Box::new(tokenizer)))
    }

    /// How many different tokens there are.
    pub fn size(&self) -> usize {
        match self {
            Vocabulary::Bytes => 256,
            // The highest id, as ids may have gaps.
            Vocabulary::Tokenizer(tokenizer) => {
                tokenizer.get_vocab(true).values().max().map_or(1, |highest| *highest as usize + 1)
            }
        }
    }

    /// What a token is called.
    pub fn unit(&self) -> &'static str {
        match self {
            Vocabulary::Bytes => "byte",
            Vocabulary::Tokenizer(_) => "token",
        }
    }

    /// Adds what the vocabulary is to a hash.
    pub fn fingerprint(&self, hash: &mut Sha256) {
        if let Vocabulary::Tokenizer(tokenizer) = self {
            hash.update(tokenizer.to_string(false).unwrap_or_default());
        }
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// A text that the tokenizer fails on, in words.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        match self {
            Vocabulary::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Vocabulary::Tokenizer(tokenizer) => {
                let encoding = contain(|| tokenizer.encode_fast(text, false))?;
                Ok(encoding.map_err(|problem| problem.to_string())?.get_ids().to_vec())
            }
        }
    }

    /// The text of tokens; what is no text becomes a replacement character.
    pub fn decode(&self, tokens: &[u32]) -> String {
        match self {
            Vocabulary::Bytes => {
                let bytes: Vec<u8> = tokens.iter().map(|token| u8::try_from(*token).unwrap_or(b'?')).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Vocabulary::Tokenizer(tokenizer) => {
                contain(|| tokenizer.decode(tokens, true).unwrap_or_default()).unwrap_or_default()
            }
        }
    }
}
