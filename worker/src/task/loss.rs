//! Losses, summed over their rows and computed in 32 bits whatever the model's type.

use burn::{
    Dispatch,
    tensor::{DType, Int, Tensor, activation::log_softmax},
};

use super::Score;

/// The cross entropy of logits and classes.
pub fn cross_entropy(logits: Tensor<Dispatch, 2>, labels: Tensor<Dispatch, 1, Int>) -> Score {
    let [rows, _] = logits.dims();
    let logits = logits.cast(DType::F32);
    let chosen = log_softmax(logits.clone(), 1).gather(1, labels.reshape([rows, 1]));
    Score { loss_sum: chosen.sum().neg(), weight: rows as f64, output: logits }
}

/// The squared error of predictions; both are `[rows, 1]`.
pub fn squared_error(predictions: Tensor<Dispatch, 2>, targets: Tensor<Dispatch, 2>) -> Score {
    let [rows, _] = predictions.dims();
    let output = predictions.cast(DType::F32);
    let off = output.clone() - targets;
    Score { loss_sum: (off.clone() * off).sum(), weight: rows as f64, output }
}
