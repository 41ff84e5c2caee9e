//! Convoy's program as a user's own crate builds it: with a task of its own beside Convoy's. The end-to-end tests run
//! this.

use std::process::ExitCode;

use burn::{
    Dispatch, DispatchDevice,
    module::Module,
    nn::{Linear, LinearConfig},
    tensor::backend::Backend,
};
use convoy_proto::{config::Config, shared::Heap};
use convoy_worker::{
    data::DataInfo,
    task::{Labelled, Score, TASKS, Task, TaskEntry, cross_entropy},
};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Heap<MiMalloc> = Heap::new(MiMalloc);

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
    type Batch = Labelled;

    fn new(_config: &Config, data: &DataInfo) -> Result<Self, String> {
        let (shape, classes) = data.classes("softmax")?;
        Ok(SoftmaxTask { features: shape.iter().product(), classes })
    }

    fn model(&self, device: &DispatchDevice) -> Softmax<Dispatch> {
        Softmax { layer: LinearConfig::new(self.features, self.classes).init(device) }
    }

    fn score(&self, model: &Softmax<Dispatch>, batch: &Labelled) -> Score {
        cross_entropy(model.layer.forward(batch.features.clone()), batch.labels.clone())
    }
}

const ALL: [TaskEntry; TASKS.len() + 1] = {
    let mut all = [TaskEntry::new::<SoftmaxTask>("softmax", "one dense layer"); TASKS.len() + 1];
    let mut at = 0;
    while at < TASKS.len() {
        all[at] = TASKS[at];
        at += 1;
    }
    all
};

fn main() -> ExitCode {
    convoy_launcher::main(&ALL)
}
