//! A transaction of ours, from signature to its final fate.
//!
//! One nonce, many attempts, one effect at most: the chain accepts a nonce once.

use super::{Attempt, ClaimBody, Purpose, RejectReason};
use crate::units::{Amount, BlockHash, BlockNumber, TxHash, WalletNonce};

/// Where a transaction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxState {
    /// Signed and durable; it may be out already. Sending it again is always safe.
    Prepared,
    /// In a block that may still be reorganised away.
    Included {
        /// The attempt that made it.
        hash: TxHash,
        /// The block's height.
        block: BlockNumber,
        /// The block's hash.
        block_hash: BlockHash,
    },
    /// Final, for all that the operator's confirmations promise.
    Confirmed,
    /// It will never do its work.
    Rejected(RejectReason),
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tx {
    /// The wallet's transaction number.
    pub nonce: WalletNonce,
    /// What it does.
    pub purpose: Purpose,
    /// Signed attempts, oldest first; never empty.
    pub attempts: Vec<Attempt>,
    /// From which attempt on they are empty transfers that only take the nonce.
    pub cancelled_from: Option<usize>,
    /// Where it stands.
    pub state: TxState,
    /// How many times it was seen in a block.
    pub sightings: u32,
    /// The attempt last seen in a block.
    pub mined: Option<TxHash>,
    /// The block it was last seen in.
    pub mined_in: Option<BlockNumber>,
    /// What it cost, wei, once it was in a block.
    pub fee: Amount,
}

impl Tx {
    /// Whether its fate is not final.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, TxState::Prepared | TxState::Included { .. })
    }

    /// Whether it was seen in a block and counts as done.
    #[must_use]
    pub const fn is_mined(&self) -> bool {
        matches!(self.state, TxState::Included { .. } | TxState::Confirmed)
    }

    /// What it claims, if it is a claim.
    #[must_use]
    pub const fn claim(&self) -> Option<&ClaimBody> {
        match &self.purpose {
            Purpose::Claim(claim) => Some(claim),
            Purpose::Complete | Purpose::Fill | Purpose::Errand(_) => None,
        }
    }

    /// Hash of the first attempt: its identity beside the nonce.
    #[must_use]
    pub fn first(&self) -> TxHash {
        self.attempts.first().map_or(TxHash::new([0; 32]), |attempt| attempt.hash)
    }

    /// The attempt to name: the one in a block, else the newest.
    #[must_use]
    pub fn named(&self) -> TxHash {
        let newest = || self.attempts.last().map(|attempt| attempt.hash);
        self.mined.or_else(newest).unwrap_or(TxHash::new([0; 32]))
    }

    /// Whether the attempt of this hash does the work, rather than take the nonce out of its way.
    #[must_use]
    pub fn does_work(&self, hash: TxHash) -> bool {
        let at = self.attempts.iter().position(|attempt| attempt.hash == hash);
        at.is_some_and(|at| self.cancelled_from.is_none_or(|from| at < from))
    }
}
