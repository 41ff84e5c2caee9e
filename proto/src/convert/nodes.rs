//! Messages between the coordinator and nodes.

use super::{Result, WireError, lease, present, role, wrong};
use crate::{
    ids::{NodeId, Role},
    node::{NodeAdmission, NodeOffer, Order, OrderReport, Orders, RunEnd},
    wire,
};

/// Lines of a log that are taken from a node, and the bytes of each.
const LOG_LINES: usize = 20;
const LINE_BYTES: usize = 1 << 12;

impl From<NodeOffer> for wire::JoinNodeRequest {
    fn from(offer: NodeOffer) -> Self {
        let NodeOffer { protocol, build, run_id, host, pid, workers, servers } = offer;
        wire::JoinNodeRequest { protocol, build, run_id: run_id.unwrap_or_default(), host, pid, workers, servers }
    }
}

impl From<wire::JoinNodeRequest> for NodeOffer {
    fn from(request: wire::JoinNodeRequest) -> Self {
        let wire::JoinNodeRequest { protocol, build, run_id, host, pid, workers, servers } = request;
        NodeOffer { protocol, build, run_id: Some(run_id).filter(|id| !id.is_empty()), host, pid, workers, servers }
    }
}

impl From<NodeAdmission> for wire::JoinNodeResponse {
    fn from(admission: NodeAdmission) -> Self {
        let NodeAdmission { node, run_id, config, heartbeat_ms, lease_ms } = admission;
        wire::JoinNodeResponse { node: node.0, run_id, config, heartbeat_ms, lease_ms }
    }
}

impl TryFrom<wire::JoinNodeResponse> for NodeAdmission {
    type Error = WireError;

    fn try_from(response: wire::JoinNodeResponse) -> Result<Self> {
        let wire::JoinNodeResponse { node, run_id, config, heartbeat_ms, lease_ms } = response;
        lease(heartbeat_ms, lease_ms)?;
        // It names a directory here.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if run_id.is_empty() || run_id.starts_with('.') || !run_id.chars().all(is_plain) {
            return Err(wrong("run_id", format!("{run_id:?} is no name of a run")));
        }
        Ok(NodeAdmission { node: NodeId(node), run_id, config, heartbeat_ms, lease_ms })
    }
}

impl From<Order> for wire::Order {
    fn from(order: Order) -> Self {
        wire::Order { role: wire::Role::from(order.role).into(), rank: order.rank, number: order.number }
    }
}

impl TryFrom<wire::Order> for Order {
    type Error = WireError;

    fn try_from(order: wire::Order) -> Result<Self> {
        match role(order.role)? {
            Role::Launcher => Err(wrong("role", "launcher is no order")),
            role => Ok(Order { role, rank: order.rank, number: order.number }),
        }
    }
}

impl From<Orders> for wire::WatchOrdersResponse {
    fn from(orders: Orders) -> Self {
        wire::WatchOrdersResponse {
            orders: orders.orders.into_iter().map(Into::into).collect(),
            end: orders.end.map(|end| wire::RunEnd { exit_code: end.exit_code.into(), message: end.message }),
        }
    }
}

impl TryFrom<wire::WatchOrdersResponse> for Orders {
    type Error = WireError;

    fn try_from(response: wire::WatchOrdersResponse) -> Result<Self> {
        let end = response.end.map(|end| {
            let exit_code = u8::try_from(end.exit_code);
            let exit_code = exit_code.map_err(|_| wrong("exit_code", format!("is {}", end.exit_code)))?;
            Ok(RunEnd { exit_code, message: end.message })
        });
        let orders = response.orders.into_iter().map(TryInto::try_into).collect::<Result<_>>()?;
        Ok(Orders { orders, end: end.transpose()? })
    }
}

impl OrderReport {
    /// The request that a node makes of it.
    pub fn into_request(self, node: NodeId) -> wire::ReportOrderRequest {
        let (wait_status, log) = self.ended.unzip();
        wire::ReportOrderRequest {
            node: node.0,
            order: Some(self.order.into()),
            pid: self.pid,
            wait_status,
            log: log.unwrap_or_default(),
        }
    }
}

impl TryFrom<wire::ReportOrderRequest> for OrderReport {
    type Error = WireError;

    fn try_from(request: wire::ReportOrderRequest) -> Result<Self> {
        let order = present("order", request.order)?.try_into()?;
        if request.log.len() > LOG_LINES || request.log.iter().any(|line| line.len() > LINE_BYTES) {
            return Err(wrong("log", "is longer than it may be"));
        }
        let ended = request.wait_status.map(|status| (status, request.log));
        Ok(OrderReport { order, pid: request.pid, ended })
    }
}

/// The last lines of a log, as short as they must be to be reported.
pub fn fit_log(lines: Vec<String>) -> Vec<String> {
    let from = lines.len().saturating_sub(LOG_LINES);
    let cut = |line: &String| line[..line.floor_char_boundary(LINE_BYTES)].to_string();
    lines[from..].iter().map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_says_comes_back_as_it_was() {
        let order = Order { role: Role::Worker, rank: 3, number: 9 };
        for ended in [None, Some((256, vec!["a".to_string(), "b".to_string()]))] {
            let report = OrderReport { order, pid: 7, ended };
            assert_eq!(OrderReport::try_from(report.clone().into_request(NodeId(2))), Ok(report));
        }
        let end = Some(RunEnd { exit_code: 75, message: "stopped".into() });
        let orders = Orders { orders: vec![order], end };
        assert_eq!(Orders::try_from(wire::WatchOrdersResponse::from(orders.clone())), Ok(orders));
        let offer = NodeOffer {
            protocol: 1,
            build: "b".into(),
            run_id: None,
            host: "h".into(),
            pid: 1,
            workers: 2,
            servers: 3,
        };
        assert_eq!(NodeOffer::from(wire::JoinNodeRequest::from(offer.clone())), offer);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let admission = |run_id: &str, lease_ms| wire::JoinNodeResponse {
            node: 1,
            run_id: run_id.into(),
            config: String::new(),
            heartbeat_ms: 10,
            lease_ms,
        };
        assert!(NodeAdmission::try_from(admission("run-1", 20)).is_ok());
        for (run_id, lease) in [("run", 10), ("", 20), ("../x", 20), ("a/b", 20), (".x", 20)] {
            assert!(NodeAdmission::try_from(admission(run_id, lease)).is_err(), "{run_id} {lease}");
        }
        let end = Some(wire::RunEnd { exit_code: 300, message: String::new() });
        assert!(Orders::try_from(wire::WatchOrdersResponse { orders: Vec::new(), end }).is_err());
        let launcher = wire::Order { role: wire::Role::Launcher.into(), rank: 0, number: 0 };
        assert!(Order::try_from(launcher).is_err());
        let lines: Vec<_> = (0..30).map(|n| format!("{n}{}", "é".repeat(3000))).collect();
        let order = Some(Order { role: Role::Server, rank: 0, number: 1 }.into());
        let request = |log| wire::ReportOrderRequest { node: 1, order, pid: 1, wait_status: Some(0), log };
        assert!(OrderReport::try_from(request(lines.clone())).is_err());
        let fitted = fit_log(lines);
        assert!(fitted[0].starts_with("10"));
        assert!(OrderReport::try_from(request(fitted)).is_ok());
    }
}
