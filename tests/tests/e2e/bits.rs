//! Exactness: one result, bit for bit, for any number of workers and servers.

use std::{fs, path::Path};

use convoy_tests::Bench;

use crate::bench;

const OPTIMIZERS: [&str; 3] = ["--optimizer sgd --lr 0.1", "--optimizer adamw", "--optimizer lamb"];
const CLIPPING: [&str; 2] = ["", "--clip-norm 0.3"];
/// What else could tell one way of dividing the work from another.
const OTHERS: [&str; 4] = [
    "--optimizer momentum --ema 0.9 --last-batch drop",
    "--optimizer lamb --clip-norm 0.5 --grad-accum 2 --last-batch wrap",
    "--local-steps 2 --optimizer adamw --clip-norm 0.5",
    "--optimizer adamw --clip-value 0.01 --schedule cosine --keep-best --eval-every 2",
];

/// 100 pictures to train on, so that the fifth step of an epoch has four samples for eight slices, and 40 held out.
fn pictures(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let idx = |dims: &[u32], data: &[u8]| {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
        [bytes, data.to_vec()].concat()
    };
    for (prefix, count) in [("train", 100u32), ("t10k", 40)] {
        let pixels: Vec<u8> = (0..count * 784).map(|i| (i.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
        let labels: Vec<u8> = (0..count).map(|i| (i * 7 % 10) as u8).collect();
        fs::write(dir.join(format!("{prefix}-images-idx3-ubyte")), idx(&[count, 28, 28], &pixels)).unwrap();
        fs::write(dir.join(format!("{prefix}-labels-idx1-ubyte")), idx(&[count], &labels)).unwrap();
    }
}

/// One result, whatever the number of workers and servers.
fn all_agree(bench: &Bench, name: &str, how: &str, sizes: impl Iterator<Item = (u32, u32)>) {
    let mut first = None;
    for (workers, servers) in sizes {
        let name = format!("{name}w{workers}s{servers}");
        let size = format!("--workers {workers} --servers {servers} --slices 8 --batch-size 24 --steps 6");
        let summary = bench.train(&name, &format!("{size} {how}"));
        assert_eq!(summary["exact"], true);
        assert!(summary["params_sha256"].is_string());
        let result = ["params_sha256", "eval", "ema", "best", "final_loss"].map(|field| summary[field].clone());
        assert_eq!(*first.get_or_insert(result.clone()), result, "{how}: {workers} workers, {servers} servers");
    }
}

/// One result of a model for 1 to 4 workers and 1 to 3 servers, with every optimizer, clipping or not.
fn one_result(model: &str) {
    let bench = bench();
    pictures(&bench.path().join("pictures"));
    fs::write(bench.path().join("t.txt"), "Exactly the same, whoever adds it up. ".repeat(200)).unwrap();
    for (o, optimizer) in OPTIMIZERS.iter().enumerate() {
        for (c, clipping) in CLIPPING.iter().enumerate() {
            let sizes = (1..=4).flat_map(|workers| (1..=3).map(move |servers| (workers, servers)));
            all_agree(
                &bench,
                &format!("o{o}c{c}"),
                &format!("{model} {optimizer} {clipping} --eval-samples 40"),
                sizes,
            );
        }
    }
    for (o, other) in OTHERS.iter().enumerate() {
        let sizes = [(1, 1), (2, 3), (3, 1), (4, 2)].into_iter();
        all_agree(&bench, &format!("x{o}"), &format!("{model} {other} --eval-samples 40"), sizes);
    }
}

#[test]
fn an_mlp_with_dropout_is_exact() {
    one_result("--data mnist:pictures --task mlp --set model.hidden=[24] --set model.dropout=0.2");
}

#[test]
fn a_cnn_is_exact() {
    one_result("--data mnist:pictures --task cnn --set model.hidden=[16] --set model.channels=[4,6]");
}

#[test]
fn a_resnet_with_batch_statistics_is_exact() {
    one_result("--data mnist:pictures --task resnet --set model.channels=[4,8] --set model.blocks=[1,1]");
}

#[test]
fn a_gpt_with_dropout_is_exact() {
    let size = "--set model.layers=2 --set model.width=16 --set model.heads=2 --set model.context=16";
    one_result(&format!("--data text:t.txt {size} --set model.dropout=0.2"));
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
