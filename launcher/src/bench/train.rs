//! Training on workers beside a plain loop: what of the loop's speed a cluster on the same cores, or the same device, keeps.

use std::path::Path;

use serde_json::Value;

use super::{Row, cell, shapes, shapes::Shape, show, tell};
use crate::{args::BenchTrainArgs, machine, outcome::Failure};

/// Commits before the clock starts.
const WARM: usize = 10;
/// Commits that are timed at least.
const LEAST: f64 = 30.0;

/// Measures all tasks.
pub fn train(args: &BenchTrainArgs) -> Result<(), Failure> {
    let place = cell::place()?;
    shapes::write_data(place.path())?;
    let (mut rows, mut raw): (Vec<Row>, Row) = (Vec::new(), Vec::new());
    for task in &args.tasks {
        let shape = shapes::find(task)?.with_batch(args.batch);
        let flags = shape.flags(place.path());
        let (threads, alone) = fastest(args, place.path(), (&shape, &flags))?;
        raw.push((shape.task, alone.into()));
        for workers in &args.workers {
            rows.push(row(args, (&shape, &flags), *workers, (threads, alone))?);
        }
    }
    show(rows, raw, args.show)
}

/// The fastest plain loop, in samples a second, and its threads. A GPU computes whatever the threads.
fn fastest(args: &BenchTrainArgs, place: &Path, (shape, flags): (&Shape, &[String])) -> Result<(usize, f64), Failure> {
    let cores = machine::cores();
    let counts: Vec<usize> = match args.backend.as_str() {
        "cpu" => std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < cores).chain([cores]).collect(),
        _ => vec![cores],
    };
    let mut best = (0, 0.0);
    for threads in counts {
        tell(&format!("{}, a plain loop, {threads} threads", shape.task));
        let loop_of = ["bench", "plain", "--threads"].map(String::from).into_iter();
        let mut arguments: Vec<String> = loop_of.chain([threads.to_string()]).collect();
        arguments.extend([
            "--warm".into(),
            warm(args).to_string(),
            "--seconds".into(),
            args.seconds.to_string(),
            "--batch-size".into(),
            shape.batch.to_string(),
        ]);
        arguments.extend(["--backend".into(), args.backend.clone()]);
        arguments.extend_from_slice(flags);
        let said = cell::launcher(place, &arguments)?;
        let rate: f64 = said.trim().parse().map_err(|_| Failure::Failed(format!("a plain loop said {said}")))?;
        if rate > best.1 {
            best = (threads, rate);
        }
    }
    Ok(best)
}

/// Seconds that are not timed.
fn warm(args: &BenchTrainArgs) -> f64 {
    args.warm.unwrap_or(if args.backend == "cpu" { 1.0 } else { 8.0 })
}

fn row(
    args: &BenchTrainArgs,
    (shape, flags): (&Shape, &[String]),
    workers: u32,
    (threads, alone): (usize, f64),
) -> Result<Row, Failure> {
    tell(&format!("{}, {workers} workers", shape.task));
    let batch = shape.batch * workers;
    // As many steps as a cluster without any loss makes in the time.
    let steps = WARM as u64 + (alone * (warm(args) + args.seconds) / f64::from(batch)).max(LEAST) as u64;
    let text = format!("--sync --workers {workers} --batch-size {batch} --steps {steps} --backend {}", args.backend);
    let arguments: Vec<String> = text.split_whitespace().map(String::from).chain(flags.iter().cloned()).collect();
    let trained = cell::run(&arguments)?;
    let first = trained.commits.first().map_or(0.0, |first| first.1);
    let cold = trained.commits.iter().filter(|(_, seconds)| seconds - first < warm(args)).count();
    // If the cluster was through sooner than the loop made believe, its second half counts.
    let rounds = trained.rounds(cold.max(WARM).min(trained.commits.len() / 2));
    let rate = rounds.len() as f64 * f64::from(batch) / rounds.iter().sum::<f64>();
    let parameters = trained.summary["parameters"].as_u64().unwrap_or(shape.parameters);
    Ok(vec![
        ("task", Value::from(shape.task)),
        ("workers", workers.into()),
        ("params", parameters.into()),
        ("batch", batch.into()),
        ("threads", threads.into()),
        ("samples_per_second", rate.into()),
        ("efficiency", (rate / alone).into()),
    ])
}
