//! Exchanges of synthetic parameters: transfers, and whole synchronous rounds.

use convoy_proto::codec::Codec;
use serde_json::Value;

use super::{
    MIB, Row, cell,
    cell::Trained,
    median, milliseconds, most_bytes,
    plot::{self, Curves},
    raw, show, tell, tensors,
};
use crate::{args::ExchangeArgs, outcome::Failure};

/// Rounds that are not timed: connections open, memory is taken.
const WARM: u32 = 3;
/// Copies of the parameters that a run has for each worker and server, at most: more than it takes.
const COPIES: f64 = 6.0;

/// A cell of the grid.
#[derive(Clone)]
struct Cell {
    workers: u32,
    servers: u32,
    mib: f64,
    transport: String,
    codec: String,
    rounds: u32,
}

impl Cell {
    fn all(args: &ExchangeArgs) -> Vec<Cell> {
        let mut cells = Vec::new();
        for mib in &args.mib {
            for servers in &args.servers {
                for workers in &args.workers {
                    let of = |(transport, codec): (&String, &String)| Cell {
                        workers: *workers,
                        servers: *servers,
                        mib: *mib,
                        transport: transport.clone(),
                        codec: codec.clone(),
                        rounds: args.rounds,
                    };
                    let ways = args.transport.iter().flat_map(|way| args.codec.iter().map(move |codec| (way, codec)));
                    cells.extend(ways.map(of));
                }
            }
        }
        cells
    }

    /// How its tensors travel.
    fn way(&self) -> String {
        if self.codec == "f32" { self.transport.clone() } else { format!("{} {}", self.transport, self.codec) }
    }

    fn bytes(&self) -> f64 {
        self.mib * MIB
    }

    /// Why this machine cannot do it.
    fn too_large(&self) -> Option<String> {
        let needed = self.bytes() * COPIES * f64::from(self.workers + 1);
        let free = raw::free_memory().filter(|free| (*free as f64) < needed)?;
        Some(format!("skipped: takes {:.1} GiB, {:.1} are free", needed / MIB / 1024.0, free as f64 / MIB / 1024.0))
    }

    fn run(&self, mode: &str) -> Result<Trained, Failure> {
        let Cell { workers, servers, mib, transport, codec, rounds } = self;
        tell(&format!("{workers} workers, {servers} servers, {mib} MiB, {transport}, {codec}, {mode}"));
        let (width, layers) = tensors(*mib);
        let text = format!(
            "--task synthetic --backend cpu --optimizer sgd --lr 0.0009765625 {mode} --workers {workers} --slices {workers} \
             --servers {servers} --batch-size {workers} --transport {transport} --codec {codec} --steps {} --set model.width={width} --set model.layers={layers}",
            rounds + WARM
        );
        cell::run(&text.split_whitespace().map(String::from).collect::<Vec<_>>())
    }

    fn row(&self) -> Row {
        let Cell { workers, servers, mib, transport, codec, .. } = self;
        vec![
            ("workers", (*workers).into()),
            ("servers", (*servers).into()),
            ("mib", (*mib).into()),
            ("transport", transport.as_str().into()),
            ("codec", codec.as_str().into()),
        ]
    }
}

/// Whether workers know what parameters must be: not where what a codec loses is made up for later.
fn is_known(codec: &str) -> bool {
    codec.parse::<Codec>().is_ok_and(|codec| !codec.feeds_back())
}

/// Whole rounds: every worker writes its gradients and reads all parameters inside the time.
pub fn rounds(args: &ExchangeArgs) -> Result<(), Failure> {
    let (mut rows, mut curves) = (Vec::new(), Curves::new());
    for cell in Cell::all(args) {
        let mut row = cell.row();
        match cell.too_large() {
            Some(why) => row.extend([("median_ms", Value::from(why)), ("checked", false.into())]),
            None => {
                // Each worker has checked each parameter of each round, or the run would have failed; with codecs that make
                // up later for what they lose, only that it is a number.
                let seconds = median(cell.run("--sync")?.rounds(WARM as usize));
                let curve = curves.entry((cell.way(), cell.workers)).or_default();
                curve.extend(seconds.map(|seconds| (cell.mib, seconds * 1e3)));
                row.extend([
                    ("median_ms", seconds.map(milliseconds).into()),
                    ("checked", is_known(&cell.codec).into()),
                ]);
            }
        }
        rows.push(row);
    }
    let copies = raw::copy(most_bytes(&args.mib), 1);
    if let Some(file) = &args.plot {
        plot::draw(file, &curves)?;
    }
    show(rows, vec![("copy_gb_per_second", (copies / 1e9).into())], args.show)
}

/// Transfers: in asynchronous runs, each by itself, and in synchronous ones, both at once.
pub fn net(args: &ExchangeArgs) -> Result<(), Failure> {
    if args.plot.is_some() {
        return Err(Failure::Usage("--plot draws rounds: launcher bench round --plot FILE.svg".into()));
    }
    let mut rows = Vec::new();
    for cell in Cell::all(args) {
        let mut row = cell.row();
        if let Some(why) = cell.too_large() {
            let skipped = ["push_gb_per_second", "pull_gb_per_second", "push_pull_gb_per_second"];
            row.extend(skipped.map(|name| (name, Value::from(why.as_str()))));
        } else {
            let (apart, both) = (cell.run("--async --set consistency.overlap=false")?, cell.run("--sync")?);
            row.push(("push_gb_per_second", rate(&apart, "bytes_pushed", &["push", "wait"]).into()));
            row.push(("pull_gb_per_second", rate(&apart, "bytes_pulled", &["pull"]).into()));
            row.push(("push_pull_gb_per_second", rate(&both, "bytes_pushed", &["push", "wait", "pull"]).into()));
        }
        rows.push(row);
    }
    let mut limits: Row = Vec::new();
    let most = most_bytes(&args.mib);
    limits.push(("tcp_gb_per_second", (raw::tcp(most)? / 1e9).into()));
    limits.push(("copy_gb_per_second", (raw::copy(most, 1) / 1e9).into()));
    show(rows, limits, args.show)
}

/// What all workers together moved in the time that the slowest took.
fn rate(trained: &Trained, bytes: &str, phases: &[&str]) -> f64 {
    let bytes: f64 = trained.of_workers(&[bytes]).iter().sum();
    let by_phase: Vec<_> = phases.iter().map(|phase| trained.of_workers(&["seconds", phase])).collect();
    let workers = by_phase.first().map_or(0, Vec::len);
    let seconds = (0..workers).map(|worker| by_phase.iter().map(|seconds| seconds[worker]).sum::<f64>());
    bytes / seconds.fold(0.0, f64::max) / 1e9
}
