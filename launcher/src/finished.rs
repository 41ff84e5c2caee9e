//! A finished run, opened again: its configuration, its data and its model on a device.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use convoy_proto::{
    config::{Backend, Config},
    hex, process,
};
use convoy_worker::{
    data::{self, Dataset},
    learner::Replica,
    task::{self, TaskEntry},
};

use crate::{
    args::{Places, RunArgs, Which},
    model_file,
    outcome::Failure,
    plan, probe, run_dir, settings,
};

/// A run that is finished, ready to compute.
pub struct Finished {
    /// Its configuration.
    pub config: Config,
    /// Its data.
    pub data: Arc<dyn Dataset>,
    /// Its model, the parameters loaded.
    pub replica: Box<dyn Replica>,
    /// What names the parameters.
    pub params_sha256: String,
}

impl Which {
    /// The file that holds them.
    pub fn file(self) -> &'static str {
        match self {
            Which::Final => "model.safetensors",
            Which::Ema => "ema.safetensors",
            Which::Best => "best.safetensors",
        }
    }
}

/// Opens a run.
///
/// # Errors
/// A run, model, data set or device that is not there or does not fit.
pub fn open(args: &RunArgs, places: &Places, tasks: &[TaskEntry]) -> Result<Finished, Failure> {
    let path = run_dir::find(places.root(), places.meant(&args.run)?)?;
    let config = process::load_config(&path)?;
    let wanted = settings::backend_or(args.backend.as_ref(), config.backend)?;
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let reports = if wanted == Backend::Cpu { Vec::new() } else { probe::probe() };
    let devices = plan::choose(wanted, &reports, cores).map_err(Failure::Environment)?;
    let file = parameters(&path, args.weights, &config)?;
    let entry = task::find(tasks, &config.task)?;
    let data = data::open(&config, entry.wanted)?;
    check_data(&path, &*data)?;
    let mut replica = entry.open(&config, data.info(), devices.devices[0].name)?;
    let tensors = model_file::read(&file, replica.manifest()).map_err(Failure::Usage)?;
    let params_sha256 = model_file::params_sha256(&tensors);
    replica.load(tensors);
    Ok(Finished { config, data, replica, params_sha256 })
}

/// Refuses data that have changed since the run: its split, scales and classes would be others.
///
/// # Errors
/// They have.
pub fn check_data(run: &Path, data: &dyn Dataset) -> Result<(), Failure> {
    // A run without this file is from somewhere else, which is no reason not to look at it.
    let Some(recorded) = field(run, "data.json", "fingerprint") else { return Ok(()) };
    if recorded == hex(&data.info().fingerprint) {
        return Ok(());
    }
    let about = &data.info().about;
    Err(Failure::Usage(format!("the data have changed since the run {}: now {about}", run.display())))
}

/// A text in a JSON file of a run.
pub fn field(run: &Path, file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(run.join(file)).ok()?;
    Some(serde_json::from_str::<serde_json::Value>(&text).ok()?.get(name)?.as_str()?.to_string())
}

fn parameters(run: &Path, which: Which, config: &Config) -> Result<PathBuf, Failure> {
    let file = run.join(which.file());
    if file.is_file() {
        return Ok(file);
    }
    let there = format!("{} is not there", file.display());
    let was_asked_for = match which {
        Which::Final => true,
        Which::Ema => config.optimizer.ema.is_some(),
        Which::Best => config.keep_best,
    };
    if was_asked_for {
        let status = field(run, "summary.json", "status").unwrap_or_else(|| "unknown".into());
        return Err(Failure::Usage(format!("{there}: the run left none, its status is `{status}`")));
    }
    let flag = if which == Which::Ema { "--ema" } else { "--keep-best" };
    Err(Failure::Usage(format!("{there}: the run was not trained with {flag}")))
}
