//! The manifest: every tensor of a model, in the order of the parameter space.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What training does with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TensorRole {
    /// It has gradients, and the optimizer updates it.
    Trainable,
    /// It stays as it was initialised.
    Frozen,
    /// Running statistics: each slice's are averaged by weight, and no optimizer touches them.
    Buffer,
}

impl TensorRole {
    /// Whether training changes it.
    pub fn is_trained(self) -> bool {
        self != TensorRole::Frozen
    }
}

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its module path, dots between the parts.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Always `f32` in the parameter space.
    pub dtype: String,
    /// Where it starts in the parameter space, in elements.
    pub offset: u64,
    /// What training does with it.
    pub role: TensorRole,
}

impl Tensor {
    /// How many elements it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Why a list of tensors is no manifest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ManifestError {
    /// Nothing to train.
    #[error("the model has no tensor")]
    Empty,
    /// Names are what tensors are found by.
    #[error("two tensors are named `{0}`")]
    Duplicate(String),
    /// A tensor of no elements, or of more than can be counted.
    #[error("tensor `{name}` has the impossible shape {shape:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
}

/// A model's tensors and where each lies in the parameter space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Manifest {
    tensors: Vec<Tensor>,
}

impl Manifest {
    /// Lays out tensors, given as (name, shape, role), one after the other.
    ///
    /// # Errors
    /// A list that is empty, has a name twice or a shape whose size is zero or beyond 2^48 elements in all.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<u64>, TensorRole)>) -> Result<Manifest, ManifestError> {
        const LIMIT: u64 = 1 << 48;
        let (mut laid_out, mut names, mut offset) = (Vec::new(), HashSet::new(), 0u64);
        for (name, shape, role) in tensors {
            let elements = shape.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim));
            let end = elements.filter(|n| *n > 0).and_then(|n| offset.checked_add(n)).filter(|end| *end <= LIMIT);
            let Some(end) = end else { return Err(ManifestError::Shape { name, shape }) };
            if !names.insert(name.clone()) {
                return Err(ManifestError::Duplicate(name));
            }
            laid_out.push(Tensor { name, shape, dtype: "f32".into(), offset, role });
            offset = end;
        }
        if laid_out.is_empty() {
            return Err(ManifestError::Empty);
        }
        Ok(Manifest { tensors: laid_out })
    }

    /// The tensors, in order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// How many elements the parameter space has.
    pub fn elements(&self) -> u64 {
        self.tensors.last().map_or(0, |last| last.offset + last.elements())
    }

    /// SHA-256 over names, shapes and roles.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for tensor in &self.tensors {
            hash.update(format!("{}\0{:?}\0{:?}\n", tensor.name, tensor.shape, tensor.role));
        }
        hash.finalize().into()
    }

    /// The first difference from `other`, in words, or `None` if both are the same.
    pub fn difference(&self, other: &Manifest) -> Option<String> {
        let say = |t: Option<&Tensor>| t.map_or("nothing".into(), |t| format!("{} {:?} {:?}", t.name, t.shape, t.role));
        (0..self.tensors.len().max(other.tensors.len()))
            .find(|i| self.tensors.get(*i) != other.tensors.get(*i))
            .map(|i| format!("tensor {i} is {} here and {} there", say(self.tensors.get(i)), say(other.tensors.get(i))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[u64]) -> (String, Vec<u64>, TensorRole) {
        (name.into(), shape.into(), TensorRole::Trainable)
    }

    #[test]
    fn lays_tensors_out_in_order() {
        let manifest = Manifest::new([tensor("a", &[2, 3]), tensor("b", &[]), tensor("c", &[4])]).unwrap();
        assert_eq!(manifest.tensors().iter().map(|t| t.offset).collect::<Vec<_>>(), [0, 6, 7]);
        assert_eq!(manifest.elements(), 11);
    }

    #[test]
    fn refuses_what_cannot_be_laid_out() {
        assert_eq!(Manifest::new([]), Err(ManifestError::Empty));
        assert_eq!(Manifest::new([tensor("a", &[1]), tensor("a", &[1])]), Err(ManifestError::Duplicate("a".into())));
        for shape in [vec![0], vec![u64::MAX, 2], vec![1 << 49]] {
            assert!(matches!(Manifest::new([tensor("a", &shape)]), Err(ManifestError::Shape { .. })), "{shape:?}");
        }
    }

    #[test]
    fn names_the_first_difference() {
        let one = Manifest::new([tensor("a", &[2]), tensor("b", &[3])]).unwrap();
        let other = Manifest::new([tensor("a", &[2])]).unwrap();
        assert_eq!(one.difference(&one), None);
        assert_eq!(one.difference(&other).unwrap(), "tensor 1 is b [3] Trainable here and nothing there");
        assert_ne!(one.fingerprint(), other.fingerprint());
    }
}
