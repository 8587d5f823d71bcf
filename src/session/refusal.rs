//! Why a request is refused, as a caller needs to know it.
//!
//! Never holds prompts, keys or internal detail. The `code` is stable; words may change.

use super::PauseReason;
use crate::units::{Address, ClaimSeq, JobId, TokenCount};

/// A refusal. No token was made and nothing was charged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field is missing or out of range.
    #[error("{message}")]
    Invalid {
        /// The wire name of the field.
        field: &'static str,
        /// What was wanted and what was found.
        message: String,
    },
    /// The prompt does not fit the model.
    #[error("prompt of {prompt_tokens} tokens does not fit a context of {context_window}")]
    ContextLength {
        /// Tokens of the rendered prompt.
        prompt_tokens: u32,
        /// The model's context, in tokens.
        context_window: u32,
    },
    /// No model of this name or alias is served.
    #[error("model \"{model}\" is not served here")]
    ModelNotFound {
        /// As asked for.
        model: String,
        /// What is served.
        available: Vec<String>,
    },
    /// The contract knows no such session.
    #[error("job {0} does not exist on this chain")]
    SessionNotFound(JobId),
    /// The job has no claim of this number here.
    #[error("job {job} has no claim {seq}")]
    ProofNotFound {
        /// The job.
        job: JobId,
        /// As asked for.
        seq: ClaimSeq,
    },
    /// The session belongs to another host.
    #[error("job {0} belongs to another host")]
    OtherHost(JobId),
    /// The caller is not the session's owner, or plain access is not open to them.
    #[error("{0}")]
    Unauthorized(&'static str),
    /// The session is over, or being settled.
    #[error("job {0} is closed")]
    SessionClosed(JobId),
    /// The deposit buys no further token.
    #[error("job {job}: the deposit is spent")]
    PaymentRequired {
        /// The job.
        job: JobId,
        /// Tokens left, counting running requests' holds.
        tokens_left: TokenCount,
    },
    /// The session's price is below what this host asks for the model.
    #[error("job {job}: the session's price is below this host's minimum of {price_min}")]
    PriceTooLow {
        /// The job.
        job: JobId,
        /// The minimum in the contract's price unit.
        price_min: u128,
    },
    /// The session is paid in a currency that this host does not take.
    #[error("job {job}: payment token {token} is not accepted here")]
    TokenNotAccepted {
        /// The job.
        job: JobId,
        /// What it is paid in.
        token: Address,
    },
    /// The marketplace holds less than the session's deposit.
    #[error("job {0}: the marketplace no longer holds this session's deposit")]
    Unfunded(JobId),
    /// The session was opened for another model than the one asked for.
    #[error("job {0} was opened for another model")]
    OtherModel(JobId),
    /// The contract lets no token of the session be claimed: no rate is set for its model.
    #[error("job {0}: the model registry sets no claim rate for its model, so it cannot be paid")]
    RateUnset(JobId),
    /// Too much of the session's work is unclaimed.
    #[error("job {0}: claims have to catch up first; retry later")]
    Exposed(JobId),
    /// No new work is taken.
    #[error("{}", .0.words())]
    Paused(PauseReason),
    /// Another chain than this node's was named.
    #[error("chain_id {asked} is not served here; this node works on chain {ours}")]
    OtherChain {
        /// As asked for.
        asked: u64,
        /// This node's chain.
        ours: u64,
    },
    /// All places are taken.
    #[error("all places are taken; retry later")]
    Busy,
    /// Ledger and chain disagree about this job: a human must look first.
    #[error("job {0} is halted until its operator has looked at it")]
    Halted(JobId),
    /// The node cannot serve now: chain unreachable, shutting down, or ledger broken.
    #[error("{0}")]
    Unavailable(&'static str),
    /// A fault of our own; the log says more.
    #[error("internal error")]
    Internal,
}

impl Refusal {
    /// A refusal for one field.
    #[must_use]
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid { field, message: message.into() }
    }

    /// The stable code, as the marketplace API names it.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } | Self::OtherChain { .. } => "validation_error",
            Self::ContextLength { .. } => "context_length",
            Self::ModelNotFound { .. } | Self::OtherModel(_) => "model_not_found",
            Self::SessionNotFound(_) => "session_not_found",
            Self::ProofNotFound { .. } => "proof_not_found",
            Self::OtherHost(_) => "forbidden",
            Self::Unauthorized(_) => "unauthorized",
            Self::SessionClosed(_) => "session_closed",
            Self::PaymentRequired { .. }
            | Self::PriceTooLow { .. }
            | Self::TokenNotAccepted { .. }
            | Self::Unfunded(_) => "payment_required",
            Self::RateUnset(_) => "rate_unset",
            Self::Exposed(_) => "exposure_limit",
            Self::Paused(_) => "paused",
            Self::Busy => "rate_limit_exceeded",
            Self::Unavailable(_) => "service_unavailable",
            Self::Halted(_) | Self::Internal => "internal_error",
        }
    }
}
