//! What somebody with the token may do to a run.

use std::path::Path;

use subtle::ConstantTimeEq;

use crate::{outcome::Failure, run_dir, scale};
use convoy_proto::process;

/// The token, as far as it is needed to know it again.
#[derive(Clone)]
pub struct Actions {
    token: String,
}

impl std::fmt::Debug for Actions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Actions")
    }
}

/// The shortest token: less is guessed.
const LEAST: usize = 16;

impl Actions {
    /// What a file holds.
    ///
    /// # Errors
    /// It cannot be read, or what it holds is guessed too easily.
    pub fn read(file: &Path) -> Result<Actions, Failure> {
        let text = std::fs::read_to_string(file).map_err(|problem| {
            Failure::Usage(format!("--dashboard-token: cannot read {}: {problem}", file.display()))
        })?;
        let token = text.trim().to_string();
        if token.len() < LEAST {
            let problem = format!("holds {} characters, fewer than the {LEAST} that a token must have", token.len());
            return Err(Failure::Usage(format!("--dashboard-token: {} {problem}", file.display())));
        }
        Ok(Actions { token })
    }

    /// Whether somebody shows it.
    pub fn is_shown(&self, authorization: Option<&str>) -> bool {
        let shown = authorization.and_then(|value| value.strip_prefix("Bearer "));
        shown.is_some_and(|shown| shown.as_bytes().ct_eq(self.token.as_bytes()).into())
    }
}

/// Asks a run's launcher to stop, as Ctrl-C does.
///
/// # Errors
/// It does not train.
pub fn stop(run: &Path) -> Result<String, Failure> {
    let there = scale::whereabouts(run)?;
    // After a launcher that was killed, its number may be another's.
    if !run_dir::is_held(run) {
        return Err(Failure::Failed("no launcher is at work on the run".into()));
    }
    if there.host != process::host_name() {
        return Err(Failure::Failed(format!("its launcher is on {}: stop it there", there.host)));
    }
    let pid = i32::try_from(there.pid).ok().filter(|pid| *pid > 1);
    let pid = pid.ok_or_else(|| Failure::Failed(format!("{} is no process", there.pid)))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)
        .map_err(|problem| Failure::Failed(format!("cannot signal process {pid}: {problem}")))?;
    Ok("the run finishes its step, writes a checkpoint and stops".into())
}

/// Asks a run for another number of workers.
///
/// # Errors
/// It does not train, or cannot have as many.
pub async fn scale(run: &Path, workers: u32) -> Result<String, Failure> {
    let before = scale::ask(run, workers).await?;
    Ok(format!("the run goes on with {workers} workers in place of {before}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_and_shown_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        let actions = Actions::read(&file).unwrap();
        assert!(actions.is_shown(Some("Bearer 0123456789abcdef")));
        for wrong in [None, Some(""), Some("Bearer "), Some("0123456789abcdef"), Some("Bearer 0123456789abcde")] {
            assert!(!actions.is_shown(wrong), "{wrong:?}");
        }
        assert_eq!(format!("{actions:?}"), "Actions");
        std::fs::write(&file, "short").unwrap();
        assert!(Actions::read(&file).unwrap_err().to_string().contains("holds 5 characters"));
        assert_eq!(Actions::read(&dir.path().join("none")).unwrap_err().exit_code(), 2);
    }
}
