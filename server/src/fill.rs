//! A server that comes while training goes on takes its shard from another copy, as of a commit that the coordinator names.

use std::{sync::Arc, time::Duration};

use convoy_proto::{
    ids::{Era, Incarnation, ServerId, Step},
    loss_scale::LossScale,
    messages::{BlockState, ClusterView, Since},
    sum,
    transport::{Membership, ShardClient, TransportError},
};
use tracing::{info, warn};

use crate::core::kept::{Kept, Snapshot};

/// What a server is told to take, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Order {
    commit: Step,
    from: ServerId,
    address: String,
    incarnation: Incarnation,
}

/// Whether a server takes its shard from another copy.
pub fn is_late(view: &ClusterView, server: ServerId) -> bool {
    view.server(server).is_some_and(|there| there.since != Since::Beginning)
}

/// What a view tells a server to take; nothing yet, if it waits.
fn order(view: &ClusterView, server: ServerId) -> Option<Order> {
    let Since::Commit(commit) = view.server(server)?.since else { return None };
    let copies = view.copies(view.layout().shard_of(server), commit);
    let from = copies.into_iter().find(|copy| *copy != server)?;
    let source = view.server(from)?;
    Some(Order { commit, from, address: source.address.clone(), incarnation: source.incarnation })
}

/// Takes the shard of an era from another copy, of the commit that the coordinator names last.
///
/// # Errors
/// The copy does not hand it over, although it should: it has not died, or nobody has heard of that for `patience`.
pub async fn fill(membership: Membership, era: Era, patience: Duration) -> Result<Snapshot, TransportError> {
    let me = ServerId(membership.member.rank);
    let mut views = membership.views();
    loop {
        let told = views.wait_for(|view| view.era == era && order(view, me).is_some()).await;
        let Some(order_now) = told.ok().and_then(|view| order(&view, me)) else {
            // The coordinator is gone, which `lost` tells, too.
            return std::future::pending().await;
        };
        let is_other = |view: &ClusterView| order(view, me).as_ref() != Some(&order_now);
        let changed = views.wait_for(is_other);
        let problem = tokio::select! {
            copied = take(&membership, era, &order_now) => match copied {
                Ok(snapshot) => return Ok(snapshot),
                Err(problem) => problem,
            },
            _ = changed => continue,
        };
        warn!("cannot take commit {} from server {}: {problem}", order_now.commit, order_now.from);
        if tokio::time::timeout(patience, views.wait_for(is_other)).await.is_err() {
            return Err(problem);
        }
    }
}

async fn take(membership: &Membership, era: Era, order: &Order) -> Result<Snapshot, TransportError> {
    let client = ShardClient::connect(order.from, &order.address, membership.coordinator.credentials()).await?;
    let mut blocks = Vec::new();
    let copied = client.copy((membership.member, era, order.commit), |state| blocks.push(kept_of(state)));
    let (loss_scale, clean) = copied.await?;
    info!("has commit {} from server {}, {} blocks", order.commit, order.from, blocks.len());
    Ok(Snapshot { commit: order.commit, loss_scale: LossScale::new(loss_scale).at(loss_scale, clean), blocks })
}

fn kept_of(state: BlockState) -> Kept {
    let values = |payload: &[u8]| {
        let mut values = vec![0.0; payload.len() / size_of::<f32>()];
        sum::read_payload(&mut values, payload);
        values
    };
    Kept {
        block: state.block,
        parameters: Arc::new(values(&state.parameters).into()),
        average: state.average.map(|average| Arc::new(values(&average).into())),
        state: Arc::new(state.state.iter().map(|slot| values(slot)).collect()),
        updates: state.updates,
    }
}
