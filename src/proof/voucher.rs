//! The voucher's digest by EIP-712: what a key signs for a claim.
//!
//! Never signs: keys live behind the wallet. Layout: docs/spec/proof.md.

use super::preimage::{Preimage, keccak256};
use crate::units::{Address, ClaimSeq, Hash32, JobId, TokenCount};

const DOMAIN_TYPE: &[u8] =
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
const VOUCHER_TYPE: &[u8] =
    b"Voucher(uint256 jobId,uint64 cumTokens,uint32 seq,bytes32 root,bytes32 model)";
const DOMAIN_NAME: &[u8] = b"Tally";
const DOMAIN_VERSION: &[u8] = b"1";

/// Where a voucher counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoucherDomain {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The marketplace contract.
    pub marketplace: Address,
}

/// How many tokens of which transcript a job owes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voucher {
    /// The job.
    pub job: JobId,
    /// Tokens owed from the start of the job.
    pub tokens_cumulative: TokenCount,
    /// Number of the root within the job, from 1.
    pub seq: ClaimSeq,
    /// The root.
    pub root: Hash32,
    /// `modelSpec` of the last token.
    pub model: Hash32,
}

/// The 32 bytes that are signed, without any further prefix.
#[must_use]
pub fn voucher_digest(domain: &VoucherDomain, voucher: &Voucher) -> Hash32 {
    let separator = Preimage::new()
        .hash(keccak256(DOMAIN_TYPE))
        .hash(keccak256(DOMAIN_NAME))
        .hash(keccak256(DOMAIN_VERSION))
        .word(domain.chain_id)
        .bytes(&[0; 12])
        .bytes(domain.marketplace.bytes())
        .finish();
    let content = Preimage::new()
        .hash(keccak256(VOUCHER_TYPE))
        .job(voucher.job)
        .word(voucher.tokens_cumulative.get())
        .word(u64::from(voucher.seq.get()))
        .hash(voucher.root)
        .hash(voucher.model)
        .finish();
    Preimage::new().bytes(&[0x19, 0x01]).hash(separator).hash(content).finish()
}
