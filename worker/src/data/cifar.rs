//! CIFAR-10 in its binary version: records of a label and 3×32×32 bytes, in five training files and a test file.
//!
//! Records are read in place, so a process holds none of them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};

use super::{
    DataError, DataInfo, Dataset, Form, HostBatch, Part, Request,
    files::Files,
    pixels::{MEASURED, Scale},
};

const SHAPE: [usize; 3] = [3, 32, 32];
const PIXELS: usize = 3 * 32 * 32;
const RECORD: usize = 1 + PIXELS;
const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

struct Cifar {
    info: DataInfo,
    train: Files,
    test: Files,
    scale: Scale,
}

fn record(files: &Files, index: u32) -> Result<Vec<u8>, DataError> {
    let mut bytes = vec![0; RECORD];
    files.read_at(u64::from(index) * RECORD as u64, &mut bytes)?;
    Ok(bytes)
}

impl Dataset for Cifar {
    fn info(&self) -> &DataInfo {
        &self.info
    }

    fn read(&self, part: Part, index: u32, batch: &mut HostBatch) -> Result<(), DataError> {
        let files = match part {
            Part::Train => &self.train,
            Part::Test => &self.test,
        };
        let bytes = record(files, index)?;
        self.scale.apply(&bytes[1..], &mut batch.features);
        batch.label(bytes[0].into());
        Ok(())
    }
}

/// Opens `cifar10:DIR`.
pub fn open(request: &Request<'_>) -> Result<Arc<dyn Dataset>, DataError> {
    let dir = request.path("cifar10", "DIR")?;
    std::fs::read_dir(&dir).map_err(|problem| DataError::read(&dir, problem))?;
    let batches: Vec<PathBuf> =
        (1..=5).map(|number| dir.join(format!("data_batch_{number}.bin"))).filter(|path| path.is_file()).collect();
    if batches.is_empty() {
        return Err(DataError::read(&dir, "holds no data_batch_1.bin: the binary version is needed"));
    }
    let (train, test) = (Files::open(&batches)?, Files::open(&[dir.join("test_batch.bin")])?);
    let counts = [check(&train, &batches)?, check(&test, &[dir.join("test_batch.bin")])?];
    let mut hash = Sha256::new();
    train.fingerprint(&mut hash)?;
    test.fingerprint(&mut hash)?;
    let scale = Scale::measure(SHAPE[0], |each| {
        let apart = (counts[0] as usize).div_ceil(MEASURED);
        (0..counts[0]).step_by(apart).try_for_each(|index| record(&train, index).map(|bytes| each(&bytes[1..])))
    })?;
    let [train_rows, test_rows] = counts;
    let info = DataInfo {
        about: format!("cifar10: {train_rows} pictures to train on, {test_rows} held out, from {}", dir.display()),
        form: Form::Classes { shape: SHAPE, classes: CLASSES.len() },
        train: train_rows,
        test: test_rows,
        class_names: CLASSES.map(String::from).to_vec(),
        fingerprint: hash.finalize().to_vec(),
    };
    Ok(Arc::new(Cifar { info, train, test, scale }))
}

/// Counts records, each file's by itself, and checks their labels.
fn check(files: &Files, paths: &[PathBuf]) -> Result<u32, DataError> {
    for path in paths {
        check_size(path)?;
    }
    let records = files.len() / RECORD as u64;
    let mut label = [0];
    for offset in (0..records).map(|index| index * RECORD as u64) {
        files.read_at(offset, &mut label)?;
        if usize::from(label[0]) >= CLASSES.len() {
            let (path, offset) = files.locate(offset);
            return Err(DataError::malformed(path, offset, format!("label {} is none of the ten", label[0])));
        }
    }
    u32::try_from(records).map_err(|_| DataError::read(&paths[0], "has too many records"))
}

fn check_size(path: &Path) -> Result<(), DataError> {
    let len = std::fs::metadata(path).map_err(|problem| DataError::read(path, problem))?.len();
    if len == 0 || !len.is_multiple_of(RECORD as u64) {
        let problem = format!("{len} bytes are no whole number of records of {RECORD} bytes");
        return Err(DataError::malformed(path, len - len % RECORD as u64, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::{
        super::testing::{open_spec, refusal},
        *,
    };

    fn write(path: &Path, labels: &[u8]) {
        let records = labels.iter().flat_map(|label| {
            std::iter::once(*label).chain((0..PIXELS).map(move |i| (i as u8).wrapping_mul(7).wrapping_add(*label)))
        });
        fs::write(path, records.collect::<Vec<_>>()).unwrap();
    }

    #[test]
    fn records_are_read_from_all_files() {
        let dir = tempfile::tempdir().unwrap();
        for (name, labels) in [("data_batch_1.bin", [1, 2]), ("data_batch_3.bin", [3, 9]), ("test_batch.bin", [0, 5])] {
            write(&dir.path().join(name), &labels);
        }
        let data = open_spec(&format!("cifar10:{}", dir.path().display()), "");
        assert_eq!((data.info().train, data.info().test), (4, 2));
        let batch = HostBatch::read(&*data, Part::Train, [3, 0]).unwrap();
        assert_eq!((batch.labels, batch.features.len()), (vec![9, 1], 2 * PIXELS));
        let report = super::super::inspect(&*data, 100).unwrap();
        assert_eq!((report.train.classes["truck"], report.test.classes["airplane"]), (1, 1));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = || refusal(&format!("cifar10:{}", dir.path().display()), "");
        assert!(message().contains("holds no data_batch_1.bin"), "{}", message());
        write(&dir.path().join("data_batch_1.bin"), &[1, 2]);
        assert!(message().contains("test_batch.bin"), "{}", message());
        write(&dir.path().join("test_batch.bin"), &[1, 77]);
        assert!(message().ends_with("test_batch.bin: at offset 3073: label 77 is none of the ten"), "{}", message());
        fs::write(dir.path().join("test_batch.bin"), [1; RECORD + 5]).unwrap();
        assert!(message().contains("at offset 3073: 3078 bytes are no whole number of records"), "{}", message());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever the bytes: either every label is one of the ten, or the file is refused.
        #[test]
        fn random_bytes_do_no_harm(bytes in proptest::collection::vec(0u8..12, 0..40), padding in 0usize..3) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("data_batch_1.bin");
            let records: Vec<u8> = bytes.iter().flat_map(|byte| std::iter::repeat_n(*byte, RECORD)).collect();
            fs::write(&path, [records, vec![0; padding]].concat()).unwrap();
            let files = Files::open(std::slice::from_ref(&path)).unwrap();
            let is_good = padding == 0 && !bytes.is_empty() && bytes.iter().all(|byte| *byte < 10);
            prop_assert_eq!(check(&files, &[path]).is_ok(), is_good);
        }
    }
}
