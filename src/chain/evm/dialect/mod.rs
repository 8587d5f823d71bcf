//! What differs between versions of the marketplace: one implementation of [`Dialect`] each.
//!
//! Never talks to the network: bytes in, bytes out. A new version is a new file here and a line
//! in [`speak`]. Relies on docs/spec/contract.md sections 1 and 2.

mod v3;

use alloy::primitives::B256;

use super::version::ContractVersion;
use super::wire::Log;
use crate::chain::{ChainError, ChainJob};
use crate::units::{Address, JobId, TokenCount};

/// A `ProofSubmitted` event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proven {
    /// The job.
    pub job: JobId,
    /// Who claimed.
    pub host: Address,
    /// The amount the contract added.
    pub tokens: TokenCount,
}

/// One version's shapes and constants.
pub(super) trait Dialect: Send + Sync + std::fmt::Debug {
    /// Its name.
    fn version(&self) -> ContractVersion;

    /// Call data of `submitProofOfWork`. `tokens` is a delta.
    fn claim(&self, job: JobId, tokens: TokenCount, proof: &[u8]) -> Vec<u8>;

    /// Reads what `sessionJobs(job)` returned; `None` for a job the contract does not know, which
    /// reads as zeros.
    ///
    /// # Errors
    /// [`ChainError::Unexpected`] where the shape or a number is not this version's.
    fn session(&self, job: JobId, returned: &[u8]) -> Result<Option<ChainJob>, ChainError>;

    /// Topic 0 of its `ProofSubmitted`, whose topic 2 is the host.
    fn proven_topic(&self) -> B256;

    /// Reads a `ProofSubmitted`; `None` for any other log.
    ///
    /// # Errors
    /// [`ChainError::Unexpected`] where topic 0 fits and the rest does not.
    fn proven(&self, log: &Log) -> Result<Option<Proven>, ChainError>;
}

/// The dialect of a version, where it is spoken here.
pub(super) fn speak(version: ContractVersion) -> Option<Box<dyn Dialect>> {
    match version {
        ContractVersion::V3 => Some(Box::new(v3::V3)),
        ContractVersion::V3a
        | ContractVersion::V4
        | ContractVersion::V5
        | ContractVersion::V6
        | ContractVersion::V7 => None,
    }
}

/// The versions spoken here, for messages.
pub(super) fn spoken() -> String {
    let spoken = ContractVersion::ALL.into_iter().filter(|version| speak(*version).is_some());
    spoken.map(ContractVersion::name).collect::<Vec<_>>().join(", ")
}
