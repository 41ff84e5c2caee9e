//! How a command ends when it does not end well: a message for a person and an exit code for a script.

use convoy_proto::{config::ConfigError, process::StartError};
use convoy_worker::{data::DataError, task::OpenError};

/// Exit codes, the same for every command.
pub mod exit {
    /// Training failed.
    pub const FAILED: u8 = 1;
    /// The command line or the configuration is wrong.
    pub const USAGE: u8 = 2;
    /// The machine lacks something: a device, a port, a writable directory.
    pub const ENVIRONMENT: u8 = 3;
    /// Workers or servers were lost.
    pub const LOST: u8 = 4;
    /// The loss is not finite.
    pub const DIVERGED: u8 = 5;
    /// The run was stopped, and can be resumed.
    pub const STOPPED: u8 = 75;
    /// Added to the number of the signal that ended the run.
    pub const SIGNAL: u8 = 128;
}

/// Why a command ends early.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The machine lacks something.
    #[error("{0}")]
    Environment(String),
    /// A process was lost.
    #[error("{0}")]
    Lost(String),
    /// The loss is not finite.
    #[error("{0}")]
    Diverged(String),
    /// Anything else that ended training.
    #[error("{0}")]
    Failed(String),
    /// A signal asked for the end, and a checkpoint was written.
    #[error("stopped at a checkpoint; `launcher resume {0}` goes on")]
    Stopped(String),
    /// A run that another machine's launcher coordinates ended, not well.
    #[error("{message}")]
    Elsewhere {
        /// The code that launcher exits with.
        exit_code: u8,
        /// Why.
        message: String,
    },
    /// A signal asked for the end.
    #[error("stopped by signal {0}")]
    Signal(i32),
}

impl Failure {
    /// The code that the command exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => exit::USAGE,
            Failure::Environment(_) => exit::ENVIRONMENT,
            Failure::Lost(_) => exit::LOST,
            Failure::Diverged(_) => exit::DIVERGED,
            Failure::Failed(_) => exit::FAILED,
            Failure::Stopped(_) => exit::STOPPED,
            Failure::Elsewhere { exit_code, .. } => *exit_code,
            Failure::Signal(signal) => exit::SIGNAL.saturating_add(u8::try_from(*signal).unwrap_or(0)),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Usage(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Failure::Usage(error.to_string())
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Failure::Usage(error.to_string())
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Task(problem) => Failure::Usage(problem),
            OpenError::Device(problem) => Failure::Environment(problem),
        }
    }
}
