//! Transcripts, roots and proof bytes: what makes a claim checkable (docs/spec/proof.md).
//!
//! Never does I/O, never signs, never looks at a clock: functions of durable entries. What was
//! hashed once must hash the same for ever, so every layout here is fixed by
//! `tests/fixtures/proof`, made by an independent program. Relies on keccak256 only.

mod blob;
mod bytes;
mod nonces;
mod preimage;
mod spec;
mod transcript;
mod tree;
mod voucher;

pub use blob::{Blob, BlobError, BlobTurn};
pub use bytes::{
    FLAG_CANONICAL, FLAG_FINAL, FLAG_NONCE_DERIVED, FLAG_USER_VOUCHER, PROOF_LEN, PROOF_VERSION,
    ProofBytes, ProofBytesError, claim_word,
};
pub use nonces::{HostNonces, TURNS_PER_CHAIN, is_committed, secret_digest};
pub use preimage::keccak256;
pub use spec::{
    decode_spec, derived_user_nonce, model_spec, seed, seed_from_client, tokenizer_spec, turn_hash,
};
pub use transcript::{Chunk, Cut, Transcript, TranscriptError, act_digest, root};
pub use voucher::{Voucher, VoucherDomain, voucher_digest};

#[cfg(test)]
mod vectors;
