//! A cluster of one worker does, bit for bit, what a plain training loop in burn does.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking and says why it skips")]

use burn::{
    Dispatch, DispatchDevice,
    module::{AutodiffModule, Module, Param},
    nn::{Linear, LinearConfig, loss::CrossEntropyLossConfig},
    optim::{GradientsParams, Optimizer, SgdConfig},
    tensor::{Int, Tensor, TensorData, activation::relu, backend::Backend},
};
use convoy_proto::{
    config::layers::Layers,
    ids::{SliceId, Step},
};
use convoy_tests::{Bench, parameters};
use convoy_worker::{
    data,
    device::{self, DeviceName},
    step::Feed,
    task,
};

const STEPS: u64 = 20;
const LR: f64 = 0.1;

#[derive(Module, Debug)]
struct Plain<B: Backend> {
    first: Linear<B>,
    second: Linear<B>,
}

fn linear(
    device: &DispatchDevice,
    [inputs, outputs]: [usize; 2],
    weight: Vec<f32>,
    bias: Vec<f32>,
) -> Linear<Dispatch> {
    let mut layer = LinearConfig::new(inputs, outputs).init(device);
    layer.weight = Param::from_data(TensorData::new(weight, [inputs, outputs]), device);
    layer.bias = Some(Param::from_data(TensorData::new(bias, [outputs]), device));
    layer
}

fn values<const D: usize>(tensor: Tensor<Dispatch, D>) -> Vec<f32> {
    tensor.into_data().into_vec().unwrap()
}

#[test]
fn one_worker_is_a_plain_loop() {
    let settings = format!("task = 'mlp'\nbatch_size = 64\nsteps = {STEPS}\n[model]\nhidden = [32]");
    let config = Layers::new().toml("test", &settings).unwrap().raw().unwrap().resolve(1).unwrap();
    let entry = task::find(task::TASKS, "mlp").unwrap();
    let data = data::open(&config, entry.wanted).unwrap();
    let replica = entry.open(&config, data.info(), DeviceName::Cpu).unwrap();
    let mut initial = replica.initial(config.seed).into_iter();
    let mut next = || initial.next().unwrap().to_vec();

    let device = DispatchDevice::autodiff(device::open(DeviceName::Cpu).unwrap());
    let mut model =
        Plain { first: linear(&device, [784, 32], next(), next()), second: linear(&device, [32, 10], next(), next()) };
    let mut optimizer = SgdConfig::new().init::<Dispatch, Plain<Dispatch>>();
    let loss = CrossEntropyLossConfig::new().init(&device);
    let mut feed = Feed::new(data, &config, replica.manifest());
    for step in 0..STEPS {
        let batch = feed.slice(Step(step), SliceId(0)).unwrap();
        let rows = batch.rows;
        let x = Tensor::<Dispatch, 2>::from_data(TensorData::new(batch.features, [rows, 784]), &device);
        let y = Tensor::<Dispatch, 1, Int>::from_data(TensorData::new(batch.labels, [rows]), &device);
        let logits = model.second.forward(relu(model.first.forward(x)));
        let gradients = loss.forward(logits, y).backward();
        model = optimizer.step(LR, model.clone(), GradientsParams::from_grads(gradients, &model));
    }
    let plain = model.valid();
    let [first, second] =
        [plain.first, plain.second].map(|layer| [values(layer.weight.val()), values(layer.bias.unwrap().val())]);

    let bench = Bench::new(env!("CARGO_BIN_EXE_cluster"));
    let same = format!("--workers 1 --task mlp --set model.hidden=[32] --batch-size 64 --steps {STEPS}");
    bench.train("r", &format!("{same} --optimizer sgd --lr {LR} --eval-every 0"));
    let cluster = parameters(&bench.run_dir("r"));
    let names: Vec<_> = cluster.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]);
    for ((name, ours), plain) in cluster.iter().zip(first.into_iter().chain(second)) {
        let differ = ours.iter().zip(&plain).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        assert_eq!(differ, 0, "{differ} of {} elements of {name} differ", ours.len());
    }
}
