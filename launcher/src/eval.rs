//! `launcher eval`: scores a run's model on its held-out data again, the same way training did.

use std::{collections::BTreeSet, path::Path};

use convoy_proto::{
    ids::{SliceId, Step},
    tree::SliceTree,
};
use convoy_worker::{
    data::{DataError, DataInfo, Form, HostBatch, Part},
    step::Feed,
    task::TaskEntry,
};

use crate::{
    args::{EvalArgs, Places},
    cli::say,
    coordinator::evaluation::{self, Kind},
    finished::{self, Finished},
    outcome::Failure,
};

/// Rows of predictions that are computed at once.
const PREDICTION_BATCH: u32 = 250;

/// How held-out data of a form are scored.
pub fn kind(form: &Form) -> Kind {
    match form {
        Form::Classes { .. } => Kind::Classes,
        Form::Tokens { .. } => Kind::Tokens,
        Form::Numbers { unit, .. } => Kind::Numbers { unit: *unit },
    }
}

/// Scores a run, and writes its predictions if asked to.
///
/// # Errors
/// A run, model, data set or device that is not there or does not fit.
pub fn eval(args: &EvalArgs, places: &Places, tasks: &[TaskEntry]) -> Result<(), Failure> {
    let finished = finished::open(&args.run, places, tasks)?;
    let Finished { config, data, replica, params_sha256 } = &finished;
    let all: BTreeSet<_> = (0..config.slices).map(SliceId).collect();
    let parts = Feed::new(data.clone(), config, replica.manifest()).evaluate(&**replica, &all)?;
    let part = |slice: SliceId| parts.get(slice.index()).copied();
    let score = evaluation::score(Step(0), SliceTree::new(config.slices), kind(&data.info().form), part)
        .ok_or_else(|| Failure::Failed("the held-out data are empty".into()))?;
    if let Some(file) = &args.predictions {
        write_predictions(file, &finished)?;
    }
    if args.json {
        let mut value = serde_json::json!(score);
        value["params_sha256"] = params_sha256.clone().into();
        if let Some(fields) = value.as_object_mut() {
            fields.remove("step");
        }
        return say(value);
    }
    say(format_args!("{score}  on {} held-out samples of {}", score.samples, config.data))
}

fn write_predictions(file: &Path, finished: &Finished) -> Result<(), Failure> {
    let cannot = |problem: csv::Error| Failure::Environment(format!("cannot write {}: {problem}", file.display()));
    let info = finished.data.info();
    match info.form {
        Form::Classes { .. } => {
            let mut table = csv::Writer::from_path(file).map_err(cannot)?;
            let header = ["index", "label", "prediction", "probability", "correct"];
            table.write_record(header).map_err(cannot)?;
            batches(finished, |index, batch, row| {
                let (best, probability) = most_likely(row);
                let label = batch.labels[index.1] as usize;
                let correct = best == label;
                let row = (index.0, class_name(info, label), class_name(info, best), probability, correct);
                table.serialize(row).map_err(cannot)
            })?;
            table.flush().map_err(|problem| cannot(problem.into()))
        }
        Form::Numbers { unit, zero, .. } => {
            let mut table = csv::Writer::from_path(file).map_err(cannot)?;
            table.write_record(["index", "target", "prediction"]).map_err(cannot)?;
            let own = |value: f32| f64::from(value) * unit + zero;
            batches(finished, |index, batch, row| {
                table.serialize((index.0, own(batch.targets[index.1]), own(row[0]))).map_err(cannot)
            })?;
            table.flush().map_err(|problem| cannot(problem.into()))
        }
        Form::Tokens { .. } => {
            Err(Failure::Usage("--predictions: text has none; `launcher generate` shows what the model writes".into()))
        }
    }
}

/// Hands over each held-out sample's index (in the part, in its batch), its batch and what the model makes of it.
fn batches(
    finished: &Finished,
    mut each: impl FnMut((u32, usize), &HostBatch, &[f32]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let test = finished.data.info().test;
    for start in (0..test).step_by(PREDICTION_BATCH as usize) {
        let end = (start + PREDICTION_BATCH).min(test);
        let batch =
            HostBatch::read(&*finished.data, Part::Test, start..end).map_err(|e: DataError| Failure::from(e))?;
        let output = finished.replica.output(batch.clone());
        for (row, (index, values)) in (start..).zip(output.values.chunks(output.width)).enumerate() {
            each((index, row), &batch, values)?;
        }
    }
    Ok(())
}

fn class_name(info: &DataInfo, class: usize) -> String {
    info.class_names.get(class).cloned().unwrap_or_else(|| class.to_string())
}

/// The most likely class, the first of equals, and its probability.
fn most_likely(logits: &[f32]) -> (usize, f64) {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    let Some((best, most)) = best else { return (0, f64::NAN) };
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    (best, 1.0 / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_the_most_likely() {
        assert_eq!(most_likely(&[0.0, 2.0, 2.0]).0, 1);
        let (best, probability) = most_likely(&[1.0, 1.0 + 3f32.ln()]);
        assert!(best == 1 && (probability - 0.75).abs() < 1e-6, "{probability}");
    }
}
