//! What a worker tells the coordinator: in order, as many reports at once as have gathered.

use convoy_proto::{
    ids::Era,
    messages::Report,
    transport::{Membership, TransportError},
};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::failure::WorkError;

/// Reports that wait to be sent: more than a coordinator can fall behind in a lease.
const AHEAD: usize = 4096;

/// Something in the queue.
enum Item {
    Report(Box<Report>),
    /// Somebody waits until all before it is delivered.
    Mark(oneshot::Sender<()>),
}

/// The way of reports to the coordinator.
#[derive(Debug)]
pub(super) struct Reports {
    queue: Queue,
    sender: JoinHandle<Result<(), TransportError>>,
}

/// A place to put reports. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Queue(mpsc::Sender<Item>);

impl Reports {
    /// Sends as a member in an era, in the background.
    pub fn start(runtime: &Runtime, sender: (Membership, Era)) -> Reports {
        let (queue, items) = mpsc::channel(AHEAD);
        Reports { queue: Queue(queue), sender: runtime.spawn(send(sender, items)) }
    }

    /// Where to put reports.
    pub fn queue(&self) -> Queue {
        self.queue.clone()
    }

    /// Ends when everything is delivered.
    ///
    /// # Errors
    /// The coordinator refused a report, or is gone.
    pub async fn close(self) -> Result<(), WorkError> {
        drop(self.queue);
        if let Ok(sent) = self.sender.await {
            sent?;
        }
        Ok(())
    }
}

impl Queue {
    /// Puts a report in. Fails only if the coordinator is gone, which the membership's `lost` tells, too.
    pub async fn put(&self, report: Report) {
        let _ = self.0.send(Item::Report(Box::new(report))).await;
    }

    /// Waits until the coordinator has all that was put in.
    ///
    /// # Errors
    /// The coordinator is gone.
    pub async fn delivered(&self) -> Result<(), WorkError> {
        let (mark, reached) = oneshot::channel();
        let _ = self.0.send(Item::Mark(mark)).await;
        reached.await.map_err(|_| WorkError::Lost)
    }
}

async fn send((membership, era): (Membership, Era), mut queue: mpsc::Receiver<Item>) -> Result<(), TransportError> {
    let mut items = Vec::new();
    while queue.recv_many(&mut items, AHEAD).await > 0 {
        let (mut reports, mut marks) = (Vec::new(), Vec::new());
        for item in items.drain(..) {
            match item {
                Item::Report(report) => reports.push(*report),
                Item::Mark(mark) => marks.push(mark),
            }
        }
        let sent = match reports.is_empty() {
            true => Ok(()),
            false => membership.coordinator.report(membership.member, era, reports).await,
        };
        if let Err(problem) = sent {
            membership.lost.cancel();
            return Err(problem);
        }
        // Whoever waited may have stopped waiting.
        for mark in marks {
            let _ = mark.send(());
        }
    }
    Ok(())
}
