//! Convoy's program as a user's own crate builds it: with a task of its own beside Convoy's. The end-to-end tests run
//! this.

use std::process::ExitCode;

use burn::{
    Dispatch, DispatchDevice,
    module::Module,
    nn::{Linear, LinearConfig},
    tensor::backend::Backend,
};
use convoy_proto::config::Config;
use convoy_worker::{
    data::DataInfo,
    task::{Batch, Score, TASKS, Task, TaskEntry, cross_entropy},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Softmax regression: the simplest classifier there is.
#[derive(Module, Debug)]
struct Softmax<B: Backend> {
    layer: Linear<B>,
}

struct SoftmaxTask {
    features: usize,
    classes: usize,
}

impl Task for SoftmaxTask {
    type Model = Softmax<Dispatch>;

    fn new(_config: &Config, data: &DataInfo) -> Result<Self, String> {
        Ok(SoftmaxTask { features: data.features(), classes: data.classes })
    }

    fn model(&self, device: &DispatchDevice) -> Softmax<Dispatch> {
        Softmax { layer: LinearConfig::new(self.features, self.classes).init(device) }
    }

    fn score(&self, model: &Softmax<Dispatch>, batch: &Batch) -> Score {
        cross_entropy(model.layer.forward(batch.features.clone()), batch.labels.clone())
    }
}

const ALL: &[TaskEntry] = &[TASKS[0], TASKS[1], TaskEntry::new::<SoftmaxTask>("softmax", "one dense layer")];

fn main() -> ExitCode {
    convoy_launcher::main(ALL)
}
