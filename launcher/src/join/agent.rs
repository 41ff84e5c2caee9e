//! What starts and ends a node's processes, as they are ordered.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use convoy_proto::{
    convert::fit_log,
    ids::Role,
    node::{Order, OrderReport, Orders},
};

use super::{End, link::Link};
use crate::{
    children::{ChildExit, ChildSpec, Children, wait_status},
    outcome::Failure,
    plan::WorkerPlan,
    run_dir,
    train::{ending::with_log, restarts::Place},
};

/// How long processes may take to end by themselves.
const GOODBYE: Duration = Duration::from_secs(5);
/// Lines of a log that are told when its process ends.
const LOG_LINES: usize = 5;
/// What wait(2) tells of a process that ended with exit code 3.
const NOT_STARTED: i32 = 3 << 8;

/// A process that runs here.
#[derive(Clone, Copy, Debug)]
struct Running {
    order: Order,
    pid: u32,
    /// Which of the node's devices it computes on, if it is a worker.
    slot: Option<usize>,
}

/// A node's processes.
pub(super) struct Agent {
    link: Link,
    dir: PathBuf,
    stop_within: Duration,
    children: Children,
    plans: Vec<WorkerPlan>,
    /// What all processes of a role are told.
    arguments: BTreeMap<Role, Vec<String>>,
    running: BTreeMap<Place, Running>,
    wanted: Vec<Order>,
    /// The number of the order that was carried out last in a place: none is twice.
    last: BTreeMap<Place, u64>,
}

impl Agent {
    /// Nothing runs yet.
    pub fn new(
        link: Link,
        (dir, stop_within): (PathBuf, Duration),
        plans: Vec<WorkerPlan>,
        arguments: BTreeMap<Role, Vec<String>>,
    ) -> Agent {
        let (children, running) = (Children::default(), BTreeMap::new());
        Agent { link, dir, stop_within, children, plans, arguments, running, wanted: Vec::new(), last: BTreeMap::new() }
    }

    /// Does what is ordered, until the run ends or the coordinator is lost.
    pub async fn serve(&mut self) -> Result<End, Failure> {
        loop {
            tokio::select! {
                biased;
                orders = self.link.next() => match orders {
                    Ok(Orders { end: Some(end), .. }) => return Ok(End::Run(end)),
                    Ok(Orders { orders, .. }) => self.wanted = orders,
                    Err(why) => return Ok(End::Lost(why)),
                },
                Some(exit) = self.children.next_exit() => self.ended(exit).await,
            }
            self.obey().await;
        }
    }

    /// How long the run may take to end once it is told to.
    pub fn stop_within(&self) -> Duration {
        self.stop_within
    }

    /// Says goodbye, if anybody listens.
    pub async fn leave(&self, reason: &str) {
        self.link.leave(reason).await;
    }

    /// Ends all processes, which may end by themselves if the run ended well.
    pub async fn stop(&mut self, is_well: bool) {
        if !is_well || tokio::time::timeout(GOODBYE, self.children.all_ended()).await.is_err() {
            // A child that even a kill does not end, stuck in a driver, does not hold up the end.
            let _ = tokio::time::timeout(GOODBYE, self.children.kill()).await;
        }
    }

    /// Brings what runs in line with what is to run.
    async fn obey(&mut self) {
        for (place, running) in &self.running {
            if !self.wanted.contains(&running.order) {
                self.children.kill_one(place.0, place.1);
            }
        }
        for order in self.wanted.clone() {
            // Where another is still on its way out, this one is started after that.
            let place = (order.role, order.rank);
            if !self.running.contains_key(&place) && self.last.get(&place).is_none_or(|last| *last < order.number) {
                self.last.insert(place, order.number);
                self.start(order).await;
            }
        }
    }

    async fn start(&mut self, order: Order) {
        let started = self.spec(order).and_then(|(spec, slot)| Ok((self.children.start(spec)?, slot)));
        let report = match started {
            Ok((pid, slot)) => {
                self.running.insert((order.role, order.rank), Running { order, pid, slot });
                OrderReport { order, pid, ended: None }
            }
            // Whether it is tried again, the coordinator decides.
            Err(problem) => {
                tell(&format!("{} {} was not started: {problem}", order.role, order.rank));
                let log = fit_log(vec![problem.to_string()]);
                OrderReport { order, pid: 0, ended: Some((NOT_STARTED, log)) }
            }
        };
        self.link.report(report).await;
    }

    /// How to start an ordered process, and on which of the devices.
    fn spec(&self, order: Order) -> Result<(ChildSpec, Option<usize>), Failure> {
        let Order { role, rank, .. } = order;
        let told = self.arguments.get(&role);
        let told = told.ok_or_else(|| Failure::Usage(format!("this node runs no {role}s")))?.clone();
        let (slot, device) = if role == Role::Worker {
            let is_free = |slot: &usize| self.running.values().all(|running| running.slot != Some(*slot));
            let slot = (0..self.plans.len()).find(is_free);
            let slot =
                slot.ok_or_else(|| Failure::Usage(format!("this node runs {} workers, no more", self.plans.len())))?;
            (Some(slot), self.plans[slot].arguments())
        } else {
            (None, Vec::new())
        };
        let own = ["--run".into(), self.dir.display().to_string(), "--rank".into(), rank.to_string()];
        let arguments = [own.to_vec(), told, device].concat();
        let log = self.dir.join("logs").join(format!("{role}-{rank}.log"));
        Ok((ChildSpec { role, rank, arguments, log }, slot))
    }

    async fn ended(&mut self, exit: ChildExit) {
        let place = (exit.role, exit.rank);
        let Some(Running { order, pid, .. }) = self.running.remove(&place) else { return };
        if exit.status.code() != Some(0) {
            tell(&with_log(&exit.describe(), &exit.log));
        }
        let log = fit_log(run_dir::last_lines(&exit.log, LOG_LINES));
        self.link.report(OrderReport { order, pid, ended: Some((wait_status(exit.status), log)) }).await;
    }
}

/// Says something to whoever is at this machine.
fn tell(text: &str) {
    use std::io::Write;
    // Nobody may be there to read it.
    let _ = writeln!(std::io::stderr(), "{text}");
}
