//! The shard that a process serves: who waits for it is woken, and what the core asks for is done.
//!
//! A new era brings a new shard. What belongs to the old one ends by itself: its waits are told, and what was asked of
//! the coordinator for it changes nothing any more.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use convoy_proto::{
    ids::{Era, ServerId, ShardId},
    messages::{ClusterView, Saved, ShardReport},
    transport::{Membership, TransportError},
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tracing::{debug, error, warn};

use crate::{
    accounts::Accounts,
    busy::Busy,
    checkpoint::{self, Place, part},
    copies::Copies,
    core::{
        kept::Snapshot,
        refusal::Refusal,
        shard::{Outcome, Shard},
    },
    sharing::Seen,
};

/// How often the coordinator is told of a checkpoint that it does not hear of.
const REPORTS: usize = 3;

/// Snapshots that may wait for the disk before no other step begins.
const SNAPSHOTS_AHEAD: usize = 2;

/// How much earlier than this process others may hear of a new era.
const NEWS: Duration = Duration::from_secs(2);

/// What a host is made of.
#[derive(Clone, Debug)]
pub struct Around {
    /// Its place in the cluster.
    pub membership: Membership,
    /// Directory of the run, for the ledger.
    pub run: PathBuf,
    /// Where its checkpoints are kept.
    pub checkpoints: Arc<dyn Place>,
    /// How long the coordinator may take to decide.
    pub decide_within: Duration,
    /// How long a new era may take to be heard of.
    pub lease: Duration,
    /// What owns background work.
    pub tasks: TaskTracker,
    /// What counts its work.
    pub busy: Arc<Busy>,
}

/// One server's shard and what goes on around it.
#[derive(Debug)]
pub struct Host {
    pub(crate) around: Around,
    shard: watch::Sender<Option<Arc<Shard>>>,
    /// Counts changes, so that whoever waits for a version looks again.
    changes: watch::Sender<u64>,
    /// Snapshots that are not on disk yet.
    unsaved: AtomicUsize,
    /// What it knows of the other copies of its shard.
    pub(crate) copies: Mutex<Copies>,
    /// Memory of workers on this machine.
    pub(crate) seen: Mutex<Seen>,
    /// What was committed, where this server keeps accounts.
    accounts: Mutex<Option<Accounts>>,
    failure: OnceLock<String>,
}

fn ending() -> Status {
    Status::unavailable("this server is ending")
}

impl Host {
    /// A host without a shard.
    pub fn new(around: Around) -> Host {
        let (shard, changes) = (watch::Sender::new(None), watch::Sender::new(0));
        Host {
            around,
            shard,
            changes,
            unsaved: AtomicUsize::new(0),
            copies: Mutex::default(),
            seen: Mutex::default(),
            accounts: Mutex::new(None),
            failure: OnceLock::new(),
        }
    }

    /// Does something to the ledger. If the disk fails, training goes on without: `launcher verify` will tell.
    fn account(&self, act: impl FnOnce(&mut Accounts) -> io::Result<()>) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = accounts.as_mut() else { return };
        if let Err(problem) = act(open) {
            error!("cannot write {}, the ledger ends here: {problem}", open.path().display());
            *accounts = None;
        }
    }

    /// Keeps accounts from now on, if that is this server's part, for a shard that takes up an era.
    fn keep_accounts(&self, shard: &Shard) {
        if shard.id() != ShardId(0) {
            return;
        }
        {
            let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
            match Accounts::open(&self.around.run, self.server()) {
                Ok(open) => *accounts = Some(open),
                Err(problem) => error!("cannot open the ledger, goes on without: {problem}"),
            }
        }
        self.account(|accounts| accounts.begin(shard.era(), shard.open_step()));
    }

    /// Starts to serve a shard, in place of an older one.
    pub fn serve(self: &Arc<Self>, shard: Arc<Shard>) {
        self.forget_copies();
        self.keep_accounts(&shard);
        self.shard.send_replace(Some(shard));
        self.set_view(self.around.membership.view());
    }

    /// Takes over a newer view of the cluster.
    pub fn set_view(self: &Arc<Self>, view: ClusterView) {
        let Some(shard) = self.current() else { return };
        shard.set_view(view.clone());
        self.changed();
        if shard.era() == view.era {
            self.heed(&shard, &view);
        }
    }

    /// Which server this is.
    pub(crate) fn server(&self) -> ServerId {
        ServerId(self.around.membership.member.rank)
    }

    /// What made the server give up, if it did.
    pub fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    pub(crate) fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// The shard of an era, once there is one.
    pub(crate) async fn shard(&self, era: Era) -> Result<Arc<Shard>, Status> {
        let mut views = self.around.membership.views();
        let known = views.wait_for(|view| view.era >= era);
        if !matches!(tokio::time::timeout(NEWS, known).await, Ok(Ok(_))) {
            return Err(Status::aborted(format!("era {era} has not begun")));
        }
        let mut shards = self.shard.subscribe();
        let there = shards.wait_for(|shard| shard.as_ref().is_some_and(|shard| shard.era() >= era));
        let shard = tokio::select! {
            () = self.around.membership.lost.cancelled() => return Err(ending()),
            there = there => there.ok().and_then(|shard| shard.clone()).ok_or_else(ending)?,
        };
        match shard.era() {
            ours if ours > era => Err(Refusal::Era { ours, theirs: era }.into()),
            _ => Ok(shard),
        }
    }

    /// The shard that is served now.
    pub(crate) fn current(&self) -> Option<Arc<Shard>> {
        self.shard.borrow().clone()
    }

    fn is_current(&self, shard: &Arc<Shard>) -> bool {
        self.shard.borrow().as_ref().is_some_and(|current| Arc::ptr_eq(current, shard))
    }

    /// Waits until `look` finds something, for as long as this shard is the one that is served.
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut() -> Result<Option<T>, Status>) -> Result<T, Status> {
        let shard = self.current();
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Some(found) = look()? {
                return Ok(found);
            }
            tokio::select! {
                () = self.around.membership.lost.cancelled() => return Err(ending()),
                changed = changes.changed() => changed.map_err(|_| ending())?,
            }
            if shard.as_ref().is_some_and(|shard| !self.is_current(shard)) {
                return Err(Status::aborted("a new era has begun"));
            }
        }
    }

    /// Whether no step may begin until the disk has caught up.
    pub(crate) fn is_behind(&self) -> bool {
        self.unsaved.load(SeqCst) >= SNAPSHOTS_AHEAD
    }

    /// Does what the core's outcome asks for.
    pub(crate) fn follow(self: &Arc<Self>, shard: &Arc<Shard>, outcome: Outcome) {
        if outcome.changed {
            self.changed();
        }
        if let Some(part) = outcome.accumulated {
            let (host, shard) = (self.clone(), shard.clone());
            self.around.tasks.spawn(async move {
                let Membership { coordinator, member, .. } = &host.around.membership;
                let step = part.proposal.step;
                match coordinator.decide(*member, part, host.around.decide_within).await {
                    Ok(verdict) => host.follow(&shard, host.around.busy.work(|| shard.decide(verdict))),
                    Err(problem) => host.undecided(&shard, &format!("step {step}"), problem).await,
                }
            });
        }
        if let Some(staged) = outcome.staged {
            let (host, shard) = (self.clone(), shard.clone());
            self.around.tasks.spawn(async move {
                let Membership { coordinator, member, .. } = &host.around.membership;
                let push = staged.header.id();
                match coordinator.stage(*member, staged, host.around.decide_within).await {
                    Ok(Some(verdict)) => host.follow(&shard, host.around.busy.work(|| shard.choose(verdict))),
                    Ok(None) => host.follow(&shard, shard.drop_push(push)),
                    Err(problem) => host.undecided(&shard, &format!("push {push}"), problem).await,
                }
            });
        }
        if !outcome.used.is_empty() {
            self.account(|accounts| accounts.add(shard.era(), &outcome.used));
        }
        outcome.formed.into_iter().for_each(|formed| self.take_formed(shard, formed));
    }

    /// Ends the server, which cannot go on without what it was not told; unless that is of an era that is over.
    async fn undecided(&self, shard: &Arc<Shard>, what: &str, problem: TransportError) {
        let membership = &self.around.membership;
        let mut views = membership.views();
        let over = views.wait_for(|view| view.era > shard.era());
        let is_over = tokio::select! {
            () = membership.lost.cancelled() => return,
            over = tokio::time::timeout(self.around.lease, over) => matches!(over, Ok(Ok(_))),
        };
        if is_over {
            return debug!("no verdict on {what}, whose era is over: {problem}");
        }
        let problem = format!("no verdict on {what}: {problem}");
        error!("{problem}");
        let _ = self.failure.set(problem);
        membership.lost.cancel();
    }

    /// Writes a snapshot to disk, beside what else goes on.
    pub(crate) fn save(self: &Arc<Self>, shard: &Arc<Shard>, snapshot: Arc<Snapshot>) {
        let (host, era, began) = (self.clone(), shard.era(), Instant::now());
        let (commit, open, server) = (snapshot.commit, shard.open_step(), self.server());
        let (place, name) = (self.around.checkpoints.clone(), checkpoint::name_of(shard.clock(), commit));
        self.unsaved.fetch_add(1, SeqCst);
        self.around.tasks.spawn_blocking(move || {
            let written = part::write((&*place, &name), (era, server), &snapshot);
            let report = match written {
                Ok(part) => ShardReport::Saved(Saved {
                    commit,
                    part,
                    loss_scale: snapshot.loss_scale.get(),
                    clean: snapshot.loss_scale.clean(),
                    seconds: began.elapsed().as_secs_f64(),
                }),
                Err(problem) => {
                    warn!("commit {commit} is not saved: {problem}");
                    ShardReport::NotSaved { commit, open, problem: Some(problem.to_string()) }
                }
            };
            drop(snapshot);
            host.unsaved.fetch_sub(1, SeqCst);
            host.changed();
            host.report(era, report);
        });
    }

    /// Tells the coordinator of a checkpoint.
    pub(crate) fn report(self: &Arc<Self>, era: Era, report: ShardReport) {
        let host = self.clone();
        self.around.tasks.spawn(async move {
            let Membership { coordinator, member, .. } = &host.around.membership;
            for _ in 0..REPORTS {
                match coordinator.report_shard(*member, era, report.clone()).await {
                    Ok(()) => return,
                    // Whoever is gone has no use for it.
                    Err(problem) if host.around.membership.lost.is_cancelled() => {
                        return debug!("a report on checkpoints did not arrive: {problem}");
                    }
                    Err(problem) => warn!("a report on checkpoints did not arrive: {problem}"),
                }
            }
        });
    }
}
