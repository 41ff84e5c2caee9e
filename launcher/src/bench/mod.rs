//! `launcher bench`: how fast this machine exchanges, aggregates and trains, beside its raw limits in the same run.
//!
//! What is measured is the product: a cell of a table is a run of this program on the task `synthetic`, whose workers
//! check every parameter that they are given, or on a real task. Only raw limits are measured here: a copy, a connection.

use std::fmt::Write;

use convoy_proto::codec::Codec;
use convoy_worker::task::TaskEntry;
use serde_json::json;

use crate::{
    args::{BenchArgs, BenchCommand, ShowArgs},
    cli,
    outcome::Failure,
    table::{Row, cell_text, object, table},
};

mod cell;
mod exchange;
mod plain;
mod plot;
pub mod raw;
mod server;
mod shapes;
mod train;

/// Measures.
///
/// # Errors
/// A run that does not end well.
pub fn bench(args: &BenchArgs, tasks: &[TaskEntry]) -> Result<(), Failure> {
    check(&args.what)?;
    match &args.what {
        BenchCommand::Net(args) => exchange::net(args),
        BenchCommand::Round(args) => exchange::rounds(args),
        BenchCommand::Train(args) => train::train(args),
        BenchCommand::Server(args) => server::server(args),
        BenchCommand::Plain(args) => plain::plain(args, tasks),
    }
}

/// What can be measured at most: beyond that it is a slip.
const MOST_MIB: f64 = 1_048_576.0;

fn check(what: &BenchCommand) -> Result<(), Failure> {
    let usage = |problem: String| Err(Failure::Usage(problem));
    let (mib, counts): (&[f64], Vec<u32>) = match what {
        BenchCommand::Net(args) | BenchCommand::Round(args) => {
            let ways = ["shm", "grpc"];
            if let Some(other) = args.transport.iter().find(|way| !ways.contains(&way.as_str())) {
                return usage(format!("--transport {other}: there is shm, grpc"));
            }
            if let Some(problem) = args.codec.iter().find_map(|codec| codec.parse::<Codec>().err()) {
                return usage(format!("--codec: {problem}"));
            }
            (&args.mib, args.workers.iter().chain(&args.servers).copied().collect())
        }
        BenchCommand::Train(args) => {
            let tasks = ["mlp", "cnn", "gpt"];
            if let Some(other) = args.tasks.iter().find(|task| !tasks.contains(&task.as_str())) {
                return usage(format!("--tasks {other}: there is {}", tasks.join(", ")));
            }
            (&[], args.workers.iter().copied().chain(args.batch).collect())
        }
        BenchCommand::Server(_) | BenchCommand::Plain(_) => (&[], Vec::new()),
    };
    if let Some(size) = mib.iter().find(|size| !(**size > 0.0 && **size <= MOST_MIB)) {
        return usage(format!("--mib {size}: must be above 0, and {MOST_MIB} at most"));
    }
    match counts.contains(&0) {
        true => usage("--workers, --servers and --batch must be 1 or more".into()),
        false => Ok(()),
    }
}

/// Prints what was measured.
fn show(rows: Vec<Row>, raw: Row, show: ShowArgs) -> Result<(), Failure> {
    if show.json {
        return cli::say(json!({ "rows": rows.into_iter().map(object).collect::<Vec<_>>(), "raw": object(raw) }));
    }
    let mut text = table(&rows);
    for (name, value) in &raw {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {}", name.replace('_', " "), cell_text(value));
    }
    cli::print(text)
}

/// The middle one.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}

/// Says what goes on, to whoever waits.
fn tell(text: &str) {
    use std::io::Write;
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

const MIB: f64 = (1 << 20) as f64;
/// Elements of a tensor, at most: 4 MiB.
const WIDTH: u64 = 1 << 20;

/// Elements of a tensor, and tensors, that make up so many MiB.
fn tensors(mib: f64) -> (u64, u64) {
    let elements = (mib * MIB / 4.0).max(1.0) as u64;
    let count = elements.div_ceil(WIDTH);
    (elements / count, count)
}

/// The largest of some sizes, in bytes.
fn most_bytes(mib: &[f64]) -> usize {
    (mib.iter().copied().fold(0.0, f64::max) * MIB) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_were_asked_for() {
        for (mib, shape) in
            [(0.0625, (16_384, 1)), (4.0, (WIDTH, 1)), (6.0, (786_432, 2)), (64.0, (WIDTH, 16)), (0.0, (1, 1))]
        {
            assert_eq!(tensors(mib), shape, "{mib} MiB");
        }
        assert_eq!(most_bytes(&[1.0, 2.0, 0.5]), 2 << 20);
    }

    #[test]
    fn the_middle_of_some() {
        assert_eq!((median(vec![3.0, 1.0, 2.0]), median(Vec::new())), (Some(2.0), None));
    }
}
