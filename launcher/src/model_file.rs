//! model.safetensors and the hash that names its contents.

use std::{collections::BTreeMap, fs, path::Path};

use convoy_proto::{hex, manifest::Manifest, sum};
use convoy_worker::parameters::Tensors;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use sha2::{Digest, Sha256};

/// SHA-256 of the little-endian f32 parameters in manifest order, in hexadecimal.
pub fn params_sha256(tensors: &Tensors) -> String {
    let mut hash = Sha256::new();
    tensors.iter().for_each(|values| hash.update(sum::payload_of(values)));
    hex(&hash.finalize())
}

/// Writes all tensors to a file, by way of a temporary one.
///
/// # Errors
/// The disk's, in words.
pub fn write(path: &Path, manifest: &Manifest, tensors: &Tensors) -> Result<(), String> {
    let cannot = |problem: String| format!("cannot write {}: {problem}", path.display());
    let views: Result<Vec<_>, String> = manifest
        .tensors()
        .iter()
        .zip(tensors)
        .map(|(tensor, values)| {
            let shape = tensor.shape.iter().map(|dim| *dim as usize).collect();
            let view = TensorView::new(Dtype::F32, shape, sum::payload_of(values));
            Ok((tensor.name.clone(), view.map_err(|error| cannot(error.to_string()))?))
        })
        .collect();
    let staged = path.with_extension("partial");
    let metadata = std::collections::HashMap::from([("format".to_string(), "convoy".to_string())]);
    let written = safetensors::serialize_to_file(views?, Some(metadata), &staged).map_err(|error| error.to_string());
    let last = || fs::File::open(&staged)?.sync_all().and_then(|()| fs::rename(&staged, path));
    written.and_then(|()| last().map_err(|error| error.to_string())).map_err(|problem| {
        let _ = fs::remove_file(&staged);
        cannot(problem)
    })
}

/// The hash of the parameters in a file, in the order of a run's manifest.json.
///
/// # Errors
/// A file that cannot be read or does not hold the manifest's tensors, in words.
pub fn hash_of(path: &Path, manifest: &Path) -> Result<String, String> {
    let cannot = |path: &Path, problem: String| format!("cannot read {}: {problem}", path.display());
    let text = fs::read(manifest).map_err(|error| cannot(manifest, error.to_string()))?;
    let entries: Vec<Named> = serde_json::from_slice(&text).map_err(|error| cannot(manifest, error.to_string()))?;
    let bytes = fs::read(path).map_err(|error| cannot(path, error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| cannot(path, error.to_string()))?;
    let mut hash = Sha256::new();
    for Named { name } in entries {
        let tensor = file.tensor(&name).map_err(|error| cannot(path, format!("{name}: {error}")))?;
        hash.update(tensor.data());
    }
    Ok(hex(&hash.finalize()))
}

/// An entry of manifest.json, as far as it is needed here.
#[derive(serde::Deserialize)]
struct Named {
    name: String,
}

/// Reads the tensors of a manifest from a file.
///
/// # Errors
/// A file that cannot be read or does not hold these tensors, in words.
pub fn read(path: &Path, manifest: &Manifest) -> Result<Tensors, String> {
    let cannot = |problem: String| format!("cannot read {}: {problem}", path.display());
    let bytes = fs::read(path).map_err(|error| cannot(error.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| cannot(error.to_string()))?;
    let mut views: BTreeMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    let tensors = manifest.tensors().iter().map(|tensor| {
        let view = views.remove(&tensor.name).ok_or_else(|| cannot(format!("it has no tensor `{}`", tensor.name)))?;
        let shape: Vec<u64> = view.shape().iter().map(|dim| *dim as u64).collect();
        if view.dtype() != Dtype::F32 || shape != tensor.shape {
            let (name, want) = (&tensor.name, &tensor.shape);
            return Err(cannot(format!("`{name}` is {:?} {shape:?}, the model's is F32 {want:?}", view.dtype())));
        }
        let mut values = vec![0.0; tensor.elements() as usize];
        sum::read_payload(&mut values, view.data());
        Ok(values.into())
    });
    let tensors = tensors.collect::<Result<_, String>>()?;
    match views.into_keys().next() {
        Some(name) => Err(cannot(format!("the model has no tensor `{name}`"))),
        None => Ok(tensors),
    }
}

#[cfg(test)]
mod tests {
    use convoy_proto::manifest::TensorRole::Trainable;

    use super::*;

    fn manifest(shape: &[u64]) -> Manifest {
        Manifest::new([("b.w".into(), shape.to_vec(), Trainable), ("a".into(), vec![1], Trainable)]).unwrap()
    }

    #[test]
    fn tensors_survive_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let tensors = vec![vec![1.0, 2.0, 3.0, 4.0].into(), vec![-0.5].into()];
        write(&path, &manifest(&[2, 2]), &tensors).unwrap();
        assert_eq!(read(&path, &manifest(&[2, 2])), Ok(tensors));
        let error = read(&path, &manifest(&[4])).unwrap_err();
        assert!(error.contains("`b.w` is F32 [2, 2], the model's is F32 [4]"), "{error}");
        fs::write(&path, &fs::read(&path).unwrap()[..40]).unwrap();
        assert!(read(&path, &manifest(&[2, 2])).unwrap_err().starts_with("cannot read"));
    }

    #[test]
    fn the_hash_is_that_of_the_bytes() {
        let one = "e00e5eb9444182f352323374ef4e08ebcb784725fdd4fd612d7730540b3e0c8c";
        assert_eq!(params_sha256(&vec![vec![1.0].into()]).len(), one.len());
        let (apart, together) = (vec![vec![1.0].into(), vec![2.0].into()], vec![vec![1.0, 2.0].into()]);
        assert_eq!(params_sha256(&apart), params_sha256(&together));
    }
}
