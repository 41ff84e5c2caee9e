//! Dense layers that predict a number, by the mean squared error of the standardised target.

use burn::{Dispatch, DispatchDevice};
use convoy_proto::config::Config;

use super::{
    Measured, Score, Task,
    mlp::{Mlp, Shape},
    squared_error,
};
use crate::data::DataInfo;

/// The task.
#[derive(Debug)]
pub struct RegressionTask {
    shape: Shape,
}

impl Task for RegressionTask {
    type Model = Mlp<Dispatch>;
    type Batch = Measured;

    fn new(config: &Config, data: &DataInfo) -> Result<Self, String> {
        Ok(RegressionTask { shape: Shape::new("regression", &config.model, data.numbers("regression")?, 1)? })
    }

    fn model(&self, device: &DispatchDevice) -> Mlp<Dispatch> {
        self.shape.model(device)
    }

    fn score(&self, model: &Mlp<Dispatch>, batch: &Measured) -> Score {
        squared_error(model.forward(batch.features.clone()), batch.targets.clone())
    }
}
