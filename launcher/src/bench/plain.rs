//! A training loop as one would write it without a cluster: one process, parameters that stay on the device.

use std::time::{Duration, Instant};

use convoy_proto::{
    config::Backend,
    ids::{SliceId, Step},
};
use convoy_worker::{data, step::Feed, task, task::TaskEntry};

use crate::{
    args::{Places, PlainArgs},
    cli, machine,
    outcome::Failure,
    plan, probe, settings,
};

/// Steps before the clock starts, at least.
const WARM: u64 = 5;

/// Trains for a while and prints samples a second.
///
/// # Errors
/// Anything that does not fit, or a device that is not there.
pub fn plain(args: &PlainArgs, tasks: &[TaskEntry]) -> Result<(), Failure> {
    let places = Places { run_dir: None, name: None };
    let config = settings::gather(&args.train, &places)?.resolve(1)?;
    let wanted = config.backend;
    let reports = if wanted == Backend::Cpu { Vec::new() } else { probe::probe() };
    let devices = plan::choose(wanted, &reports, machine::cores()).map_err(Failure::Environment)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.max(1)).build_global();
    pool.map_err(|problem| Failure::Environment(format!("cannot start {} threads: {problem}", args.threads)))?;
    let entry = task::find(tasks, &config.task)?;
    let data = data::open(&config, entry.wanted)?;
    let mut replica = entry.open(&config, data.info(), devices.devices[0].name)?;
    replica.load(replica.initial(config.seed));
    let mut feed = Feed::new(data, &config, replica.manifest());
    let [warm, limit] = [args.warm, args.seconds].map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
    let (mut start, mut samples, mut is_warm) = (Instant::now(), 0, false);
    for step in 0.. {
        if !is_warm && step >= WARM && start.elapsed() >= warm {
            replica.settle();
            (start, samples, is_warm) = (Instant::now(), 0, true);
        }
        if is_warm && start.elapsed() >= limit {
            break;
        }
        let batch = feed.slice(Step(step), SliceId(0))?;
        samples += batch.rows;
        replica.train_alone(batch, config.optimizer.lr);
    }
    replica.settle();
    cli::say(samples as f64 / start.elapsed().as_secs_f64())
}
