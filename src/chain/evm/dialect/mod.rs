//! What differs between versions of the marketplace, behind one [`Dialect`].
//!
//! Never talks to the network: bytes in, bytes out. A new version is a new line in the tables of
//! these files, which the compiler asks for. Relies on docs/spec/contract.md sections 1 to 3.

mod claims;
mod content;
mod layout;
mod proofs;

use alloy::primitives::B256;

use super::version::ContractVersion;
use super::wire::Log;
use crate::chain::{ChainError, ChainJob, PrepareError, Wallet};
use crate::units::{ChainSeconds, JobId};

pub(super) use claims::Claim;
use layout::Layout;
pub(super) use proofs::Proven;

/// Tokens per second that may be claimed (rule 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rate {
    /// The same for every session.
    Same(u64),
    /// What the model registry says about the session's model.
    OfModel,
}

/// Section 3: v3a's host may complete after an hour, where the contract names no window.
const HOUR: ChainSeconds = ChainSeconds::new(3600);

/// One version's shapes and constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dialect {
    version: ContractVersion,
}

impl Dialect {
    /// The dialect of a version.
    pub(super) const fn of(version: ContractVersion) -> Self {
        Self { version }
    }

    /// Its name.
    pub(super) const fn version(self) -> ContractVersion {
        self.version
    }

    /// Call data of `submitProofOfWork`. The same claim and wallet give the same bytes.
    ///
    /// # Errors
    /// [`PrepareError`] where the version wants a first word that the proof has not, or the
    /// host's signature and the key refuses.
    pub(super) fn claim(
        self,
        claim: &Claim<'_>,
        wallet: &dyn Wallet,
    ) -> Result<Vec<u8>, PrepareError> {
        claims::encode(self.version, claim, wallet)
    }

    /// The proof bytes of a claim's call data; `None` for any other call.
    pub(super) fn proof_of(self, input: &[u8]) -> Option<Vec<u8>> {
        claims::decode(self.version, input)
    }

    /// Reads what `sessionJobs(job)` returned; `None` for a job the contract does not know, which
    /// reads as zeros. Where the rate is [`Rate::OfModel`], model and rate are left empty: `models`
    /// fills them in.
    ///
    /// # Errors
    /// [`ChainError::Unexpected`] where the shape or a number is not this version's.
    pub(super) fn session(
        self,
        job: JobId,
        returned: &[u8],
    ) -> Result<Option<ChainJob>, ChainError> {
        Layout::of(self.version).read(job, self.rate(), returned)
    }

    /// How much may be claimed. v4 was raised from 20 to 2000 in its time, and nothing in the chain
    /// tells when: there is no getter, and the page does not say that `PRICE_PRECISION`, which came
    /// in v4's time too, came together with it. The smaller rate is safe on both; it costs time,
    /// and what a client leaves unclaimed when it ends a fast session. The larger one loses whole
    /// claims where it is wrong.
    pub(super) const fn rate(self) -> Rate {
        use ContractVersion as V;
        match self.version {
            V::V3a | V::V3 | V::V4 => Rate::Same(20),
            V::V5 | V::V6 => Rate::Same(2000),
            V::V7 => Rate::OfModel,
        }
    }

    /// The dispute window of a contract that has no getter for it; `None` where it must have one.
    pub(super) const fn dispute_window(self) -> Option<ChainSeconds> {
        use ContractVersion as V;
        match self.version {
            V::V3a => Some(HOUR),
            V::V3 | V::V4 | V::V5 | V::V6 | V::V7 => None,
        }
    }

    /// Topic 0 of its `ProofSubmitted`, whose topic 2 is the host.
    pub(super) const fn proven_topic(self) -> B256 {
        proofs::topic(self.version)
    }

    /// Reads a `ProofSubmitted`; `None` for any other log.
    ///
    /// # Errors
    /// [`ChainError::Unexpected`] where topic 0 fits and the rest does not.
    pub(super) fn proven(self, log: &Log) -> Result<Option<Proven>, ChainError> {
        proofs::read(self.version, log)
    }
}

/// The versions spoken here, for messages.
pub(super) fn spoken() -> String {
    ContractVersion::ALL.map(ContractVersion::name).join(", ")
}

/// Whether `returned` by `sessionJobs` is as wide as this version's: its first text starts right
/// behind the outputs, so the offset written there is their width in bytes.
///
/// Only sure for a session of zeros (job 0), where no other output can look like an offset.
pub(super) fn fits_session(version: ContractVersion, returned: &[u8]) -> bool {
    Layout::of(version).is_as_wide_as(returned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_never_above_what_every_contract_of_the_version_allows() {
        use ContractVersion as V;
        let table = [
            (V::V3a, Rate::Same(20)),
            (V::V3, Rate::Same(20)),
            (V::V4, Rate::Same(20)),
            (V::V5, Rate::Same(2000)),
            (V::V6, Rate::Same(2000)),
            (V::V7, Rate::OfModel),
        ];
        for (version, rate) in table {
            assert_eq!(Dialect::of(version).rate(), rate, "{version}");
        }
    }

    #[test]
    fn a_session_of_zeros_tells_the_version_by_its_width() {
        use ContractVersion as V;
        let zeros = |outputs: usize, texts: &[usize]| {
            let mut words = vec![[0u8; 32]; outputs + texts.len()];
            for (nth, at) in texts.iter().enumerate() {
                let offset = u16::try_from((outputs + nth) * 32).unwrap();
                words[*at][30..].copy_from_slice(&offset.to_be_bytes());
            }
            words.concat()
        };
        let table = [
            (zeros(15, &[14]), vec![V::V3a]),
            (zeros(16, &[15]), vec![V::V3]),
            (zeros(18, &[15, 17]), vec![V::V4, V::V7]),
            (zeros(17, &[14, 16]), vec![V::V5, V::V6]),
            (vec![], vec![]),
            (vec![0; 16 * 32], vec![]),
        ];
        for (returned, fitting) in table {
            let fits = V::ALL.into_iter().filter(|v| fits_session(*v, &returned));
            assert_eq!(fits.collect::<Vec<_>>(), fitting);
        }
    }
}
