//! Why a worker ends before its cluster does, and the exit code that says so.

use convoy_proto::{
    config::ConfigError,
    ids::{Era, Step},
    process::StartError,
    transport::TransportError,
};

use crate::{data::DataError, exchange::ExchangeError, task::OpenError};

/// Why a worker ends before the cluster does.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The run's files.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The run's task is none of this program's.
    #[error(transparent)]
    Task(#[from] ConfigError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model or the device.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The coordinator refuses or is gone.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A server refuses or is gone.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// Parameters are not what the commits before should have made of them.
    #[error("the exchange is not exact: {0}")]
    Inexact(String),
    /// The coordinator has not been heard of for a lease.
    #[error("the coordinator is lost")]
    Lost,
    /// A server died, and the run goes on from a checkpoint.
    #[error("era {0} is over")]
    EraOver(Era),
    /// A step was not committed in time.
    #[error("step {step} was not committed within {limit_ms} ms")]
    Late {
        /// The step.
        step: Step,
        /// The limit.
        limit_ms: u32,
    },
    /// The runtime did not start.
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
}

impl WorkError {
    /// Whether it may be because a server died, so that a new era is about to begin.
    pub fn is_of_others(&self) -> bool {
        matches!(
            self,
            WorkError::EraOver(_)
                | WorkError::Transport(_)
                | WorkError::Exchange(ExchangeError::Transport(_) | ExchangeError::Gone(_))
        )
    }

    /// Whether somebody is there and says no.
    pub fn is_refusal(&self) -> bool {
        let refusal = match self {
            WorkError::Transport(problem) | WorkError::Exchange(ExchangeError::Transport(problem)) => Some(problem),
            _ => None,
        };
        matches!(refusal, Some(TransportError::Refused { .. }))
    }

    /// The code that the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            WorkError::Start(_) | WorkError::Task(_) | WorkError::Data(_) | WorkError::Open(OpenError::Task(_)) => 2,
            WorkError::Open(OpenError::Device(_)) => 3,
            _ => 1,
        }
    }
}
