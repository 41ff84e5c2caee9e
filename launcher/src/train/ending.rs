//! How a run ends: whose fault it was, the final parameters, the last summary.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use convoy_proto::{
    access::TokenRole,
    ids::{Role, Step},
    manifest::Manifest,
    messages::{Phase, Weights},
    node::RunEnd,
};
use convoy_worker::{
    exchange::{Exchange, Servers},
    parameters::Tensors,
};
use serde_json::json;

use super::{GOODBYE, Session, TICK, advice::Way, losses::workers, signals::Signals, until};
use crate::{
    args::Which,
    children::ChildExit,
    cli::say,
    coordinator::service::launcher,
    model_file,
    outcome::Failure,
    run_dir, scale,
    summary::{Status, Summary},
};

impl Session {
    /// Finds out what happened first when children end before their time.
    pub(super) fn diagnose(&mut self, mut exits: Vec<ChildExit>) -> Failure {
        // Stable: of equal suspicion, the first to go.
        exits.sort_by_key(ChildExit::suspicion);
        let cause = &exits[0];
        let (description, role, rank) = (cause.describe(), cause.role, cause.rank);
        self.fault((role, rank), &description);
        let message = with_log(&description, &cause.log);
        let (alive, least) = (self.service.cluster().alive(), self.prepared.config.min_workers);
        let message = match cause.role {
            Role::Worker if least < self.prepared.config.workers => {
                format!("{message}\nof {} before it, at least {least} must be there", workers(alive))
            }
            _ => message,
        };
        let message = format!("{message}\n{}", self.first_failure((role, rank), Way::from(cause)));
        match (cause.signal(), cause.status.code()) {
            (None, Some(2)) => Failure::Usage(message),
            (None, Some(3)) => Failure::Environment(message),
            (None, Some(1)) => Failure::Failed(message),
            _ => Failure::Lost(message),
        }
    }

    /// Reads parameters off the servers and writes them to the run; gives the hash that names them, or nothing if a new
    /// era begins meanwhile.
    pub(super) async fn save_parameters(
        &mut self,
        (step, weights): (Step, Weights),
        which: Which,
        signals: &mut Signals,
    ) -> Result<Option<String>, Failure> {
        let manifest = self.prepared.manifest.clone();
        let Some(tensors) = self.pull(&manifest, (step, weights), signals).await? else { return Ok(None) };
        let path = self.run_dir.path().join(which.file());
        while let Err(problem) = model_file::write(&path, &manifest, &tensors) {
            // A result is worth more than an old checkpoint, if that is on the same disk.
            let is_here = self.prepared.config.checkpoint.to.is_none();
            if !is_here || !self.checkpoints.make_room() {
                return Err(Failure::Environment(problem));
            }
            self.progress.say(&format!("an old checkpoint makes room: {problem}"));
        }
        Ok(Some(model_file::params_sha256(&tensors)))
    }

    /// Reads parameters, with an eye on signals and on children that end.
    async fn pull(
        &mut self,
        manifest: &Manifest,
        (step, weights): (Step, Weights),
        signals: &mut Signals,
    ) -> Result<Option<Tensors>, Failure> {
        let (view, views) = (self.service.cluster().view(), self.service.views());
        let timeouts = self.prepared.config.timeouts;
        let limit = Duration::from_millis(timeouts.start_ms.into());
        let lease = Duration::from_millis(timeouts.lease_ms.into());
        let credentials = self.prepared.security.credentials(TokenRole::Worker);
        let (mut failure, mut give_up) = (String::new(), None);
        let exchange = Exchange::new(launcher(), manifest, Servers::new(views, lease, credentials));
        let pull = exchange.pull(view.era, step, weights);
        let pull = tokio::time::timeout(limit, pull);
        tokio::pin!(pull);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                biased;
                pulled = &mut pull, if give_up.is_none() => match pulled {
                    Ok(Ok(tensors)) => return Ok(Some(tensors)),
                    // A server may have died, which is known in a moment.
                    Ok(Err(problem)) => (failure, give_up) = (problem.to_string(), Some(Instant::now() + lease)),
                    Err(_) => return Err(Failure::Failed("the servers did not send the parameters in time".into())),
                },
                () = until(give_up) => {
                    return Err(Failure::Failed(format!("cannot read the parameters: {failure}")));
                }
                // The first asks for an end with the parameters saved, and that is what this is.
                signal = signals.next() => self.request(signal)?,
                Some(exit) = self.children.next_exit() => self.child_ended(exit, signals).await?,
                Some(event) = self.node_events.recv() => Box::pin(self.heed_node(event, signals)).await?,
                _ = tick.tick() => {
                    Box::pin(self.check_nodes(signals)).await?;
                    self.check_leases(signals).await?;
                    self.pulse();
                }
            }
            if self.service.cluster().era() != view.era {
                return Ok(None);
            }
        }
    }

    /// Ends all processes and says how it went.
    pub(super) async fn end(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        self.service.advance(Phase::Ended);
        let ended = match (&result, self.stopping) {
            (Ok(()), Some(signal)) => Err(self.stopped(signal)),
            _ => Ok(()),
        };
        let failure = result.as_ref().err().or(ended.as_ref().err());
        self.nodes.end(RunEnd {
            exit_code: failure.map_or(0, Failure::exit_code),
            message: failure.map(ToString::to_string).unwrap_or_default(),
        });
        if result.is_err() || tokio::time::timeout(GOODBYE, self.children.all_ended()).await.is_err() {
            // A child that even a kill does not end, stuck in a driver, does not hold up the end.
            let _ = tokio::time::timeout(GOODBYE, self.children.kill()).await;
        }
        // Those with servers hand over what these wrote down.
        let stop = Duration::from_millis(self.prepared.config.timeouts.stop_ms.into());
        let patience = if result.is_ok() && self.nodes.nodes().has_servers() { stop } else { GOODBYE };
        if tokio::time::timeout(patience, self.nodes.all_gone()).await.is_err() {
            let left = self.nodes.nodes().count();
            self.progress.say(&format!("of the other machines, {left} did not say goodbye within {patience:?}"));
        }
        let _ = tokio::time::timeout(GOODBYE, self.remote.sessions.end()).await;
        self.progress.end();
        // Who asked for an end at once does not wait for it.
        if !matches!(result, Err(Failure::Signal(_))) || self.prepared.config.checkpoint.to.is_none() {
            self.tidy_saves().await;
        }
        // Nobody is there to be asked any more.
        let _ = std::fs::remove_file(self.run_dir.path().join(scale::FILE));
        let result = result.and(ended);
        let summary = Summary::new(&self.prepared.config, &self.service.cluster(), &self.notes);
        let summary = match &result {
            Ok(()) => summary.ended(Status::Done, 0, None),
            Err(failure) => {
                let status = match failure {
                    Failure::Signal(_) | Failure::Stopped(_) => Status::Stopped,
                    Failure::Diverged(_) => Status::Diverged,
                    _ => Status::Failed,
                };
                summary.ended(status, failure.exit_code(), Some(failure.to_string()))
            }
        };
        self.metric(json!({ "event": "end", "status": summary.status, "exit_code": summary.exit_code }));
        self.write_json("summary.json", &summary)?;
        self.end_watching();
        if result.is_ok() {
            let score = summary.eval.map(|score| format!("{score}  ")).unwrap_or_default();
            say(format_args!(
                "done: {} steps  {}{:.0} samples/s  {:.1} s\nmodel: {}",
                summary.steps,
                score,
                summary.samples_per_second,
                summary.wall_seconds,
                self.run_dir.path().join("model.safetensors").display(),
            ))?;
        }
        result
    }
}

/// A message, followed by the last lines of a process's log.
pub(crate) fn with_log(what: &str, log: &Path) -> String {
    let lines = run_dir::last_lines(log, 5);
    if lines.is_empty() {
        return format!("{what}; its log {} is empty", log.display());
    }
    format!("{what}; the last lines of {}:\n  {}", log.display(), lines.join("\n  "))
}
