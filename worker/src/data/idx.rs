//! IDX files, as MNIST is published in: a magic number, big-endian dimensions, then bytes. Gzipped or not.

use std::{fs::File, io::Read, path::Path};

use flate2::read::MultiGzDecoder;

use super::DataError;

/// The largest file that is read, decompressed: far above MNIST's 47 MB, far below a machine's memory.
const LIMIT: u64 = 2 << 30;

/// An IDX file of unsigned bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idx {
    /// The size of each dimension.
    pub dims: Vec<usize>,
    /// The elements, last dimension fastest.
    pub data: Vec<u8>,
}

/// Reads a file, decompressing it if it is gzipped.
pub fn read_file(path: &Path) -> Result<Vec<u8>, DataError> {
    let cannot = |problem: std::io::Error| DataError::read(path, problem);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes)).map_err(cannot)?;
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    match MultiGzDecoder::new(bytes.as_slice()).take(LIMIT).read_to_end(&mut plain) {
        Ok(_) => Ok(plain),
        Err(problem) => {
            Err(DataError::malformed(path, plain.len() as u64, format!("the gzip stream is broken: {problem}")))
        }
    }
}

/// Parses an IDX file of unsigned bytes with so many dimensions.
pub fn parse(path: &Path, bytes: Vec<u8>, dimensions: usize) -> Result<Idx, DataError> {
    let wrong = |offset: usize, problem: String| DataError::malformed(path, offset as u64, problem);
    let header = 4 + 4 * dimensions;
    if bytes.len() < header {
        let problem = format!("the file ends, but an IDX header of {dimensions} dimensions has {header} bytes");
        return Err(wrong(bytes.len(), problem));
    }
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let magic = 0x0800 + dimensions as u32;
    if word(0) != magic {
        return Err(wrong(0, format!("found magic number {:#010x}, expected {magic:#010x}", word(0))));
    }
    let dims: Vec<usize> = (0..dimensions).map(|i| word(4 + 4 * i) as usize).collect();
    let size = dims.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim)).filter(|n| *n as u64 <= LIMIT);
    match size {
        None | Some(0) => Err(wrong(4, format!("the dimensions {dims:?} are impossible"))),
        Some(size) if bytes.len() - header != size => {
            let found = bytes.len() - header;
            Err(wrong(bytes.len(), format!("{found} bytes of data, but the dimensions {dims:?} need {size}")))
        }
        Some(_) => Ok(Idx { dims, data: bytes[header..].to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(bytes: &[u8], dimensions: usize) -> String {
        parse(Path::new("f"), bytes.to_vec(), dimensions).unwrap_err().to_string()
    }

    #[test]
    fn parses_and_says_where_it_cannot() {
        let good = [0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 1, 7, 9];
        assert_eq!(parse(Path::new("f"), good.to_vec(), 2).unwrap(), Idx { dims: vec![2, 1], data: vec![7, 9] });
        assert_eq!(message(&good[..13], 2), "f: at offset 13: 1 bytes of data, but the dimensions [2, 1] need 2");
        assert_eq!(message(&good, 1), "f: at offset 0: found magic number 0x00000802, expected 0x00000801");
        assert_eq!(message(&[], 1), "f: at offset 0: the file ends, but an IDX header of 1 dimensions has 8 bytes");
        let huge = [0, 0, 8, 2, 255, 255, 255, 255, 255, 255, 255, 255];
        assert_eq!(message(&huge, 2), "f: at offset 4: the dimensions [4294967295, 4294967295] are impossible");
    }

    proptest! {
        #[test]
        fn random_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..64), dimensions in 1usize..4) {
            let _ = parse(Path::new("f"), bytes, dimensions);
        }
    }
}
