//! News of settlement that a session's clients like to see.
//!
//! Never a promise: a client that missed one reads the session's report. Settlement sends them,
//! front-ends pass them on.

use crate::units::{JobId, TokenCount, TxHash};

/// One piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A claim is in a block.
    ClaimIncluded {
        /// Of this job.
        job: JobId,
        /// The delta it claimed.
        tokens: TokenCount,
        /// The transaction.
        tx: TxHash,
    },
    /// The session is settled on chain.
    Completed {
        /// This job.
        job: JobId,
    },
}

impl Notice {
    /// The job it is about.
    #[must_use]
    pub const fn job(&self) -> JobId {
        match self {
            Self::ClaimIncluded { job, .. } | Self::Completed { job } => *job,
        }
    }
}
