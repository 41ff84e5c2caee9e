//! The dashboard: pages, the runs behind them as JSON and as a stream, and metrics for Prometheus.
//!
//! It has a thread and a runtime of its own, and reads what runs write down, so that nobody who looks holds up who trains.
//! It only shows, unless a token is given: then whoever has that may stop a run, or scale it. On loopback, only requests
//! to a name of loopback are answered, so that no page from elsewhere can read along through a person's browser.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::sync::Semaphore;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::beside::Beside;
use convoy_proto::{
    config::{Watch, watch::Dashboard as Place},
    transport::{Caller, Incoming, incoming_at_most},
};

use crate::{
    args::{DashboardArgs, Places},
    cli,
    outcome::Failure,
};

mod actions;
mod router;
mod shelf;

use actions::Actions;
use shelf::Shelf;

/// Where it is, if nothing is said; if somebody else is there, the system chooses.
pub const PORT: u16 = 8600;
/// Connections at once: the launcher needs its files for the run.
const CALLERS: usize = 256;
/// How long whoever looks may take to be told of a run's end.
const GOODBYE: Duration = Duration::from_secs(1);

/// A place for a dashboard, and who may do what there.
#[derive(Debug)]
pub struct Page {
    listener: TcpListener,
    actions: Option<Actions>,
}

impl Page {
    /// Takes an address; none is loopback's, wherever there is room.
    ///
    /// # Errors
    /// The address cannot be listened on, or the file holds no token.
    pub fn open(address: Option<SocketAddr>, token: Option<&Path>) -> Result<Page, Failure> {
        let actions = token.map(Actions::read).transpose()?;
        Ok(Page { listener: listen(address)?, actions })
    }

    /// Of a run's settings, if it is to have one.
    ///
    /// # Errors
    /// As [`Page::open`].
    pub fn of_run(watch: &Watch) -> Result<Option<Page>, Failure> {
        let address = match watch.dashboard {
            Place::Off => return Ok(None),
            Place::Loopback => None,
            Place::At(address) => Some(address),
        };
        Page::open(address, watch.dashboard_token.as_deref().map(Path::new)).map(Some)
    }

    /// Shows a run, and the others beside it.
    ///
    /// # Errors
    /// There are no threads.
    pub fn show(self, run: &Path) -> Result<Dashboard, Failure> {
        self.show_all(run.parent().unwrap_or(run), run.file_name().and_then(|name| name.to_str()))
    }

    /// Shows the runs below a root; `own` is the one whose launcher this is.
    fn show_all(self, root: &Path, own: Option<&str>) -> Result<Dashboard, Failure> {
        let Page { listener, actions } = self;
        let cannot = |problem: std::io::Error| Failure::Environment(format!("cannot open the dashboard: {problem}"));
        listener.set_nonblocking(true).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let stop = CancellationToken::new();
        let router = router::router(router::Site {
            shelf: Shelf::new(root, own),
            actions,
            is_local: address.ip().is_loopback(),
            streams: Arc::new(Semaphore::new(router::STREAMS)),
            stop: stop.clone(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
        let stopped = stop.clone();
        let serve = move || {
            runtime.block_on(async {
                let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
                let callers = Callers { address, incoming: incoming_at_most(listener, CALLERS) };
                let serving = axum::serve(callers, router).with_graceful_shutdown(stopped.clone().cancelled_owned());
                let late = async {
                    stopped.cancelled().await;
                    tokio::time::sleep(GOODBYE).await;
                };
                tokio::select! {
                    _ = async { serving.await } => {}
                    () = late => {}
                }
            });
            runtime.shutdown_background();
        };
        let thread = Beside::start("dashboard", serve).map_err(cannot)?;
        Ok(Dashboard { address, stop, thread })
    }
}

/// A dashboard that is there, until it is dropped.
#[derive(Debug)]
pub struct Dashboard {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Beside,
}

impl Dashboard {
    /// Where a browser finds it.
    pub fn url(&self) -> String {
        let host = match self.address.ip() {
            ip if ip.is_unspecified() => convoy_proto::process::host_name(),
            IpAddr::V6(ip) => format!("[{ip}]"),
            IpAddr::V4(ip) => ip.to_string(),
        };
        format!("http://{host}:{}", self.address.port())
    }

    /// Where it is, and who can read it.
    pub fn told(&self) -> String {
        let note = if self.address.ip().is_loopback() { "" } else { " (whoever reaches that address can read it)" };
        format!("dashboard {}{note}", self.url())
    }

    /// Waits for its end, which is that of the process.
    pub fn wait(self) {
        self.thread.wait();
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.stop.cancel();
        self.thread.end();
    }
}

/// `launcher dashboard`: shows the runs below a root until somebody ends it.
///
/// # Errors
/// The address cannot be listened on, or the token is none.
pub fn dashboard(args: &DashboardArgs, places: &Places) -> Result<(), Failure> {
    let listen = match &args.listen {
        None => None,
        Some(text) => match text.parse() {
            Ok(Place::At(address)) => Some(address),
            Ok(Place::Off | Place::Loopback) => None,
            Err(problem) => return Err(Failure::Usage(problem.to_string())),
        },
    };
    let dashboard = Page::open(listen, args.dashboard_token.as_deref())?.show_all(Path::new(places.root()), None)?;
    cli::say(dashboard.told())?;
    dashboard.wait();
    Ok(())
}

/// Connections, of which there may be so many.
struct Callers {
    address: SocketAddr,
    incoming: Incoming,
}

impl axum::serve::Listener for Callers {
    type Io = Caller;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Caller, SocketAddr) {
        loop {
            // It has no end, and says itself what is wrong.
            if let Some(Ok(caller)) = self.incoming.next().await {
                return (caller, self.address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

fn listen(wanted: Option<SocketAddr>) -> Result<TcpListener, Failure> {
    let Some(wanted) = wanted else {
        let usual = TcpListener::bind((IpAddr::from([127, 0, 0, 1]), PORT));
        return usual
            .or_else(|_| TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0)))
            .map_err(|problem| Failure::Environment(format!("cannot open the dashboard on loopback: {problem}")));
    };
    TcpListener::bind(wanted).map_err(|problem| {
        Failure::Environment(format!(
            "cannot open the dashboard on {wanted}: {problem}; choose another address, or give none for a free port on loopback"
        ))
    })
}
