//! The loops that every gradient passes: sums, updates and codecs, on one block, by one core.
//!
//! `cargo bench -p convoy-proto`, beside a plain copy of as many bytes.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;

use convoy_proto::{
    blocks::BLOCK_ELEMENTS,
    codec::Codec,
    config::{Config, layers::Layers},
    optimizer::{Update, rule},
    sum,
};
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};

fn values(seed: f32) -> Vec<f32> {
    (0..BLOCK_ELEMENTS).map(|at| (at as f32 * 0.37 + seed).sin()).collect()
}

/// A group that counts bytes read and written, so many for each element.
fn group<'a>(criterion: &'a mut Criterion, name: &str, bytes_per_element: u64) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Bytes(BLOCK_ELEMENTS * bytes_per_element));
    group
}

fn sums(criterion: &mut Criterion) {
    let (mut left, right) = (values(1.0), values(2.0));
    let payload: Vec<u8> = [&[0u8], sum::payload_of(&right)].concat();
    let (aligned, shifted) = (sum::payload_of(&right), &payload[1..]);
    group(criterion, "copy", 8).bench_function("memcpy", |b| b.iter(|| black_box(&mut left).copy_from_slice(&right)));
    let mut adds = group(criterion, "add", 12);
    adds.bench_function("values", |b| b.iter(|| sum::add(black_box(&mut left), &right)));
    adds.bench_function("payload", |b| b.iter(|| sum::add_payload(black_box(&mut left), aligned)));
    adds.bench_function("payload at an odd address", |b| b.iter(|| sum::add_payload(black_box(&mut left), shifted)));
    adds.bench_function("two payloads", |b| b.iter(|| sum::of_payloads(black_box(aligned), shifted)));
    adds.finish();
    let mut scans = group(criterion, "scan", 4);
    scans.bench_function("all finite", |b| b.iter(|| sum::all_finite(black_box(&right))));
    scans.bench_function("sum of squares", |b| b.iter(|| sum::sum_of_squares(black_box(&right))));
    scans.finish();
    let mut means = group(criterion, "divide", 8);
    means.bench_function("by 4", |b| b.iter(|| sum::divide(black_box(&mut left), 4.0)));
    means.bench_function("by 3", |b| b.iter(|| sum::divide(black_box(&mut left), 3.0)));
    means.finish();
}

fn config(optimizer: &str) -> Config {
    let text = format!("[optimizer]\nname = '{optimizer}'");
    Layers::new().toml("bench", &text).unwrap().raw().unwrap().resolve(1).unwrap()
}

fn updates(criterion: &mut Criterion) {
    let (gradient, parameters) = (values(3.0), values(4.0));
    for name in ["sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw", "lamb", "lion"] {
        let rule = rule(config(name).optimizer.rule);
        let mut state: Vec<Vec<f32>> = (0..rule.slots()).map(|_| vec![0.0; gradient.len()]).collect();
        let mut updated = vec![0.0; gradient.len()];
        let bytes = 12 + 8 * rule.slots() as u64;
        group(criterion, "update", bytes).bench_function(name, |b| {
            b.iter(|| {
                rule.apply(Update {
                    updates: 10,
                    learning_rate: 1e-3,
                    weight_decay: 0.01,
                    gradient: black_box(&gradient),
                    parameters: &parameters,
                    updated: &mut updated,
                    state: &mut state,
                });
            });
        });
    }
}

fn codecs(criterion: &mut Criterion) {
    let original = values(5.0);
    for codec in [Codec::Bf16, Codec::F16, Codec::Int8, Codec::TopK(0.01)] {
        let mut both = group(criterion, &format!("codec {codec}"), 4);
        let mut gradient = original.clone();
        both.bench_function("encode", |b| {
            b.iter(|| {
                gradient.copy_from_slice(&original);
                codec.encode(black_box(&mut gradient))
            });
        });
        let encoded = codec.encode(&mut original.clone());
        both.bench_function("decode", |b| b.iter(|| codec.encoding().decode(black_box(&encoded), original.len())));
        both.finish();
    }
}

criterion_group!(hot_loops, sums, updates, codecs);
criterion_main!(hot_loops);
