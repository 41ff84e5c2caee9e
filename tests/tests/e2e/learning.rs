//! That training learns what it should, and no more.

use std::fs;

use convoy_tests::{parameters, shared_data};

use crate::{SMALL, bench};

/// Generated digits are hard enough that a linear model fails on many of them.
#[test]
fn a_linear_model_stays_below_nine_tenths_on_digits() {
    let summary = bench().train("r", "--task softmax --epochs 8 --batch-size 500 --lr 0.002");
    let accuracy = summary["eval"]["accuracy"].as_f64().unwrap();
    assert!((0.5..0.9).contains(&accuracy), "{accuracy}");
}

/// The main job, as the README starts it.
#[test]
fn the_default_cnn_passes_97_percent_on_digits() {
    let summary = bench().train("r", "--workers 4 --sync");
    let accuracy = summary["eval"]["accuracy"].as_f64().unwrap();
    assert!(accuracy >= 0.97, "{accuracy}");
}

#[test]
fn the_default_cnn_passes_97_percent_on_mnist() {
    let Some(mnist) = shared_data("mnist") else { return };
    let summary = bench().train("r", &format!("--workers 2 --task cnn --data mnist:{} --epochs 4", mnist.display()));
    let accuracy = summary["eval"]["accuracy"].as_f64().unwrap();
    assert!(accuracy >= 0.97, "{accuracy}");
}

/// The WGPU path, on a GPU or on Mesa's rasteriser; under CI one of them must be there.
#[test]
fn wgpu_agrees_with_the_cpu() {
    let bench = bench();
    let train = "--workers 1 --steps 20 --optimizer sgd --lr 0.05 --batch-size 32";
    let ended = bench.run(&format!("--backend wgpu --name gpu {train} {SMALL}"));
    if ended.code == Some(3) && std::env::var_os("CI").is_none() {
        println!("SKIPPED: {}", ended.stderr);
        return;
    }
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    bench.train("cpu", &format!("{train} {SMALL}"));
    let worker = bench.summary("gpu")["workers"][0].clone();
    assert_eq!(worker["backend"], "wgpu");
    let device = worker["device"].as_str().unwrap();
    assert!(!device.is_empty() && !device.contains("processor"), "{device}");
    if fs::metadata("/dev/dri").is_err() {
        assert!(device.contains("llvmpipe"), "{device}");
    }
    assert_eq!(bench.summary("gpu")["exact"], true);
    let three = "--workers 3 --slices 4 --steps 6 --optimizer sgd --lr 0.05 --batch-size 32";
    for (name, size) in [("gpu-3", three), ("gpu-1", &three.replace("--workers 3", "--workers 1"))] {
        bench.succeed(&format!("--backend wgpu --name {name} {size} {SMALL}"));
    }
    let hash = |name: &str| bench.summary(name)["params_sha256"].clone();
    assert_eq!(hash("gpu-3"), hash("gpu-1"), "kernels are the same ones for all");
    let (gpu, cpu) = (parameters(&bench.run_dir("gpu")), parameters(&bench.run_dir("cpu")));
    for ((name, gpu), (_, cpu)) in gpu.iter().zip(&cpu) {
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let off = norm(&mut gpu.iter().zip(cpu).map(|(g, c)| f64::from(*g) - f64::from(*c)));
        let size = norm(&mut cpu.iter().map(|c| f64::from(*c)));
        assert!(off <= 1e-3 * size, "{name}: differs by {off} of {size}");
    }
}
