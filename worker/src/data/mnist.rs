//! MNIST and everything in its form: pairs of IDX files in one folder.
//!
//! With only one of the train and test pairs, the seed splits it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    DataError, DataInfo, Dataset, Form, HostBatch, Part, Request,
    idx::{self, Idx},
    split::split,
};

/// Where a sample lies: in which pair, and in which row of it.
type Row = (u8, u32);

/// Images and their labels.
struct Pair {
    images: Idx,
    labels: Vec<u8>,
}

struct Mnist {
    info: DataInfo,
    pairs: Vec<Pair>,
    train: Vec<Row>,
    test: Vec<Row>,
}

impl Dataset for Mnist {
    fn info(&self) -> &DataInfo {
        &self.info
    }

    fn read(&self, part: Part, index: u32, batch: &mut HostBatch) -> Result<(), DataError> {
        let rows = match part {
            Part::Train => &self.train,
            Part::Test => &self.test,
        };
        let (pair, row) = rows[index as usize];
        let pair = &self.pairs[pair as usize];
        let size: usize = pair.images.dims[1..].iter().product();
        let pixels = &pair.images.data[row as usize * size..][..size];
        batch.features.extend(pixels.iter().map(|byte| f32::from(*byte) / 255.0));
        batch.label(pair.labels[row as usize].into());
        Ok(())
    }
}

/// Opens `mnist:DIR`.
pub fn open(request: &Request<'_>) -> Result<Arc<dyn Dataset>, DataError> {
    let dir = request.path("mnist", "DIR")?;
    let dir = dir.as_path();
    std::fs::read_dir(dir).map_err(|problem| DataError::read(dir, problem))?;
    let (train, test) = (pair(dir, "train")?, pair(dir, "t10k")?);
    let both = train.is_some() && test.is_some();
    let pairs: Vec<Pair> = train.into_iter().chain(test).collect();
    let [first, ..] = pairs.as_slice() else {
        let problem = "holds neither train-images-idx3-ubyte nor t10k-images-idx3-ubyte, gzipped or not";
        return Err(DataError::read(dir, problem));
    };
    let (height, width) = (first.images.dims[1], first.images.dims[2]);
    if let Some(other) = pairs.iter().find(|pair| pair.images.dims[1..] != [height, width]) {
        let problem =
            format!("images are {:?} in one file and {:?} in the other", &other.images.dims[1..], [height, width]);
        return Err(DataError::read(dir, problem));
    }
    let rows = |pair: u8| (0..pairs[pair as usize].labels.len() as u32).map(move |row| (pair, row));
    let (train, test): (Vec<Row>, Vec<Row>) = if both {
        (rows(0).collect(), rows(1).collect())
    } else {
        let (train, test) = split(first.labels.len() as u32, request.input.test_size, request.seed);
        let in_first = |rows: Vec<u32>| rows.into_iter().map(|row| (0, row)).collect();
        (in_first(train), in_first(test))
    };
    let classes = pairs.iter().flat_map(|pair| &pair.labels).max().map_or(1, |most| usize::from(*most) + 1);
    let mut hash = Sha256::new();
    for pair in &pairs {
        hash.update(&pair.images.data);
        hash.update(&pair.labels);
    }
    if !both {
        hash.update(request.seed.to_le_bytes());
        hash.update(request.input.test_size.to_le_bytes());
    }
    let info = DataInfo {
        about: format!("mnist: {} pictures to train on, {} held out, from {}", train.len(), test.len(), dir.display()),
        form: Form::Classes { shape: [1, height, width], classes },
        train: train.len() as u32,
        test: test.len() as u32,
        class_names: Vec::new(),
        fingerprint: hash.finalize().to_vec(),
    };
    Ok(Arc::new(Mnist { info, pairs, train, test }))
}

/// The images and labels that begin with `prefix`, if they are there.
fn pair(dir: &Path, prefix: &str) -> Result<Option<Pair>, DataError> {
    let (images, labels) = (find(dir, prefix, "images", 3), find(dir, prefix, "labels", 1));
    let (image_path, label_path) = match (images, labels) {
        (Some(images), Some(labels)) => (images, labels),
        (None, None) => return Ok(None),
        (Some(there), None) | (None, Some(there)) => {
            return Err(DataError::read(&there, "images and labels come in pairs, and its other half is missing"));
        }
    };
    let images = idx::parse(&image_path, idx::read_file(&image_path)?, 3)?;
    let labels = idx::parse(&label_path, idx::read_file(&label_path)?, 1)?;
    let (count, label_count) = (images.dims[0], labels.dims[0]);
    if count != label_count {
        let problem = format!("{label_count} labels, but {} has {count} images", image_path.display());
        return Err(DataError::malformed(&label_path, 4, problem));
    }
    if u32::try_from(count).is_err() || count < 2 {
        let problem = format!("{count} images cannot be split into training and test");
        return Err(DataError::malformed(&image_path, 4, problem));
    }
    Ok(Some(Pair { images, labels: labels.data }))
}

fn find(dir: &Path, prefix: &str, what: &str, dimensions: u32) -> Option<PathBuf> {
    let names = ["-", "."].map(|dot| format!("{prefix}-{what}{dot}idx{dimensions}-ubyte"));
    names.iter().flat_map(|name| [dir.join(name), dir.join(format!("{name}.gz"))]).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::{
        super::testing::{open_seeded, refusal},
        *,
    };

    fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        bytes.extend(dims.iter().flat_map(|dim| dim.to_be_bytes()));
        bytes.extend_from_slice(data);
        bytes
    }

    fn write_pair(dir: &Path, prefix: &str, count: u32) {
        let pixels: Vec<u8> = (0..count * 4).map(|i| i as u8).collect();
        let labels: Vec<u8> = (0..count).map(|i| (i % 3) as u8).collect();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&idx(&[count, 2, 2], &pixels)).unwrap();
        fs::write(dir.join(format!("{prefix}-images-idx3-ubyte.gz")), gzip.finish().unwrap()).unwrap();
        fs::write(dir.join(format!("{prefix}-labels-idx1-ubyte")), idx(&[count], &labels)).unwrap();
    }

    fn open_dir(dir: &Path, seed: u64) -> Arc<dyn Dataset> {
        open_seeded(&format!("mnist:{}", dir.display()), "", seed).unwrap()
    }

    #[test]
    fn both_pairs_are_used_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        write_pair(dir.path(), "train", 6);
        write_pair(dir.path(), "t10k", 4);
        let data = open_dir(dir.path(), 0);
        assert_eq!((data.info().train, data.info().test), (6, 4));
        assert_eq!(data.info().form, Form::Classes { shape: [1, 2, 2], classes: 3 });
        let batch = HostBatch::read(&*data, Part::Test, [2]).unwrap();
        assert_eq!(batch.labels, [2]);
        assert_eq!(batch.features, [8, 9, 10, 11].map(|byte| byte as f32 / 255.0));
    }

    #[test]
    fn one_pair_is_split_by_the_seed() {
        let dir = tempfile::tempdir().unwrap();
        write_pair(dir.path(), "t10k", 60);
        let (one, other) = (open_dir(dir.path(), 1), open_dir(dir.path(), 2));
        assert_eq!((one.info().train, one.info().test), (54, 6));
        assert_ne!(one.info().fingerprint, other.info().fingerprint);
        let mut seen = std::collections::BTreeSet::new();
        for (part, len) in [(Part::Train, 54), (Part::Test, 6)] {
            for index in 0..len {
                let batch = HostBatch::read(&*one, part, [index]).unwrap();
                seen.insert((batch.features[0] * 255.0) as u32 / 4);
            }
        }
        assert_eq!(seen.len(), 60, "every sample is in one part");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = || refusal(&format!("mnist:{}", dir.path().display()), "");
        assert!(message().contains("holds neither train-images"), "{}", message());
        write_pair(dir.path(), "train", 6);
        fs::remove_file(dir.path().join("train-labels-idx1-ubyte")).unwrap();
        assert!(message().ends_with("come in pairs, and its other half is missing"), "{}", message());
        fs::write(dir.path().join("train-labels-idx1-ubyte"), idx(&[5], &[0; 5])).unwrap();
        assert!(message().contains("at offset 4: 5 labels, but"), "{}", message());
        let images = dir.path().join("train-images-idx3-ubyte.gz");
        let bytes = fs::read(&images).unwrap();
        fs::write(&images, &bytes[..bytes.len() - 9]).unwrap();
        assert!(message().contains("the gzip stream is broken"), "{}", message());
        assert!(refusal("mnist", "").contains("mnist:DIR"));
        assert!(refusal("mnist:/no/such/folder", "").contains("cannot read /no/such/folder"));
    }
}
