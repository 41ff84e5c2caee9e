//! Pictures in folders, a folder a class: PNG and JPEG, brought to one size.
//!
//! Every picture is decoded once when the data are opened by the launcher's inspection; later when it is needed. Small
//! data sets are kept decoded.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use image::{ColorType, ImageDecoder, ImageReader, imageops::FilterType};
use sha2::{Digest, Sha256};

use super::{
    DataError, DataInfo, Dataset, Form, HostBatch, Part, Request,
    files::{self, Files},
    pixels::{MEASURED, Scale},
    split::split,
};
use crate::contain::contain;

/// Height and width of pictures that are not all alike.
const USUAL: u32 = 64;
/// The largest size that is taken from the pictures themselves.
const OWN: u32 = 256;
/// The largest picture that is decoded, in pixels.
const LARGEST: u64 = 1 << 28;
/// Decoded bytes up to which all pictures are kept.
const KEPT: u64 = 256 << 20;

/// A picture on disk, and its class.
#[derive(Clone, Debug)]
struct Picture {
    path: PathBuf,
    class: u32,
}

struct Images {
    info: DataInfo,
    pictures: Vec<Picture>,
    train: Vec<u32>,
    test: Vec<u32>,
    shape: [usize; 3],
    scale: Scale,
    kept: Option<Vec<OnceLock<Vec<u8>>>>,
}

impl Images {
    fn bytes(&self, number: u32) -> Result<std::borrow::Cow<'_, [u8]>, DataError> {
        let cell = self.kept.as_ref().map(|kept| &kept[number as usize]);
        if let Some(bytes) = cell.and_then(OnceLock::get) {
            return Ok(bytes.into());
        }
        let bytes = decode(&self.pictures[number as usize].path, self.shape)?;
        Ok(match cell {
            Some(cell) => cell.get_or_init(|| bytes).into(),
            None => bytes.into(),
        })
    }
}

impl Dataset for Images {
    fn info(&self) -> &DataInfo {
        &self.info
    }

    fn read(&self, part: Part, index: u32, batch: &mut HostBatch) -> Result<(), DataError> {
        let numbers = match part {
            Part::Train => &self.train,
            Part::Test => &self.test,
        };
        let number = numbers[index as usize];
        self.scale.apply(&self.bytes(number)?, &mut batch.features);
        batch.label(self.pictures[number as usize].class);
        Ok(())
    }
}

/// Opens `images:DIR`.
pub fn open(request: &Request<'_>) -> Result<Arc<dyn Dataset>, DataError> {
    let dir = request.path("images", "DIR")?;
    let (class_names, pictures) = find(&dir)?;
    let rows = u32::try_from(pictures.len()).map_err(|_| DataError::read(&dir, "holds too many pictures"))?;
    if rows < 2 {
        return Err(DataError::read(&dir, "one picture cannot be split into training and test"));
    }
    let shape = shape(&pictures, request.input.image_size)?;
    let (train, test) = split(rows, request.input.test_size, request.seed);
    let scale = Scale::measure(shape[0], |each| {
        let apart = train.len().div_ceil(MEASURED);
        let mut measured = train.iter().step_by(apart);
        measured.try_for_each(|number| decode(&pictures[*number as usize].path, shape).map(|bytes| each(&bytes)))
    })?;
    let [channels, height, width] = shape;
    let info = DataInfo {
        about: format!(
            "images: {} pictures of {} classes to train on, {} held out, {channels}×{height}×{width}, from {}",
            train.len(),
            class_names.len(),
            test.len(),
            dir.display()
        ),
        form: Form::Classes { shape, classes: class_names.len() },
        train: train.len() as u32,
        test: test.len() as u32,
        fingerprint: fingerprint(&pictures, &dir, request, shape)?,
        class_names,
    };
    let decoded = u64::from(rows) * shape.iter().product::<usize>() as u64;
    let kept = (decoded <= KEPT).then(|| std::iter::repeat_with(OnceLock::new).take(pictures.len()).collect());
    Ok(Arc::new(Images { info, pictures, train, test, shape, scale, kept }))
}

fn fingerprint(
    pictures: &[Picture],
    dir: &Path,
    request: &Request<'_>,
    shape: [usize; 3],
) -> Result<Vec<u8>, DataError> {
    let mut hash = Sha256::new();
    for picture in pictures {
        let name = picture.path.strip_prefix(dir).unwrap_or(&picture.path);
        hash.update(name.as_os_str().as_encoded_bytes());
        // One at a time, as there may be more files than a process may hold open.
        Files::open(std::slice::from_ref(&picture.path))?.fingerprint(&mut hash)?;
    }
    hash.update(request.seed.to_le_bytes());
    hash.update(request.input.test_size.to_le_bytes());
    hash.update(format!("{shape:?}"));
    Ok(hash.finalize().to_vec())
}

/// The classes, by name, and their pictures, by path.
fn find(dir: &Path) -> Result<(Vec<String>, Vec<Picture>), DataError> {
    let entries = std::fs::read_dir(dir).map_err(|problem| DataError::read(dir, problem))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.retain(|path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b".")));
    folders.sort();
    if folders.len() < 2 {
        let problem = format!("holds {} folders, but there must be one for each of two classes or more", folders.len());
        return Err(DataError::read(dir, problem));
    }
    let is_part = |folder: &PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        ["train", "training", "test", "val", "valid", "validation"].contains(&name.as_str())
    };
    if folders.iter().all(is_part) {
        let first = folders[0].display();
        let problem = format!("its folders are parts and not classes; name one of them, such as images:{first}");
        return Err(DataError::read(dir, problem));
    }
    let (mut names, mut pictures) = (Vec::new(), Vec::new());
    for (class, folder) in (0..).zip(&folders) {
        names.push(folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
        let is_picture = |path: &PathBuf| {
            let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
            ["png", "jpg", "jpeg"].iter().any(|known| extension == *known)
        };
        let found: Vec<_> = files::list(folder)?.into_iter().filter(is_picture).collect();
        if found.is_empty() {
            return Err(DataError::read(folder, "this class has no picture that ends in .png, .jpg or .jpeg"));
        }
        pictures.extend(found.into_iter().map(|path| Picture { path, class }));
    }
    Ok((names, pictures))
}

/// The shape that all pictures are brought to, from the heads of their files: grey if all are, and their own size if it
/// is one and none was asked for.
fn shape(pictures: &[Picture], wanted: Option<u32>) -> Result<[usize; 3], DataError> {
    let (mut is_grey, mut sizes) = (true, std::collections::BTreeSet::new());
    for picture in pictures {
        let decoder = decoder(&picture.path)?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > LARGEST || width == 0 || height == 0 {
            return Err(DataError::read(&picture.path, format!("{width}×{height} pixels are out of range")));
        }
        is_grey &= matches!(decoder.color_type(), ColorType::L8 | ColorType::La8 | ColorType::L16 | ColorType::La16);
        sizes.insert((height, width));
    }
    let own = sizes.first().copied().filter(|(height, width)| sizes.len() == 1 && *height.max(width) <= OWN);
    let (height, width) = wanted.map(|side| (side, side)).or(own).unwrap_or((USUAL, USUAL));
    Ok([if is_grey { 1 } else { 3 }, height as usize, width as usize])
}

fn decoder(path: &Path) -> Result<impl ImageDecoder, DataError> {
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let reader = reader.map_err(|problem| DataError::read(path, problem))?;
    let decoder = contain(|| reader.into_decoder()).map_err(|panic| DataError::read(path, panic))?;
    decoder.map_err(|problem| DataError::read(path, problem))
}

/// A picture's bytes, channel-major.
fn decode(path: &Path, [channels, height, width]: [usize; 3]) -> Result<Vec<u8>, DataError> {
    let decoder = decoder(path)?;
    let picture = contain(|| image::DynamicImage::from_decoder(decoder));
    let mut picture =
        picture.map_err(|panic| DataError::read(path, panic))?.map_err(|problem| DataError::read(path, problem))?;
    if (picture.height() as usize, picture.width() as usize) != (height, width) {
        picture = picture.resize_exact(width as u32, height as u32, FilterType::Triangle);
    }
    if channels == 1 {
        return Ok(picture.into_luma8().into_raw());
    }
    let interleaved = picture.into_rgb8().into_raw();
    Ok((0..channels).flat_map(|channel| interleaved.iter().skip(channel).step_by(channels).copied()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use image::{Rgb, RgbImage};
    use proptest::prelude::*;

    use super::{
        super::testing::{open_spec, refusal},
        *,
    };

    fn picture(width: u32, height: u32, shade: u8) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([shade, x as u8 * 8, y as u8 * 8]))
    }

    fn folders(dir: &Path) {
        for (class, shade) in [("cats", 10), ("dogs", 200)] {
            fs::create_dir(dir.join(class)).unwrap();
            for number in 0..6 {
                picture(8, 6, shade + number).save(dir.join(class).join(format!("{number}.png"))).unwrap();
            }
        }
    }

    #[test]
    fn a_folder_is_a_class_and_pictures_have_one_size() {
        let dir = tempfile::tempdir().unwrap();
        folders(dir.path());
        let spec = format!("images:{}", dir.path().display());
        let data = open_spec(&spec, "");
        assert_eq!(data.info().form, Form::Classes { shape: [3, 6, 8], classes: 2 });
        assert_eq!((data.info().train, data.info().test), (11, 1));
        assert_eq!(data.info().class_names, ["cats", "dogs"]);
        picture(30, 40, 7).save(dir.path().join("dogs/7.jpg")).unwrap();
        assert_eq!(open_spec(&spec, "").info().form, Form::Classes { shape: [3, 64, 64], classes: 2 });
        let data = open_spec(&spec, "[input]\nimage_size = 16");
        let batch = HostBatch::read(&*data, Part::Train, 0..data.info().train).unwrap();
        assert_eq!(batch.features.len(), 3 * 16 * 16 * data.info().train as usize);
        assert!(batch.features.iter().all(|value| value.is_finite()));
    }

    #[test]
    fn channels_come_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.png");
        picture(2, 2, 9).save(&path).unwrap();
        assert_eq!(decode(&path, [3, 2, 2]).unwrap(), [9, 9, 9, 9, 0, 8, 0, 8, 0, 0, 8, 8]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = || refusal(&format!("images:{}", dir.path().display()), "");
        assert!(message().contains("holds 0 folders"), "{}", message());
        folders(dir.path());
        let broken = dir.path().join("cats/0.png");
        let bytes = fs::read(&broken).unwrap();
        fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
        assert!(message().contains("cats/0.png: "), "{}", message());
        fs::write(&broken, "no picture").unwrap();
        assert!(message().contains("cats/0.png: "), "{}", message());
        fs::create_dir(dir.path().join("empty")).unwrap();
        assert!(message().contains("empty: this class has no picture"), "{}", message());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn broken_pictures_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..100) {
            let mut png = std::io::Cursor::new(Vec::new());
            picture(5, 5, 1).write_to(&mut png, image::ImageFormat::Png).unwrap();
            let mut png = png.into_inner();
            let end = (at + bytes.len()).min(png.len());
            let at = at.min(end);
            png.splice(at..end, bytes);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("p.png");
            fs::write(&path, png).unwrap();
            let _ = decode(&path, [3, 4, 4]);
        }
    }
}
