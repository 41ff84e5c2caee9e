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
    access::{self, Key},
    config::{Config, ConfigError},
    ids::Role,
    messages::{JoinOffer, JoinPart},
    trace,
    transport::{Security, Tls},
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
    /// Where a token should be there is none.
    #[error("{place} holds neither a token nor a secret, which begin with convoy-")]
    Token {
        /// A file or a variable.
        place: String,
    },
    /// Files that are no certificate and key.
    #[error("the certificates in {place} make no sense: {problem}")]
    Certificate {
        /// The directory.
        place: String,
        /// Why.
        problem: String,
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

/// Notes where this process spends its time, if its run is traced.
pub fn trace(config: &Config, role: Role, rank: u32) {
    if config.watch.is_traced() {
        // Numbers of processes tell those apart that follow each other in a place.
        let who = u64::from(role == Role::Server) << 23
            | u64::from(rank & 0xfff) << 11
            | u64::from(std::process::id() & 0x7ff);
        trace::begin(config.run_id(), who);
    }
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

/// Reads what a process shows and believes from a directory: `ca.crt`, `tls.crt`, `tls.key` and `token`; in place of the
/// last, `CONVOY_TOKEN`. Without a directory there is nothing: a token is never sent in the clear.
///
/// # Errors
/// A file that is missing, or is not what its name says.
pub fn load_security(certs: Option<&Path>) -> Result<Security, StartError> {
    let Some(dir) = certs else { return Ok(Security::default()) };
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read(&path).map_err(|problem| StartError::Read { path, problem })
    };
    let tls = Tls { authority: read("ca.crt")?, certificate: read("tls.crt")?, key: read("tls.key")? };
    tls.check().map_err(|problem| StartError::Certificate { place: dir.display().to_string(), problem })?;
    let (place, text) = match std::env::var_os(access::VARIABLE) {
        Some(text) => (format!("the variable {}", access::VARIABLE), text.to_string_lossy().into_owned()),
        None => (dir.join("token").display().to_string(), String::from_utf8_lossy(&read("token")?).into_owned()),
    };
    let key = Key::read(&text).ok_or(StartError::Token { place })?;
    Ok(Security { tls: Some(tls), key: Some(key) })
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

/// Lets this process have as many files and connections open as the system allows; gives how many that is.
pub fn raise_file_limit() -> usize {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return FEW_FILES };
        let wanted = hard.min(MANY_FILES);
        let raised = soft >= wanted || setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok();
        usize::try_from(if raised { soft.max(wanted) } else { soft }).unwrap_or(usize::MAX)
    }
    #[cfg(not(unix))]
    {
        FEW_FILES
    }
}

/// What systems allow at least.
const FEW_FILES: usize = 256;
/// More than any process here needs.
#[cfg(unix)]
const MANY_FILES: u64 = 1 << 17;

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
