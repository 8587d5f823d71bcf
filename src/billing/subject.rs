//! Whose account an entry belongs to.
//!
//! Never a connection or a turn: those are parts of a job. Relies on nothing.

use crate::units::JobId;

/// A job, or the wallet itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The wallet: errands and nonces that belong to no job.
    Wallet,
    /// A job.
    Job(JobId),
}

impl Subject {
    /// The job; `None` for the wallet.
    #[must_use]
    pub const fn job(self) -> Option<JobId> {
        match self {
            Self::Wallet => None,
            Self::Job(job) => Some(job),
        }
    }
}

impl From<JobId> for Subject {
    fn from(job: JobId) -> Self {
        Self::Job(job)
    }
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wallet => f.write_str("wallet"),
            Self::Job(job) => write!(f, "{job}"),
        }
    }
}
