//! What checkpoints ask of the place where they are kept, in order and beside training: manifests are written, what is not
//! needed any more is removed. A store far away may take its time; the launcher does not wait for it.

use std::{
    collections::BTreeSet,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
};

use convoy_proto::ids::Step;
use convoy_server::checkpoint::{self, CheckpointManifest};
use tokio::sync::mpsc;

use crate::checkpoints::Checkpoints;

/// Jobs that may wait.
const JOBS_AHEAD: usize = 64;

/// Something to do at the place.
#[derive(Debug)]
pub(super) enum Job {
    /// Complete a checkpoint, and remove older ones.
    Complete(Box<Completion>),
    /// Remove what there is of a checkpoint that will not be complete.
    Discard(String),
}

/// A checkpoint that lacks nothing but its manifest.
#[derive(Debug)]
pub(super) struct Completion {
    /// Its commit.
    pub commit: Step,
    /// Its name.
    pub name: String,
    /// Its manifest.
    pub manifest: CheckpointManifest,
    /// How many of the newest are kept, and the step that is kept, too.
    pub keep: (u32, Option<u64>),
    /// How long servers took to write it.
    pub seconds: f64,
}

/// What came of a job.
#[derive(Debug)]
pub(super) enum Done {
    /// What there was of a checkpoint is gone.
    Discarded(String),
    /// A checkpoint is complete, or why not.
    Completed(Box<Completion>, Result<(), String>),
}

/// The thread that does the jobs, one after the other.
#[derive(Debug)]
pub(super) struct Keeper {
    jobs: SyncSender<Job>,
    done: mpsc::UnboundedReceiver<Done>,
    pending: usize,
    /// Checkpoints that are about to be discarded.
    discarded: BTreeSet<String>,
}

impl Keeper {
    /// A keeper of checkpoints.
    ///
    /// # Errors
    /// The machine has no thread for it.
    pub fn new(checkpoints: Checkpoints) -> std::io::Result<Keeper> {
        let (jobs, queue) = sync_channel(JOBS_AHEAD);
        let (sender, done) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("keeper".into()).spawn(move || work(&checkpoints, &queue, &sender))?;
        Ok(Keeper { jobs, done, pending: 0, discarded: BTreeSet::new() })
    }

    /// Has something done; false if too much waits already.
    pub fn ask(&mut self, job: Job) -> bool {
        if let Job::Discard(name) = &job
            && !self.discarded.insert(name.clone())
        {
            return true;
        }
        match self.jobs.try_send(job) {
            Ok(()) => {
                self.pending += 1;
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// What is done next; for ever, if there is nothing to do.
    pub async fn next(&mut self) -> Done {
        if self.pending == 0 {
            return std::future::pending().await;
        }
        match self.done.recv().await {
            Some(done) => {
                self.pending -= 1;
                self.note(&done);
                done
            }
            None => std::future::pending().await,
        }
    }

    /// Whether nothing is to be done any more.
    pub fn is_idle(&self) -> bool {
        self.pending == 0
    }

    /// Waits until what is to be done now is done, and gives what came of it.
    pub fn drain(&mut self) -> Vec<Done> {
        let pending = std::mem::take(&mut self.pending);
        let done: Vec<_> = (0..pending).map_while(|_| self.done.blocking_recv()).collect();
        done.iter().for_each(|done| self.note(done));
        done
    }

    fn note(&mut self, done: &Done) {
        if let Done::Discarded(name) = done {
            self.discarded.remove(name);
        }
    }
}

fn work(checkpoints: &Checkpoints, jobs: &Receiver<Job>, done: &mpsc::UnboundedSender<Done>) {
    while let Ok(job) = jobs.recv() {
        let result = match job {
            Job::Discard(name) => {
                if let Err(problem) = checkpoints.discard(&name) {
                    tracing::warn!("{problem}");
                }
                Done::Discarded(name)
            }
            Job::Complete(completion) => {
                let written = complete(checkpoints, &completion);
                Done::Completed(completion, written)
            }
        };
        if done.send(result).is_err() {
            return;
        }
    }
}

fn complete(checkpoints: &Checkpoints, completion: &Completion) -> Result<(), String> {
    let Completion { name, manifest, keep: (keep_last, best), .. } = completion;
    checkpoint::complete(checkpoints.place(), name, manifest).map_err(|problem| problem.to_string())?;
    let tidied = checkpoints.remove_strangers(name, manifest).and_then(|()| checkpoints.retain(*keep_last, *best));
    if let Err(problem) = tidied {
        // The checkpoint is there all the same.
        tracing::warn!("older checkpoints stay: {problem}");
    }
    Ok(())
}
