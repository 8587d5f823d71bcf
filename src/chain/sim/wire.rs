//! Signed transactions as bytes: what the node keeps, sends again, and the chain reads back.
//!
//! Never a real encoding, and nothing is signed: whoever has the bytes can send them, as with a
//! real transaction.

use super::contract::Deed;
use super::pool::SimTx;
use crate::chain::{Call, SignedTx, TxSpec};
use crate::proof::keccak256;
use crate::units::{JobId, TxHash};

const CLAIM: u8 = 1;
const COMPLETE: u8 = 2;
const NOTHING: u8 = 3;

/// The bytes of a call.
pub(super) fn encode(call: &Call, spec: TxSpec) -> SignedTx {
    let mut raw = Vec::with_capacity(256);
    raw.extend(spec.nonce.get().to_be_bytes());
    raw.extend(spec.fees.fee_max.get().to_be_bytes());
    raw.extend(spec.fees.tip_max.get().to_be_bytes());
    raw.extend(spec.gas_limit.get().to_be_bytes());
    match call {
        Call::Claim { job, tokens, proof } => {
            raw.push(CLAIM);
            raw.extend(job.get().to_be_bytes());
            raw.extend(tokens.get().to_be_bytes());
            raw.extend(proof);
        }
        Call::Complete { job } => {
            raw.push(COMPLETE);
            raw.extend(job.get().to_be_bytes());
        }
        Call::Nothing => raw.push(NOTHING),
        Call::Raw { to, value, input } => {
            raw.push(NOTHING);
            raw.extend(to.bytes());
            raw.extend(value.get().to_be_bytes());
            raw.extend(input);
        }
    }
    SignedTx { hash: TxHash::new(*keccak256(&raw).bytes()), raw }
}

/// What a call does.
pub(super) fn deed_of(call: &Call) -> Deed {
    match call {
        Call::Claim { job, tokens, proof } => {
            Deed::Claim { job: *job, tokens: tokens.get(), proof: proof.clone() }
        }
        Call::Complete { job } => Deed::Complete(*job),
        Call::Nothing | Call::Raw { .. } => Deed::Nothing,
    }
}

/// The transaction that these bytes are; `None` for bytes that nobody signed.
pub(super) fn decode(signed: &SignedTx) -> Option<SimTx> {
    let mut raw = signed.raw.as_slice();
    let nonce = take_u64(&mut raw)?;
    let fee_max = take_u128(&mut raw)?;
    let tip_max = take_u128(&mut raw)?;
    let gas_limit = take_u64(&mut raw)?;
    let (kind, mut rest) = raw.split_first()?;
    let deed = match *kind {
        CLAIM => {
            let job = JobId::new(take_u64(&mut rest)?)?;
            let tokens = take_u64(&mut rest)?;
            Deed::Claim { job, tokens, proof: rest.to_vec() }
        }
        COMPLETE => Deed::Complete(JobId::new(take_u64(&mut rest)?)?),
        NOTHING => Deed::Nothing,
        _ => return None,
    };
    let hash = TxHash::new(*keccak256(&signed.raw).bytes());
    Some(SimTx { hash, nonce, fee_max, tip_max, gas_limit, deed, is_foreign: false })
}

fn take_u64(raw: &mut &[u8]) -> Option<u64> {
    let (head, rest) = raw.split_first_chunk()?;
    *raw = rest;
    Some(u64::from_be_bytes(*head))
}

fn take_u128(raw: &mut &[u8]) -> Option<u128> {
    let (head, rest) = raw.split_first_chunk()?;
    *raw = rest;
    Some(u128::from_be_bytes(*head))
}
