//! Memory that workers on this machine share with the server: theirs, where gradients are, and its own, where they read
//! parameters. A worker's is seen for as long as its call lasts, so that nothing is kept of who is gone.

use std::{
    collections::BTreeMap,
    sync::{Arc, MutexGuard, PoisonError},
};

use convoy_proto::{
    ids::{Member, Role},
    shared::{Pass, View},
};
use tokio::sync::mpsc;
use tracing::debug;

use crate::{
    core::{refusal::Refusal, shard::Shard},
    frames::Shown,
    host::Host,
};

/// The memory of workers, as far as this process sees it.
pub type Seen = BTreeMap<Member, Arc<View>>;

impl Host {
    fn all_seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a worker's memory; gives that, and what the worker needs to see the shard's own, unless one cannot be seen.
    pub(crate) fn share(
        &self,
        shard: &Shard,
        member: Member,
        theirs: Pass,
    ) -> Result<Option<(Arc<View>, Pass)>, Refusal> {
        if member.role != Role::Worker {
            return Err(Refusal::Stranger(member));
        }
        let Some(ours) = shard.pass() else { return Ok(None) };
        match View::open(&theirs) {
            Ok(view) => {
                let view = Arc::new(view);
                self.all_seen().insert(member, view.clone());
                Ok(Some((view, ours)))
            }
            Err(problem) => {
                debug!("does not see the memory of {member}: {problem}");
                Ok(None)
            }
        }
    }

    /// A worker's memory.
    pub(crate) fn seen(&self, member: Member) -> Option<Arc<View>> {
        self.all_seen().get(&member).cloned()
    }

    /// A worker no longer shares its memory. What it told of is copied, so that none of that memory is kept.
    pub(crate) fn forget(&self, member: Member, view: &Arc<View>) {
        let mut seen = self.all_seen();
        if seen.get(&member).is_some_and(|newest| Arc::ptr_eq(newest, view)) {
            seen.remove(&member);
        }
        drop(seen);
        if let Some(shard) = self.current() {
            shard.own_parts();
        }
    }

    /// Waits until a reader has ended its call, or this process is ending.
    pub(crate) async fn until_gone<M>(&self, reader: &mpsc::Sender<M>) {
        tokio::select! {
            () = reader.closed() => {}
            () = self.around.membership.lost.cancelled() => {}
        }
    }

    /// Keeps what a reader was shown for as long as its call lasts.
    pub(crate) async fn keep<M>(&self, shown: Shown, reader: mpsc::Sender<M>) {
        if shown.is_empty() {
            return;
        }
        self.until_gone(&reader).await;
        if self.around.membership.lost.is_cancelled() {
            // This process is ending, and somebody may still read: what it was shown stays to the last.
            std::mem::forget(shown);
        }
    }
}
