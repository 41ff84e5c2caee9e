//! Several servers hold the same shard: who of them writes checkpoints, and what one hands over to another that comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, MutexGuard, PoisonError},
};

use bytes::Bytes;
use convoy_proto::{
    ids::{Incarnation, Member, ServerId, Step},
    limits,
    messages::{BlockState, ClusterView, CopyPart, ShardReport, Since},
    sum,
};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::info;

use crate::{
    core::{
        kept::{Formed, Kept, Snapshot},
        shard::Shard,
        versions::{Version, parameter_block},
    },
    host::Host,
};

/// What a server knows of the other copies of its shard.
#[derive(Debug, Default)]
pub struct Copies {
    /// Whether this is the copy that writes checkpoints.
    leads: bool,
    /// The newest commit that the copy which leads is to write: kept until that is done, or this copy leads.
    reserve: Option<Arc<Snapshot>>,
    /// A commit that was asked for too late.
    late: Option<Step>,
    /// Requests for copies that were heeded.
    asked: BTreeSet<(ServerId, Incarnation, Step)>,
    /// Commits that other servers are to fetch.
    ready: BTreeMap<Step, Arc<Snapshot>>,
}

impl Host {
    fn copies(&self) -> MutexGuard<'_, Copies> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another shard is served.
    pub(crate) fn forget_copies(&self) {
        *self.copies() = Copies::default();
    }

    /// Does what a view of the cluster asks of this copy.
    pub(crate) fn heed(self: &Arc<Self>, shard: &Arc<Shard>, view: &ClusterView) {
        self.lead_or_follow(shard, view);
        if let Some(commit) = view.save_at {
            match shard.save_at(commit) {
                Ok(outcome) => self.follow(shard, outcome),
                Err(open) => self.too_late(shard, commit, open),
            }
        }
        let requests = self.requests(view);
        for (server, commit) in requests {
            match shard.copy_at(commit, view.generation) {
                Ok(outcome) => self.follow(shard, outcome),
                Err(open) => self.report(shard.era(), ShardReport::NotCopied { server, commit, open }),
            }
        }
    }

    /// Takes over what the copy that led has left, or forgets what it has written.
    fn lead_or_follow(self: &Arc<Self>, shard: &Arc<Shard>, view: &ClusterView) {
        let (left, late) = {
            let mut copies = self.copies();
            copies.reserve = copies.reserve.take().filter(|snapshot| snapshot.commit > view.saved);
            if !view.leads(self.server()) {
                return;
            }
            copies.leads = true;
            (copies.reserve.take(), copies.late.take().filter(|late| view.save_at == Some(*late)))
        };
        left.into_iter().for_each(|snapshot| self.save(shard, snapshot));
        late.into_iter().for_each(|commit| self.too_late(shard, commit, shard.open_step()));
    }

    fn too_late(self: &Arc<Self>, shard: &Arc<Shard>, commit: Step, open: Step) {
        let leads = {
            let mut copies = self.copies();
            copies.late = Some(commit);
            copies.leads
        };
        if leads {
            self.report(shard.era(), ShardReport::NotSaved { commit, open, problem: None });
        }
    }

    /// What other servers are to take from this one, by when, each once.
    fn requests(&self, view: &ClusterView) -> Vec<(ServerId, Step)> {
        let me = self.server();
        if !view.leads(me) {
            return Vec::new();
        }
        let layout = view.layout();
        let others = layout.copies_of(layout.shard_of(me)).filter(|server| *server != me);
        let mut copies = self.copies();
        // What was kept for somebody who is gone.
        copies.ready.retain(|commit, _| view.servers.iter().any(|there| there.since == Since::Commit(*commit)));
        let asks = |server: ServerId| {
            let there = view.server(server)?;
            let Since::Commit(commit) = there.since else { return None };
            Some((server, there.incarnation, commit))
        };
        let new = others.filter_map(asks).filter(|request| copies.asked.insert(*request));
        new.map(|(server, _, commit)| (server, commit)).collect()
    }

    /// Writes, keeps or hands over a commit, as it was kept for.
    pub(crate) fn take_formed(self: &Arc<Self>, shard: &Arc<Shard>, formed: Formed) {
        let Formed { snapshot, is_saved, is_copied } = formed;
        let leads = {
            let mut copies = self.copies();
            if is_copied {
                copies.ready.insert(snapshot.commit, snapshot.clone());
            }
            if is_saved && !copies.leads {
                copies.reserve = Some(snapshot.clone());
            }
            copies.leads
        };
        if is_copied {
            self.changed();
        }
        if is_saved && leads {
            self.save(shard, snapshot);
        }
    }

    /// Streams a commit to the server that asks for it, once it is made, if it is the one that is to have it.
    pub(crate) async fn hand_over<M: From<CopyPart>>(
        &self,
        (taker, commit): (Member, Step),
        outbound: &mpsc::Sender<Result<M, Status>>,
    ) -> Result<(), Status> {
        let snapshot = self.wait(|| Ok(self.copies().ready.get(&commit).cloned())).await?;
        let view = self.around.membership.view();
        let its = view.server(ServerId(taker.rank)).map(|there| (there.incarnation, there.since));
        if its != Some((taker.incarnation, Since::Commit(commit))) {
            return Err(Status::aborted(format!("{taker} is not the one that takes part from commit {commit} on")));
        }
        self.copies().ready.remove(&commit);
        info!("hands over commit {commit} to {taker}");
        let gone = |_| Status::cancelled("the reader is gone");
        let (mut blocks, mut bytes) = (Vec::new(), 0);
        for kept in &snapshot.blocks {
            let state = state_of(kept);
            let size = state.parameters.len() * (1 + usize::from(state.average.is_some()) + state.state.len());
            if bytes + size > limits::FRAME_BYTES && !blocks.is_empty() {
                outbound.send(Ok(CopyPart::Blocks(std::mem::take(&mut blocks)).into())).await.map_err(gone)?;
                bytes = 0;
            }
            bytes += size;
            blocks.push(state);
        }
        outbound.send(Ok(CopyPart::Blocks(blocks).into())).await.map_err(gone)?;
        let (loss_scale, clean) = (snapshot.loss_scale.get(), snapshot.loss_scale.clean());
        outbound.send(Ok(CopyPart::End { loss_scale, clean }.into())).await.map_err(gone)
    }
}

/// A block for the wire: no copy is made.
fn state_of(kept: &Kept) -> BlockState {
    struct Slot(Arc<Vec<Vec<f32>>>, usize);
    impl AsRef<[u8]> for Slot {
        fn as_ref(&self) -> &[u8] {
            sum::payload_of(&self.0[self.1])
        }
    }
    let payload = |version: &Version| parameter_block(kept.block, version.clone()).payload;
    BlockState {
        block: kept.block,
        parameters: payload(&kept.parameters),
        average: kept.average.as_ref().map(payload),
        state: (0..kept.state.len()).map(|slot| Bytes::from_owner(Slot(kept.state.clone(), slot))).collect(),
        updates: kept.updates,
    }
}
