//! A claim of the trials, with what its client read.

use std::collections::BTreeMap;

use tally::chain::Wallet;
use tally::node::verify::Claim;
use tally::proof::{Blob, ProofBytes};
use tally::units::TurnNo;
use tally_engine::KvType;

use crate::node::host;

/// A job whose claim was found right.
pub struct Record {
    /// Place of its model among the subjects.
    pub subject: usize,
    pub kv_type: KvType,
    pub blob: Blob,
    pub proof: ProofBytes,
    /// What the client read.
    pub texts: BTreeMap<TurnNo, String>,
}

/// What the auditor compares with.
pub fn claim_of(record: &Record) -> Claim {
    let domain = record.blob.domain;
    Claim {
        proof: Some(record.proof),
        signer: Some(host().address()),
        marketplace: Some((domain.chain_id, domain.marketplace)),
        texts: record.texts.clone(),
        ..Claim::default()
    }
}
