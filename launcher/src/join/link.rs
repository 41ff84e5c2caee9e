//! A node's connection to the coordinator: its lease, its orders as they change, and its reports, each delivered or the
//! node lost.

use std::time::{Duration, Instant};

use convoy_proto::{
    ids::NodeId,
    node::{OrderReport, Orders},
    transport::{NodeClient, TransportError},
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Reports and orders on their way.
const AHEAD: usize = 1024;
/// How long to wait before something is tried again that did not get through.
const AGAIN: Duration = Duration::from_millis(200);

/// A node's connection to the coordinator, for as long as it holds its lease.
#[derive(Debug)]
pub(super) struct Link {
    client: NodeClient,
    node: NodeId,
    orders: mpsc::Receiver<Orders>,
    reports: mpsc::Sender<OrderReport>,
    lost: mpsc::Receiver<String>,
    _stop: DropGuard,
}

impl Link {
    /// Keeps a node's lease from now on; `stop` ends that.
    pub fn start(client: NodeClient, node: NodeId, (beat_ms, lease_ms): (u32, u32), stop: CancellationToken) -> Link {
        let (to_orders, orders) = mpsc::channel(AHEAD);
        let (reports, from_reports) = mpsc::channel(AHEAD);
        let (to_lost, lost) = mpsc::channel(1);
        let (every, lease) = (Duration::from_millis(beat_ms.into()), Duration::from_millis(lease_ms.into()));
        let (one, two, three) = (client.clone(), client.clone(), client.clone());
        spawn(&stop, &to_lost, async move { renew((one, node), every, lease).await });
        spawn(&stop, &to_lost, async move { follow((two, node), &to_orders).await });
        spawn(&stop, &to_lost, async move { deliver((three, node), from_reports).await });
        Link { client, node, orders, reports, lost, _stop: stop.drop_guard() }
    }

    /// The next orders, or why there are none any more.
    pub async fn next(&mut self) -> Result<Orders, String> {
        tokio::select! {
            biased;
            Some(why) = self.lost.recv() => Err(why),
            Some(orders) = self.orders.recv() => Ok(orders),
            else => Err("the coordinator is lost".into()),
        }
    }

    /// Tells what became of an order, in time.
    pub async fn report(&self, report: OrderReport) {
        // Nobody reads it once the coordinator is lost.
        let _ = self.reports.send(report).await;
    }

    /// Says goodbye, if anybody listens.
    pub async fn leave(&self, reason: &str) {
        let _ = tokio::time::timeout(super::GOODBYE, self.client.leave(self.node, reason)).await;
    }
}

/// Runs one of a link's tasks until `stop`, or until it says why the coordinator is lost.
fn spawn(stop: &CancellationToken, lost: &mpsc::Sender<String>, task: impl Future<Output = String> + Send + 'static) {
    let (stop, lost) = (stop.clone(), lost.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            why = task => drop(lost.send(why).await),
        }
    });
}

/// Renews the lease until that fails for as long as it lasts.
async fn renew((client, node): (NodeClient, NodeId), every: Duration, lease: Duration) -> String {
    let mut timer = tokio::time::interval(every);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answered = Instant::now();
    loop {
        timer.tick().await;
        let renewed = tokio::time::timeout(lease / 2, client.renew(node)).await;
        let problem = match renewed {
            Ok(Ok(())) => {
                answered = Instant::now();
                continue;
            }
            Ok(Err(TransportError::Refused { message, .. })) => {
                return format!("the coordinator does not know this node any more: {message}");
            }
            Ok(Err(problem)) => problem.to_string(),
            Err(_) => "no answer".into(),
        };
        if answered.elapsed() > lease {
            return format!(
                "the coordinator has not answered for {:.1} s: {problem}",
                answered.elapsed().as_secs_f64()
            );
        }
    }
}

/// Hands on orders as they change, on one stream after the other.
async fn follow((client, node): (NodeClient, NodeId), orders: &mpsc::Sender<Orders>) -> String {
    loop {
        let problem = match client.orders(node).await {
            Ok(mut stream) => loop {
                match stream.next().await {
                    Some(Ok(news)) => {
                        if orders.send(news).await.is_err() {
                            return "this node ends".into();
                        }
                    }
                    Some(Err(problem)) => break Some(problem),
                    None => break None,
                }
            },
            Err(problem) => Some(problem),
        };
        if let Some(TransportError::Refused { message, .. }) = problem {
            return format!("the coordinator does not know this node any more: {message}");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Delivers reports in order, each until it gets through.
async fn deliver((client, node): (NodeClient, NodeId), mut reports: mpsc::Receiver<OrderReport>) -> String {
    while let Some(report) = reports.recv().await {
        loop {
            match client.report(node, report.clone()).await {
                Ok(()) => break,
                Err(TransportError::Refused { message, .. }) => {
                    return format!("the coordinator does not listen to this node any more: {message}");
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
    "this node ends".into()
}
