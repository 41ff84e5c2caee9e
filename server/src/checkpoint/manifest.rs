//! The manifest of a checkpoint: what it holds, where training stood, and the hashes that make it valid.

use convoy_proto::{hex, messages::Part};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The form of checkpoints that this version writes and reads.
pub const FORMAT: u32 = 1;

/// A checkpoint, but for its blocks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The run that wrote it.
    pub run: String,
    /// SHA-256 of the model's tensors, their names, shapes and roles.
    pub model: String,
    /// Steps that were made, as people count.
    pub step: u64,
    /// Commits that were made.
    pub commits: u64,
    /// The era in which it was written.
    pub era: u64,
    /// The loss scale of the next commit.
    pub loss_scale: f64,
    /// Clean steps in a row, which the loss scale goes by.
    pub clean_steps: u64,
    /// The files, by their first block.
    pub files: Vec<BlockFile>,
    /// Where the run stood: the launcher's to read.
    pub progress: serde_json::Value,
}

/// A file of blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockFile {
    /// Its name, beside the manifest.
    pub file: String,
    /// Its first block.
    pub first_block: u64,
    /// How many.
    pub blocks: u64,
    /// Its size.
    pub bytes: u64,
    /// Its hash, in hexadecimal.
    pub sha256: String,
}

impl From<Part> for BlockFile {
    fn from(part: Part) -> Self {
        let Part { file, first_block, blocks, bytes, sha256 } = part;
        BlockFile { file, first_block, blocks, bytes, sha256: hex(&sha256) }
    }
}

impl BlockFile {
    /// Compares what is there with what was written: its size, and its hash if that is known.
    ///
    /// # Errors
    /// How they differ, in words.
    pub fn compare(&self, bytes: u64, hash: Option<&[u8]>) -> Result<(), String> {
        if bytes != self.bytes {
            return Err(format!("it has {bytes} bytes, the manifest says {}", self.bytes));
        }
        if hash.is_some_and(|hash| hex(hash) != self.sha256) {
            return Err("it does not have the hash that the manifest says".into());
        }
        Ok(())
    }
}

const HEAD: &str = "{\n\"sha256\": \"";
const NECK: &str = "\",\n\"checkpoint\": ";
const FOOT: &str = "\n}\n";

impl CheckpointManifest {
    /// The manifest as a file: JSON, with the hash of what is in it.
    pub fn to_text(&self) -> String {
        // Plain data with text keys: it always can be written.
        let body = serde_json::to_string_pretty(self).unwrap_or_default();
        let hash = hex(&Sha256::digest(&body));
        format!("{HEAD}{hash}{NECK}{body}{FOOT}")
    }

    /// The size of all its files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Reads what [`CheckpointManifest::to_text`] wrote, and nothing else.
    ///
    /// # Errors
    /// Any other text, in words.
    pub fn from_text(text: &str) -> Result<CheckpointManifest, String> {
        let torn = || "it is not whole".to_string();
        let inner = text.strip_prefix(HEAD).and_then(|rest| rest.strip_suffix(FOOT)).ok_or_else(torn)?;
        let (hash, body) = inner.split_once(NECK).ok_or_else(torn)?;
        if hash != hex(&Sha256::digest(body)) {
            return Err("its contents do not have the hash that it says".into());
        }
        let manifest: CheckpointManifest = serde_json::from_str(body).map_err(|error| error.to_string())?;
        match manifest.format {
            FORMAT => Ok(manifest),
            other => Err(format!("it has format {other}, this version reads format {FORMAT}")),
        }
    }
}
