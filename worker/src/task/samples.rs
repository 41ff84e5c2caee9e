//! Samples on a device, by kind: what a task's `score` is given.

use burn::{
    Dispatch, DispatchDevice,
    tensor::{DType, Int, Tensor, TensorCreationOptions, TensorData},
};

use crate::{
    data::{HostBatch, Wanted},
    parameters::Values,
};

/// A kind of samples on a device.
pub trait Samples: Sized {
    /// What data sets are asked for.
    const WANTED: Wanted;

    /// Brings samples onto a device; features have the given type.
    fn upload(batch: HostBatch, place: &Place) -> Self;

    /// By row of a score's output, what it should have been: a class, or nothing if it is a number.
    fn truth(batch: &HostBatch) -> Vec<i32>;
}

/// Where tensors are made, and of which type.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device, with or without autodiff.
    pub device: DispatchDevice,
    /// The type of features and parameters.
    pub dtype: DType,
}

impl Place {
    /// A tensor of numbers, in this place's type.
    pub fn floats<const D: usize>(&self, values: impl Into<Values>, shape: [usize; D]) -> Tensor<Dispatch, D> {
        let options = TensorCreationOptions::new(self.device.clone()).with_dtype(self.dtype);
        Tensor::from_data(values.into().into_data(shape), options)
    }

    fn ints<const D: usize>(&self, values: Vec<i32>, shape: [usize; D]) -> Tensor<Dispatch, D, Int> {
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }
}

/// Samples with a class each.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// `[samples, features]`, channel-major.
    pub features: Tensor<Dispatch, 2>,
    /// `[samples]`, below the number of classes.
    pub labels: Tensor<Dispatch, 1, Int>,
}

impl Samples for Labelled {
    const WANTED: Wanted = Wanted::Classes;

    fn upload(batch: HostBatch, place: &Place) -> Self {
        let (rows, features) = (batch.rows, batch.features.len() / batch.rows.max(1));
        let labels = place.ints(batch.labels, [rows]);
        Labelled { features: place.floats(batch.features, [rows, features]), labels }
    }

    fn truth(batch: &HostBatch) -> Vec<i32> {
        batch.labels.clone()
    }
}

/// Samples with a number each.
#[derive(Clone, Debug)]
pub struct Measured {
    /// `[samples, features]`, channel-major.
    pub features: Tensor<Dispatch, 2>,
    /// `[samples, 1]`, standardised.
    pub targets: Tensor<Dispatch, 2>,
}

impl Samples for Measured {
    const WANTED: Wanted = Wanted::Numbers;

    fn upload(batch: HostBatch, place: &Place) -> Self {
        let (rows, features) = (batch.rows, batch.features.len() / batch.rows.max(1));
        // A target keeps all its digits: the loss is computed in 32 bits.
        let exact = Place { dtype: DType::F32, ..place.clone() };
        let targets = exact.floats(batch.targets, [rows, 1]);
        Measured { features: place.floats(batch.features, [rows, features]), targets }
    }

    fn truth(_batch: &HostBatch) -> Vec<i32> {
        Vec::new()
    }
}

/// Windows of text.
#[derive(Clone, Debug)]
pub struct Sequences {
    /// `[windows, context]`.
    pub tokens: Tensor<Dispatch, 2, Int>,
    /// `[windows × context]`: the token after each.
    pub next: Tensor<Dispatch, 1, Int>,
}

/// The rows of a batch of windows, a context and one token each.
fn windows(batch: &HostBatch) -> impl Iterator<Item = &[i32]> {
    batch.tokens.chunks_exact((batch.tokens.len() / batch.rows.max(1)).max(1))
}

impl Samples for Sequences {
    const WANTED: Wanted = Wanted::Tokens;

    fn upload(batch: HostBatch, place: &Place) -> Self {
        let seen: Vec<i32> = windows(&batch).flat_map(|row| &row[..row.len() - 1]).copied().collect();
        let context = seen.len() / batch.rows.max(1);
        let next = Sequences::truth(&batch);
        let all = next.len();
        Sequences { tokens: place.ints(seen, [batch.rows, context]), next: place.ints(next, [all]) }
    }

    fn truth(batch: &HostBatch) -> Vec<i32> {
        windows(batch).flat_map(|row| &row[1..]).copied().collect()
    }
}
