//! Bytes on their way into keccak256.
//!
//! Never hashes an integer without its width: numbers are big-endian, token ids little-endian.

use sha3::{Digest, Keccak256};

use crate::units::{Hash32, JobId};

/// keccak256 of `bytes`, as contracts compute it.
#[must_use]
pub fn keccak256(bytes: &[u8]) -> Hash32 {
    Hash32::new(Keccak256::digest(bytes).into())
}

/// A preimage under construction.
pub(super) struct Preimage(Keccak256);

impl Preimage {
    pub(super) fn new() -> Self {
        Self(Keccak256::new())
    }

    /// One that starts with a tag byte, so that no two kinds of hash share a preimage.
    pub(super) fn tagged(tag: u8) -> Self {
        Self::new().bytes(&[tag])
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update(bytes);
        self
    }

    pub(super) fn hash(self, hash: Hash32) -> Self {
        self.bytes(hash.bytes())
    }

    pub(super) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A number as a `uint256` word.
    pub(super) fn word(self, value: u64) -> Self {
        self.bytes(&[0; 24]).u64(value)
    }

    pub(super) fn job(self, job: JobId) -> Self {
        self.word(job.get())
    }

    /// Token ids, 4 bytes each, little-endian.
    pub(super) fn ids(self, ids: &[u32]) -> Self {
        ids.iter().fold(self, |preimage, id| preimage.bytes(&id.to_le_bytes()))
    }

    /// Text, preceded by its length in bytes.
    pub(super) fn text(self, text: &str) -> Self {
        self.u32(count(text.len())).bytes(text.as_bytes())
    }

    pub(super) fn finish(self) -> Hash32 {
        Hash32::new(self.0.finalize().into())
    }
}

/// A length as the u32 that layouts carry. Nothing hashed here comes near the cap: requests are
/// bounded in bytes.
pub(super) fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
