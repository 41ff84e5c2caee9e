//! Exactness: one result, bit for bit, for any number of workers and servers.

use crate::bench;

const TASKS: [&str; 2] =
    ["--task mlp --set model.hidden=[24]", "--task cnn --set model.hidden=[16] --set model.channels=[4,6]"];
const OPTIMIZERS: [&str; 2] = ["--optimizer momentum", "--optimizer adamw --clip-norm 0.5"];

#[test]
fn one_result_for_any_number_of_workers_and_servers() {
    let bench = bench();
    for (t, task) in TASKS.iter().enumerate() {
        for (o, optimizer) in OPTIMIZERS.iter().enumerate() {
            let mut results = Vec::new();
            for workers in 1..=4 {
                for servers in [1, 3] {
                    let name = format!("t{t}o{o}w{workers}s{servers}");
                    let size = format!("--workers {workers} --servers {servers} --slices 8 --batch-size 40 --steps 5");
                    let summary = bench.train(&name, &format!("{size} {task} {optimizer}"));
                    assert_eq!(summary["exact"], true);
                    results.push((
                        summary["params_sha256"].clone(),
                        summary["eval"]["loss"].clone(),
                        summary["final_loss"].clone(),
                    ));
                }
            }
            assert!(results[0].0.is_string());
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
