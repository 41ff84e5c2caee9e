//! Exactness: one result, bit for bit, for any number of workers and servers.

use std::fs;

use crate::bench;

/// Models with everything that could tell one way of dividing the work from another: dropout and batch statistics, too.
const TASKS: [&str; 4] = [
    "--task mlp --set model.hidden=[24] --set model.dropout=0.2",
    "--task cnn --set model.hidden=[16] --set model.channels=[4,6]",
    "--task resnet --set model.channels=[4,8] --set model.blocks=[1,1]",
    "--data text:t.txt --set model.layers=2 --set model.width=16 --set model.heads=2 --set model.context=16 \
     --set model.dropout=0.2",
];
const OPTIMIZERS: [&str; 4] = [
    "--optimizer momentum --ema 0.9",
    "--optimizer adamw --clip-norm 0.5 --schedule cosine",
    "--optimizer lamb --clip-norm 0.5 --grad-accum 2",
    "--local-steps 2 --optimizer adamw --clip-norm 0.5",
];

#[test]
fn one_result_for_any_number_of_workers_and_servers() {
    let bench = bench();
    fs::write(bench.path().join("t.txt"), "Exactly the same, whoever adds it up. ".repeat(200)).unwrap();
    for (t, task) in TASKS.iter().enumerate() {
        for (o, optimizer) in OPTIMIZERS.iter().enumerate() {
            let mut results = Vec::new();
            for (workers, servers) in [(1, 1), (2, 3), (3, 1), (4, 2)] {
                let name = format!("t{t}o{o}w{workers}s{servers}");
                let size = format!("--workers {workers} --servers {servers} --slices 4 --batch-size 24 --steps 5");
                let how = format!("{size} {task} {optimizer} --eval-samples 100");
                let summary = bench.train(&name, &how);
                assert_eq!(summary["exact"], true);
                results.push(["params_sha256", "eval", "ema", "final_loss"].map(|field| summary[field].clone()));
            }
            assert!(results[0][0].is_string());
            assert!(results.iter().all(|result| *result == results[0]), "{task} {optimizer}: {results:?}");
        }
    }
}

#[test]
fn the_same_command_twice_gives_the_same_bits_and_another_seed_others() {
    let bench = bench();
    let train = |name: &str, seed: u32| {
        let arguments = format!("--workers 3 --steps 4 --seed {seed} {}", crate::SMALL);
        bench.train(name, &arguments)["params_sha256"].clone()
    };
    let first = train("a", 1);
    assert_eq!(first, train("b", 1));
    assert_ne!(first, train("c", 2));
}

#[test]
fn ragged_batches_and_empty_slices_change_nothing() {
    let bench = bench();
    // 20 000 samples in batches of 9 999: the third step of an epoch has two samples for eight slices.
    let train = |workers: u32| {
        let arguments = format!("--workers {workers} --slices 8 --batch-size 9999 --epochs 1 {}", crate::SMALL);
        bench.train(&format!("w{workers}"), &arguments)
    };
    let (one, three) = (train(1), train(3));
    assert_eq!((one["steps"].as_u64(), one["samples"].as_u64()), (Some(3), Some(20_000)));
    assert_eq!(one["params_sha256"], three["params_sha256"]);
}
