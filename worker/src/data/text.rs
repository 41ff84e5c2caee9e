//! Text: a file, or all files below a folder, one after the other.
//!
//! The end of the text is held out; a sample is a window of a context and one token more, and no window crosses the
//! border. Windows are read in place (see [`Files`]). With a tokenizer the tokens are computed once, piece by piece, and
//! kept in a file next to the runs.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use convoy_proto::hex;
use sha2::{Digest, Sha256};

use super::{
    DataError, DataInfo, Dataset, Form, HostBatch, Part, Request, files, files::Files, vocabulary::Vocabulary,
};

/// Tokens that are seen at once, if it is not said.
pub const CONTEXT: usize = 128;
/// Bytes that are tokenized at once.
const CHUNK: usize = 1 << 20;

struct Text {
    info: DataInfo,
    tokens: Files,
    /// Bytes of a token.
    width: usize,
    context: usize,
    /// The first token that is held out.
    border: u64,
    notes: Vec<String>,
}

impl Dataset for Text {
    fn info(&self) -> &DataInfo {
        &self.info
    }

    fn read(&self, part: Part, index: u32, batch: &mut HostBatch) -> Result<(), DataError> {
        let from = match part {
            Part::Train => 0,
            Part::Test => self.border,
        };
        let first = from + u64::from(index) * self.context as u64;
        let mut bytes = vec![0; (self.context + 1) * self.width];
        self.tokens.read_at(first * self.width as u64, &mut bytes)?;
        match self.width {
            1 => batch.tokens.extend(bytes.iter().map(|byte| i32::from(*byte))),
            _ => batch.tokens.extend(bytes.as_chunks::<4>().0.iter().map(|token| i32::from_le_bytes(*token))),
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// Opens `text:FILE` or `text:DIR`.
pub fn open(request: &Request<'_>) -> Result<Arc<dyn Dataset>, DataError> {
    let path = request.path("text", "FILE")?;
    let paths = if path.is_dir() { files::list(&path)? } else { vec![path.clone()] };
    let text = Files::open(&paths)?;
    let notes = look_at_start(&path, &text)?;
    let vocabulary = Vocabulary::open(request.input.tokenizer.as_deref())?;
    let mut hash = Sha256::new();
    text.fingerprint(&mut hash)?;
    vocabulary.fingerprint(&mut hash);
    let source = hash.clone().finalize();
    hash.update(request.input.test_size.to_le_bytes());
    hash.update((request.context as u64).to_le_bytes());
    let (tokens, width) = match &vocabulary {
        Vocabulary::Bytes => (text, 1),
        Vocabulary::Tokenizer(_) => {
            let name = hex(&source[..16]);
            let kept = request.cache.join(format!("{name}.tokens"));
            (tokenized(&text, &vocabulary, &kept)?, 4)
        }
    };
    let count = tokens.len() / width as u64;
    let held_out = (count as f64 * request.input.test_size) as u64;
    let (border, context) = (count - held_out, request.context);
    let windows = |tokens: u64| tokens.saturating_sub(1) / context as u64;
    let (train, test) = (windows(border), windows(held_out));
    if train == 0 || test == 0 {
        let problem = format!(
            "its {count} tokens give {train} windows of {context} to train on and {test} held out; a text must be \
             longer, or model.context shorter"
        );
        return Err(DataError::read(&path, problem));
    }
    let fits = |windows: u64| {
        u32::try_from(windows).map_err(|_| DataError::read(&path, "has too many windows; make model.context longer"))
    };
    let unit = vocabulary.unit();
    let info = DataInfo {
        about: format!(
            "text: {border} {unit}s to train on, {held_out} held out, in windows of {context}, from {}",
            path.display()
        ),
        form: Form::Tokens { context, vocabulary: vocabulary.size() },
        train: fits(train)?,
        test: fits(test)?,
        class_names: Vec::new(),
        fingerprint: hash.finalize().to_vec(),
    };
    Ok(Arc::new(Text { info, tokens, width, context, border, notes }))
}

/// Bytes that are looked at before anything else.
const START: u64 = 64 << 10;

/// Refuses what is empty or packed, and notes what does not look like text.
fn look_at_start(path: &Path, text: &Files) -> Result<Vec<String>, DataError> {
    let mut start = vec![0; text.len().min(START) as usize];
    text.read_at(0, &mut start)?;
    if start.is_empty() {
        return Err(DataError::read(path, "there is nothing in it"));
    }
    files::check_unpacked(text.locate(0).0, &start)?;
    let zeros = start.iter().filter(|byte| **byte == 0).count();
    Ok((zeros > 0)
        .then(|| format!("{zeros} of the first {} bytes are zero: is it text?", start.len()))
        .into_iter()
        .collect())
}

/// The tokens of a text, from the file `kept`, which is made if it is not there.
fn tokenized(text: &Files, vocabulary: &Vocabulary, kept: &Path) -> Result<Files, DataError> {
    if !kept.is_file() {
        let folder = kept.parent().unwrap_or(Path::new("."));
        let cannot = |problem: std::io::Error| DataError::read(kept, format!("cannot be written: {problem}"));
        fs::create_dir_all(folder).map_err(cannot)?;
        // Another process may make the same file: whoever is last renames the same contents.
        let partial = PathBuf::from(format!("{}.{}", kept.display(), std::process::id()));
        let written = File::create(&partial).map_err(cannot).and_then(|file| {
            let mut out = BufWriter::new(file);
            tokenize(text, vocabulary, |token| out.write_all(&token.to_le_bytes()).map_err(cannot))?;
            out.flush().map_err(cannot)
        });
        if let Err(problem) = written {
            let _ = fs::remove_file(&partial);
            return Err(problem);
        }
        fs::rename(&partial, kept).map_err(cannot)?;
    }
    Files::open(&[kept.to_path_buf()])
}

/// Hands over a text's tokens, chunk by chunk. Chunks end with a line where one ends in them, so that no word is cut.
fn tokenize(
    text: &Files,
    vocabulary: &Vocabulary,
    mut each: impl FnMut(u32) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let (mut at, mut carried) = (0u64, Vec::new());
    while at < text.len() || !carried.is_empty() {
        let start = at - carried.len() as u64;
        let count = (text.len() - at).min(CHUNK as u64) as usize;
        let fresh = carried.len();
        carried.resize(fresh + count, 0);
        text.read_at(at, &mut carried[fresh..])?;
        at += count as u64;
        let whole = end_of_text(&carried, at == text.len()).map_err(|offset| {
            let (path, offset) = text.locate(start + offset as u64);
            DataError::malformed(path, offset, "the bytes here are no UTF-8 text, which a tokenizer needs")
        })?;
        let rest = carried.split_off(whole);
        // Checked just now.
        let chunk = String::from_utf8(std::mem::replace(&mut carried, rest)).unwrap_or_default();
        let (path, offset) = text.locate(start);
        let cannot = |problem: String| DataError::malformed(path, offset, format!("cannot be tokenized: {problem}"));
        vocabulary.encode(&chunk).map_err(cannot)?.into_iter().try_for_each(&mut each)?;
        if chunk.is_empty() {
            break;
        }
    }
    Ok(())
}

/// How many of the bytes to take: up to the last line's end, or all whole characters; all at the text's end.
///
/// # Errors
/// The offset of bytes that are no text.
fn end_of_text(bytes: &[u8], is_last: bool) -> Result<usize, usize> {
    let valid = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(error) if error.error_len().is_none() && !is_last => error.valid_up_to(),
        Err(error) => return Err(error.valid_up_to()),
    };
    let line = bytes[..valid].iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    Ok(if is_last { valid } else { line.unwrap_or(valid) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            Wanted,
            testing::{open_as, open_spec, refusal},
        },
        *,
    };

    const CONTEXT_4: &str = "[model]\ncontext = 4";

    #[test]
    fn windows_overlap_by_one_and_none_crosses_the_border() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..100).collect();
        fs::write(dir.path().join("t"), &bytes).unwrap();
        let data = open_spec(&format!("text:{}/t", dir.path().display()), CONTEXT_4);
        assert_eq!((data.info().train, data.info().test), (22, 2));
        let tokens = |part, index| HostBatch::read(&*data, part, [index]).unwrap().tokens;
        assert_eq!(tokens(Part::Train, 1), [4, 5, 6, 7, 8]);
        assert_eq!(tokens(Part::Train, 21), [84, 85, 86, 87, 88]);
        assert_eq!(tokens(Part::Test, 0), [90, 91, 92, 93, 94]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        fs::write(&path, "too short").unwrap();
        let spec = format!("text:{}", path.display());
        assert!(refusal(&spec, "").contains("its 9 tokens give 0 windows of 128"), "{}", refusal(&spec, ""));
        assert!(refusal("text:/none", "").contains("cannot read /none"));
        let with = format!("[input]\ntokenizer = {path:?}");
        assert!(refusal(&spec, &with).contains("it is no tokenizer.json"), "{}", refusal(&spec, &with));
    }

    fn tokenizer(dir: &Path) -> PathBuf {
        let path = dir.join("tokenizer.json");
        let words = r#"{"[UNK]":0,"one":1,"two":2,"three":3}"#;
        let json = format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":{{"type":"Whitespace"}},"post_processor":null,"decoder":null,
            "model":{{"type":"WordLevel","vocab":{words},"unk_token":"[UNK]"}}}}"#
        );
        fs::write(&path, json).unwrap();
        path
    }

    #[test]
    fn a_tokenizer_makes_tokens_of_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = tokenizer(dir.path());
        let text = dir.path().join("t");
        fs::write(&text, "one two three four\n".repeat(50)).unwrap();
        let settings = format!("[input]\ntokenizer = {path:?}\n{CONTEXT_4}");
        let data = open_as(&format!("text:{}", text.display()), &settings, 0, Wanted::Tokens).unwrap();
        assert_eq!(data.info().form, Form::Tokens { context: 4, vocabulary: 4 });
        let batch = HostBatch::read(&*data, Part::Train, [3]).unwrap();
        assert_eq!(batch.tokens, [1, 2, 3, 0, 1]);
        fs::write(&text, b"one two\nthree \xff\xfe one\n".repeat(50)).unwrap();
        let refusal = refusal(&format!("text:{}", text.display()), &settings);
        assert!(refusal.contains("t: at offset 14: the bytes here are no UTF-8 text"), "{refusal}");
    }

    /// The library expects some parts to be well-formed, and panics where they are not.
    #[test]
    fn a_tokenizer_that_its_library_panics_at_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = tokenizer(dir.path());
        let json = fs::read_to_string(&path).unwrap();
        let of_decoder = json.replace(r#""decoder":null"#, "\"decoder\":\0null");
        let charsmap = r#""normalizer":{"type":"Precompiled","precompiled_charsmap":"AA=="}"#;
        let of_normalizer = json.replace(r#""normalizer":null"#, charsmap);
        for broken in [of_decoder, of_normalizer] {
            assert_ne!(broken, json);
            fs::write(&path, broken).unwrap();
            let refusal = Vocabulary::open(path.to_str()).unwrap_err().to_string();
            assert!(refusal.contains("tokenizer.json: it is no tokenizer.json: "), "{refusal}");
            assert_eq!(refusal.lines().count(), 1, "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn a_broken_tokenizer_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..40), at in 0usize..600) {
            let dir = tempfile::tempdir().unwrap();
            let path = tokenizer(dir.path());
            let mut json = fs::read(&path).unwrap();
            let at = at % json.len();
            let end = (at + bytes.len()).min(json.len());
            json.splice(at..end, bytes);
            fs::write(&path, json).unwrap();
            if let Ok(vocabulary) = Vocabulary::open(path.to_str()) {
                let _ = vocabulary.encode("one two \u{e9}").map(|tokens| vocabulary.decode(&tokens));
            }
        }

        /// Whatever the bytes and wherever chunks end: all valid text is taken, and nothing is lost between chunks.
        #[test]
        fn chunks_join_to_the_whole(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let cut = cut.min(bytes.len());
            if let Ok(first) = end_of_text(&bytes[..cut], false) {
                prop_assert!(first <= cut && std::str::from_utf8(&bytes[..first]).is_ok());
                let whole = std::str::from_utf8(&bytes).is_ok();
                prop_assert_eq!(whole, end_of_text(&bytes[first..], true) == Ok(bytes.len() - first));
            } else {
                prop_assert!(std::str::from_utf8(&bytes).is_err());
            }
        }
    }
}
