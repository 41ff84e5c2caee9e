//! What a run leaves for other programs: event files for TensorBoard, and what DVC reads.
//!
//! A thread of its own makes them of metrics.jsonl, every few seconds and once more at the end.

use std::{
    io,
    path::{Path, PathBuf},
    sync::mpsc::{RecvTimeoutError, Sender, channel},
    time::Duration,
};

use convoy_proto::config::Watch;
use serde_json::Value;

use super::{
    beside::Beside,
    lines::{Come, Lines},
};
use crate::coordinator::durations::PHASES;

mod dvc;
mod tensorboard;

/// The file that says how far that is done: bytes of metrics.jsonl, and the last step.
const EXPORTED: &str = ".exported";
/// How often they are written.
const EVERY: Duration = Duration::from_secs(3);

/// A value with a name, such as `train/loss`, at a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Scalar {
    /// Its name.
    pub name: String,
    /// After which step.
    pub step: u64,
    /// What it is.
    pub value: f64,
    /// When, in seconds since 1970.
    pub time: f64,
}

/// Something that takes scalars.
trait Export: Send {
    /// Takes a scalar.
    fn add(&mut self, scalar: &Scalar) -> io::Result<()>;
    /// What came after a step was undone.
    fn undo(&mut self, step: u64, time: f64) -> io::Result<()>;
    /// Writes out what it has.
    fn flush(&mut self) -> io::Result<()>;
}

/// The exports of a run in progress. They end when this is dropped.
#[derive(Debug)]
pub struct Exports {
    stop: Option<Sender<()>>,
    thread: Option<Beside>,
}

impl Exports {
    /// Begins to export a run's metrics from here on.
    pub fn begin(watch: &Watch, run: &Path) -> Exports {
        let (stop, stopped) = channel();
        if !watch.tensorboard && !watch.dvc {
            return Exports { stop: None, thread: None };
        }
        let (path, wants) = (run.to_path_buf(), (watch.tensorboard, watch.dvc));
        let thread = Beside::start("exports", move || {
            let mut run = Run::open(path, wants);
            loop {
                let is_last = !matches!(stopped.recv_timeout(EVERY), Err(RecvTimeoutError::Timeout));
                run.export();
                if is_last {
                    return;
                }
            }
        });
        Exports { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Exports {
    fn drop(&mut self) {
        self.stop.take();
        self.thread.take().iter().for_each(Beside::end);
    }
}

struct Run {
    path: PathBuf,
    wants: (bool, bool),
    lines: Lines,
    exports: Vec<Box<dyn Export>>,
    step: u64,
}

impl Run {
    fn open(path: PathBuf, wants: (bool, bool)) -> Run {
        // What a launcher before this one exported is not exported again.
        let exported = std::fs::read_to_string(path.join(EXPORTED)).unwrap_or_default();
        let (at, step) = exported.trim().split_once(' ').unwrap_or_default();
        let lines = Lines::new(&path, at.parse().unwrap_or(0));
        Run { path, wants, lines, exports: Vec::new(), step: step.parse().unwrap_or(0) }
    }

    /// Writes what has come. If the disk fails, training goes on, and the files end here.
    fn export(&mut self) {
        if let Err(problem) = self.try_export() {
            tracing::warn!("nothing more is written for TensorBoard and DVC: {problem}");
            (self.exports, self.wants) = (Vec::new(), (false, false));
        }
    }

    fn try_export(&mut self) -> io::Result<()> {
        if self.exports.is_empty() {
            self.begin()?;
        }
        let (exports, step) = (&mut self.exports, &mut self.step);
        let mut taken = Ok(());
        self.lines.read(|come| match come {
            Come::Event(event) if taken.is_ok() => taken = take(exports, step, &event),
            // A run's metrics are begun anew with the run, and what is here then is not its own.
            Come::Event(_) | Come::Anew => {}
        });
        taken?;
        self.exports.iter_mut().try_for_each(|export| export.flush())?;
        std::fs::write(self.path.join(EXPORTED), format!("{} {}\n", self.lines.at(), self.step))
    }

    fn begin(&mut self) -> io::Result<()> {
        if self.wants.0 {
            self.exports.push(Box::new(tensorboard::Events::create(&self.path.join("tensorboard"))?));
        }
        if self.wants.1 {
            self.exports.push(Box::new(dvc::Live::open(&self.path)?));
        }
        Ok(())
    }
}

fn take(exports: &mut [Box<dyn Export>], last: &mut u64, event: &Value) -> io::Result<()> {
    let time = event["time"].as_f64().unwrap_or(0.0);
    if event["event"] == "step"
        && let Some(step) = event["step"].as_u64()
    {
        if step <= *last {
            exports.iter_mut().try_for_each(|export| export.undo(step.saturating_sub(1), time))?;
        }
        *last = step;
    }
    let scalars = scalars(event, time);
    exports.iter_mut().try_for_each(|export| scalars.iter().try_for_each(|scalar| export.add(scalar)))
}

/// The scalars of an event.
fn scalars(event: &Value, time: f64) -> Vec<Scalar> {
    let Some(step) = event["step"].as_u64() else { return Vec::new() };
    let scalar = |name: &str, value: &Value| Some(Scalar { name: name.into(), step, value: value.as_f64()?, time });
    let named = |names: &[(&str, &str)]| names.iter().filter_map(|(name, key)| scalar(name, &event[*key])).collect();
    match (event["event"].as_str().unwrap_or_default(), event["of"].as_str()) {
        ("step", _) => named(&[
            ("train/loss", "loss"),
            ("train/learning_rate", "lr"),
            ("train/gradient_norm", "gradient_norm"),
            ("train/staleness", "staleness"),
        ]),
        ("eval", Some("ema")) => named(&[("eval_ema/loss", "loss"), ("eval_ema/accuracy", "accuracy")]),
        ("eval", _) => named(&[
            ("eval/loss", "loss"),
            ("eval/accuracy", "accuracy"),
            ("eval/perplexity", "perplexity"),
            ("eval/rmse", "rmse"),
        ]),
        ("pulse", _) => {
            let mut scalars: Vec<Scalar> = named(&[
                ("throughput/samples_per_second", "samples_per_second"),
                ("resources/worker_cores", "worker_cores"),
                ("resources/worker_memory_bytes", "worker_memory_bytes"),
                ("resources/gpu_utilisation", "gpu_utilisation"),
            ]);
            let seconds = &event["step_seconds"];
            scalars
                .extend(PHASES.iter().filter_map(|phase| scalar(&format!("step_seconds/{phase}"), &seconds[*phase])));
            scalars
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::run_dir::RunDir;

    #[test]
    fn a_run_is_exported_and_what_was_undone_is_not() {
        let root = tempfile::tempdir().unwrap();
        let mut run =
            RunDir::create(root.path().to_str().unwrap(), "r", "seed = 1\n[optimizer]\nlr = 0.5\n", None).unwrap();
        let path = root.path().join("r");
        let mut export = Run::open(path.clone(), (true, true));
        let step =
            |step: u64, loss: f64| json!({ "event": "step", "step": step, "loss": loss, "time": 1.5, "staleness": 0 });
        for event in [step(1, 2.0), step(2, 1.5), step(3, 1.0), step(2, 1.25), json!({ "event": "lost" })] {
            run.metric(&event).unwrap();
        }
        run.metric(&json!({ "event": "eval", "of": "weights", "step": 2, "loss": 0.5, "accuracy": 0.75, "time": 2.0 }))
            .unwrap();
        export.export();
        let read = |name: &str| std::fs::read_to_string(path.join("dvclive").join(name)).unwrap();
        assert_eq!(read("plots/metrics/train/loss.tsv"), "step\tloss\n1\t2\n2\t1.25\n");
        let metrics: Value = serde_json::from_str(&read("metrics.json")).unwrap();
        assert_eq!(
            (&metrics["train"]["loss"], &metrics["eval"]["accuracy"], &metrics["step"]),
            (&json!(1.25), &json!(0.75), &json!(2))
        );
        assert_eq!(read("params.yaml"), "optimizer:\n  lr: 0.5\nseed: 1\n");
        assert_eq!(std::fs::read_dir(path.join("tensorboard")).unwrap().count(), 1);
        // Another launcher goes on.
        let mut again = Run::open(path.clone(), (false, true));
        run.metric(&step(3, 1.0)).unwrap();
        again.export();
        assert_eq!(read("plots/metrics/train/loss.tsv"), "step\tloss\n1\t2\n2\t1.25\n3\t1\n");
    }
}
