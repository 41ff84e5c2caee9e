//! What every role's process needs: logs, its run's configuration, what it offers when it joins, and an end when its
//! parent is gone.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    BUILD, PROTOCOL,
    config::{Config, ConfigError},
    ids::Role,
    messages::{JoinOffer, JoinPart},
};

/// What went wrong before a role could start, and the exit code that says so.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file that cannot be read.
    #[error("cannot read {}: {problem}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: std::io::Error,
    },
    /// A file that does not hold a configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Logs to standard error, one line an event; `RUST_LOG` chooses what, `info` of Convoy by default.
pub fn init_logs() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,convoy=info"));
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // A second call, as by tests in one process, leaves the first one's settings.
    let _ = format.try_init();
}

/// Reads `config.toml` of a run.
///
/// # Errors
/// A file that cannot be read or does not hold a configuration.
pub fn load_config(run: &Path) -> Result<Config, StartError> {
    let path = run.join("config.toml");
    let text = std::fs::read_to_string(&path).map_err(|problem| StartError::Read { path: path.clone(), problem })?;
    Ok(Config::from_toml(&path.display().to_string(), &text)?)
}

/// How long a process that lost its parent may take to end by itself.
const ORPHAN_SECONDS: u64 = 3;

/// Cancels `gone` when standard input ends, which a supervisor holds open as long as it lives: so that a child ends
/// with its parent, however the parent ends. A child that is stuck, in a driver or a long computation, is ended.
pub fn watch_parent(gone: CancellationToken) {
    std::thread::spawn(move || {
        let mut byte = [0u8; 64];
        while matches!(std::io::stdin().read(&mut byte), Ok(n) if n > 0) {}
        gone.cancel();
        std::thread::sleep(std::time::Duration::from_secs(ORPHAN_SECONDS));
        std::process::exit(1);
    });
}

/// The name of this machine, for people.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().into() }
}

/// What this process offers when it joins a run's cluster as one of a role.
pub fn join_offer(config: &Config, rank: u32, part: JoinPart) -> JoinOffer {
    let role = match part {
        JoinPart::Server { .. } => Role::Server,
        JoinPart::Worker(_) => Role::Worker,
    };
    JoinOffer {
        protocol: PROTOCOL,
        build: BUILD.into(),
        run_id: config.run_id().into(),
        role,
        rank,
        pid: std::process::id(),
        host: host_name(),
        config_fingerprint: config.fingerprint(),
        part,
    }
}
