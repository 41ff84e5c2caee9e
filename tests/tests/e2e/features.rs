//! What every framework has: optimizers, schedules, groups, averages, early stopping, precision.

use std::fs;

use convoy_proto::config::{optimizer::rule_names, schedule};
use convoy_tests::{parameters, recomputed_sha256};

use crate::{SMALL, bench};

#[test]
fn every_optimizer_goes_with_every_schedule() {
    let bench = bench();
    for optimizer in rule_names() {
        for schedule in schedule::NAMES {
            let name = format!("{optimizer}-{schedule}");
            let how = format!("--optimizer {optimizer} --schedule {schedule} --clip-norm 5 --steps 10 --batch-size 32");
            let summary = bench.train(&name, &format!("--workers 2 {how} {SMALL} --eval-samples 100"));
            assert_eq!((summary["steps"].as_u64(), summary["skipped_steps"].as_u64()), (Some(10), Some(0)), "{name}");
            let rates: Vec<_> = bench.metrics(&name).iter().filter_map(|event| event["lr"].as_f64()).collect();
            assert_eq!(rates.len(), 10);
            let changes = rates.windows(2).any(|pair| pair[0] != pair[1]);
            assert_eq!(changes, schedule != "constant" && schedule != "warmup", "{name}: {rates:?}");
        }
    }
}

#[test]
fn every_optimizer_learns_digits() {
    let bench = bench();
    for optimizer in rule_names() {
        let model = "--task cnn --set model.channels=[8,16] --set model.hidden=[64]";
        let how = format!("--optimizer {optimizer} --epochs 2 --batch-size 20 --eval-every 0 --schedule linear");
        let summary = bench.train(optimizer, &format!("--workers 2 {how} {model}"));
        let accuracy = summary["eval"]["accuracy"].as_f64().unwrap();
        assert!(accuracy > 0.95, "{optimizer}: {accuracy}");
    }
}

#[test]
fn accumulation_gives_the_bits_of_the_whole_batch() {
    let bench = bench();
    let whole = bench.train("whole", &format!("--workers 1 --slices 4 --batch-size 80 --steps 4 {SMALL}"));
    let parts = "--workers 2 --slices 2 --batch-size 40 --grad-accum 2 --steps 4";
    let parts = bench.train("parts", &format!("{parts} {SMALL}"));
    assert_eq!(whole["params_sha256"], parts["params_sha256"]);
}

#[test]
fn patience_ends_a_run_at_the_same_step_and_the_best_is_kept() {
    let bench = bench();
    // So high a rate that the loss rises soon.
    let how =
        "--optimizer sgd --lr 3 --steps 400 --eval-every 10 --eval-samples 200 --patience 2 --keep-best --ema 0.9";
    let model = "--task mlp --set model.hidden=[16] --slices 2";
    let train = |workers: u32| bench.train(&format!("w{workers}"), &format!("--workers {workers} {how} {model}"));
    let (one, two) = (train(1), train(2));
    for field in ["steps", "params_sha256", "eval", "best", "ema"] {
        assert_eq!(one[field], two[field], "{field}");
    }
    assert_eq!((&one["stopped_early"], &one["status"]), (&true.into(), &"done".into()));
    let (steps, best) = (one["steps"].as_u64().unwrap(), one["best"]["step"].as_u64().unwrap());
    assert!(steps < 400 && best + 20 == steps, "best at {best}, ended at {steps}");
    for (which, score) in [("best", &one["best"]), ("ema", &one["ema"]["eval"]), ("final", &one["eval"])] {
        let again = bench.succeed(&format!("eval w1 --json --weights {which}")).stdout;
        let again: serde_json::Value = serde_json::from_str(&again).unwrap();
        assert_eq!((&again["loss"], &again["accuracy"]), (&score["loss"], &score["accuracy"]), "{which}");
    }
    let refusal = bench.run("eval w1 --weights worst");
    assert_eq!(refusal.code, Some(2), "{}", refusal.stderr);
}

#[test]
fn frozen_tensors_stay_and_patterns_must_fit() {
    let bench = bench();
    let group = r#"optimizer.groups=[{pattern="layers.0.*",frozen=true}]"#;
    for steps in [1, 6] {
        bench.train(&format!("s{steps}"), &format!("--steps {steps} --set {group} {SMALL}"));
    }
    let (early, late) = (parameters(&bench.run_dir("s1")), parameters(&bench.run_dir("s6")));
    for ((name, early), (_, late)) in early.iter().zip(&late) {
        assert_eq!(early == late, name.starts_with("layers.0."), "{name}");
    }
    assert_eq!(bench.json("s6", "manifest.json")[0]["role"], "frozen");
    let summary = bench.summary("s6");
    assert_eq!(summary["params_sha256"], recomputed_sha256(&bench.run_dir("s6")));
    assert!(
        summary["workers"][0]["bytes_pushed"].as_u64() < summary["parameters"].as_u64(),
        "frozen tensors are not pushed"
    );
    let refusal = bench.run(&format!("--backend cpu --set optimizer.no_decay=[\"haed.*\"] {SMALL}"));
    assert_eq!(refusal.code, Some(2));
    assert!(refusal.stderr.contains("fits no tensor; there are layers.0.weight"), "{}", refusal.stderr);
}

#[test]
fn sixteen_bits_learn_nearly_the_same() {
    let bench = bench();
    let train = |name: &str, precision: &str| {
        let how = "--workers 2 --steps 150 --lr 0.003 --eval-samples 1000";
        let summary = bench.train(name, &format!("{how} --precision {precision} {SMALL}"));
        summary["eval"]["loss"].as_f64().unwrap()
    };
    let full = train("f32", "f32");
    for (name, precision) in [("bf16", "bf16"), ("f16", "f16")] {
        let loss = train(name, precision);
        assert!((loss - full).abs() < 0.1 * full, "{name}: {loss}, in 32 bits {full}");
    }
    let scales: Vec<_> = bench.metrics("f16").iter().filter_map(|event| event["loss_scale"].as_f64()).collect();
    assert_eq!(scales.len(), 150);
    assert!(scales.iter().all(|scale| *scale > 1.0 && scale.log2().fract() == 0.0), "{scales:?}");
    assert!(bench.metrics("bf16").iter().filter_map(|event| event["loss_scale"].as_f64()).all(|scale| scale == 1.0));
}

#[test]
fn a_loss_scale_finds_its_place_without_counting_as_divergence() {
    let bench = bench();
    // 2^24 times the loss is beyond 16 bits: the scale halves until it fits.
    let how = "--precision f16 --set loss_scale=16777216 --set max_skipped=2 --steps 40 --optimizer sgd --lr 0.1";
    let summary = bench.train("r", &format!("{how} {SMALL} --eval-samples 100"));
    let skipped = summary["skipped_steps"].as_u64().unwrap();
    assert!((3..30).contains(&skipped), "{skipped} steps were skipped");
    assert!(summary["final_loss"].as_f64().unwrap() < 2.4);
}

#[test]
fn every_configuration_that_ships_runs() {
    let bench = bench();
    let configs = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs");
    fs::write(bench.path().join("book.txt"), "All work and no play makes a dull book. ".repeat(200)).unwrap();
    let rows: String = (0..300).map(|i| format!("{},{},{}\n", i % 7, i % 11, i % 2)).collect();
    fs::write(bench.path().join("table.csv"), rows).unwrap();
    let cifar: Vec<u8> =
        (0..20u32 * 3073).map(|i| if i % 3073 == 0 { (i / 3073 % 10) as u8 } else { i as u8 }).collect();
    for file in ["data_batch_1.bin", "test_batch.bin"] {
        fs::write(bench.path().join(file), &cifar).unwrap();
    }
    let small = |config: &str, data: &str| {
        let summary =
            bench.train(config, &format!("--config {configs}/{config}.toml --steps 2 --eval-samples 50 {data}"));
        assert_eq!(summary["steps"].as_u64(), Some(2), "{config}");
    };
    small("digits-cnn", "");
    small("digits-mlp", "");
    small("table-mlp", "--data csv:table.csv");
    small("gpt-small", "--data text:book.txt --batch-size 8");
    // The large ones are too slow for a processor: everything but the training.
    for (config, data) in [("gpt-10m", "text:book.txt"), ("resnet18", "cifar10:."), ("mnist-cnn", "digits")] {
        let plan = bench.succeed(&format!("--config {configs}/{config}.toml --backend cpu --dry-run --data {data}"));
        assert!(plan.stdout.contains("parameters, "), "{}", plan.stdout);
    }
}
