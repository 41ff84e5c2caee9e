//! `launcher eval`: scores a run's model on its held-out data again, the same way training did.

use std::collections::BTreeSet;

use convoy_proto::{
    config::Backend,
    ids::{SliceId, Step},
    process,
    tree::SliceTree,
};
use convoy_worker::{
    data::{self, DataInfo, Dataset, HostBatch, Part},
    learner::Replica,
    step::Feed,
    task::{self, TaskEntry},
};

use crate::{
    cli::{EvalArgs, Places, say},
    coordinator::evaluation,
    model_file,
    outcome::Failure,
    plan, probe, run_dir,
};

/// Rows of predictions that are computed at once.
const PREDICTION_BATCH: u32 = 250;

/// Scores a run, and writes its predictions if asked to.
///
/// # Errors
/// A run, model, data set or device that is not there or does not fit.
pub fn eval(args: &EvalArgs, places: &Places, tasks: &[TaskEntry]) -> Result<(), Failure> {
    let path = run_dir::find(places.run_dir.as_deref().unwrap_or("runs"), &args.run)?;
    let config = process::load_config(&path).map_err(|error| Failure::Usage(error.to_string()))?;
    let wanted = match &args.backend {
        None => config.backend,
        Some(word) => {
            convoy_proto::config::RawConfig { backend: Some(word.clone()), ..Default::default() }.backend()?
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let reports = if wanted == Backend::Cpu { Vec::new() } else { probe::probe() };
    let devices = plan::choose(wanted, &reports, cores).map_err(Failure::Environment)?;
    let data = data::open(&config.data, config.seed)?;
    let mut replica = task::find(tasks, &config.task)?.open(&config, data.info(), devices.devices[0].name)?;
    let tensors = model_file::read(&path.join("model.safetensors"), replica.manifest()).map_err(Failure::Usage)?;
    let sha256 = model_file::params_sha256(&tensors);
    replica.load(tensors);

    let all: BTreeSet<_> = (0..config.slices).map(SliceId).collect();
    let parts = Feed::new(data.clone(), &config).evaluate(&*replica, &all);
    let part = |slice: SliceId| parts.get(slice.index()).copied();
    let score = evaluation::score(Step(0), SliceTree::new(config.slices), part)
        .ok_or_else(|| Failure::Failed("the held-out data are empty".into()))?;
    if let Some(file) = &args.predictions {
        let cannot = |problem| Failure::Environment(format!("cannot write {}: {problem}", file.display()));
        write_predictions(file, &*data, &*replica).map_err(cannot)?;
    }
    let (loss, accuracy, samples) = (score.loss, score.accuracy, score.samples);
    if args.json {
        let value =
            serde_json::json!({ "loss": loss, "accuracy": accuracy, "samples": samples, "params_sha256": sha256 });
        return say(value);
    }
    say(format_args!("accuracy {accuracy:.4}  loss {loss:.4}  on {samples} held-out samples of {}", config.data))
}

fn write_predictions(file: &std::path::Path, data: &dyn Dataset, replica: &dyn Replica) -> Result<(), csv::Error> {
    let mut table = csv::Writer::from_path(file)?;
    table.write_record(["index", "label", "prediction", "probability", "correct"])?;
    let DataInfo { test, .. } = *data.info();
    for start in (0..test).step_by(PREDICTION_BATCH as usize) {
        let batch = HostBatch::read(data, Part::Test, start..(start + PREDICTION_BATCH).min(test));
        let labels = batch.labels.clone();
        for ((index, label), prediction) in (start..).zip(labels).zip(replica.predict(batch)) {
            let correct = i64::from(prediction.label) == i64::from(label);
            table.serialize((index, label, prediction.label, prediction.probability, correct))?;
        }
    }
    Ok(table.flush()?)
}
