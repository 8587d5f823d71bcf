//! The proof bytes of version 1: what a claim puts on chain.
//!
//! Never carries a claim word that its root and salt do not give: the word is computed, and
//! checked when read. Layout: docs/spec/proof.md.

use super::preimage::Preimage;
use crate::units::{ClaimSeq, Hash32, Signature, TokenCount};

const TAG_CLAIM: u8 = 0x04;

/// Version of the layout.
pub const PROOF_VERSION: u8 = 1;
/// Length of the layout, bytes.
pub const PROOF_LEN: usize = 145;

/// The signature is the user's session key's over the voucher, not the host's.
pub const FLAG_USER_VOUCHER: u8 = 1;
/// The engine was canonical: the turns can be re-run bit for bit.
pub const FLAG_CANONICAL: u8 = 2;
/// The last claim of the session.
pub const FLAG_FINAL: u8 = 4;
/// A user's nonce was missing and derived.
pub const FLAG_NONCE_DERIVED: u8 = 8;

const FLAGS_KNOWN: u8 = FLAG_USER_VOUCHER | FLAG_CANONICAL | FLAG_FINAL | FLAG_NONCE_DERIVED;

/// What the bytes say, the claim word left out since it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProofBytes {
    /// `FLAG_*`, added up.
    pub flags: u8,
    /// Tokens claimed by the job after this claim.
    pub tokens_cumulative: TokenCount,
    /// Number of the root within the job, from 1.
    pub seq: ClaimSeq,
    /// Makes the first word unique per attempt; the root stays.
    pub salt: u16,
    /// Root over the job's transcript.
    pub root: Hash32,
    /// Over the voucher: the user's session key with flag 1, else the host key.
    pub signature: Signature,
}

/// Bytes that are no proof of this version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofBytesError {
    /// Another length.
    #[error("a proof of version 1 has {PROOF_LEN} bytes, these are {found}")]
    Length {
        /// How many there are.
        found: usize,
    },
    /// Another version.
    #[error("proof version {found}, this program reads {PROOF_VERSION}")]
    Version {
        /// What the bytes say.
        found: u8,
    },
    /// A flag without a meaning.
    #[error("proof flags {found:#04x} carry bits without a meaning")]
    Flags {
        /// The flags.
        found: u8,
    },
    /// The first word is not the one that root and salt give.
    #[error("the claim word {found} does not follow from root and salt, wanted {wanted}")]
    ClaimWord {
        /// What the bytes say.
        found: Hash32,
        /// What root and salt give.
        wanted: Hash32,
    },
}

/// The first word: what the chain sees as the proof's hash.
#[must_use]
pub fn claim_word(root: Hash32, salt: u16) -> Hash32 {
    Preimage::tagged(TAG_CLAIM).hash(root).u16(salt).finish()
}

impl ProofBytes {
    /// The first word of these bytes.
    #[must_use]
    pub fn claim(&self) -> Hash32 {
        claim_word(self.root, self.salt)
    }

    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PROOF_LEN] {
        let claim = self.claim();
        let parts: [&[u8]; 8] = [
            claim.bytes(),
            &[PROOF_VERSION],
            &[self.flags],
            &self.tokens_cumulative.get().to_be_bytes(),
            &self.seq.get().to_be_bytes(),
            &self.salt.to_be_bytes(),
            self.root.bytes(),
            self.signature.bytes(),
        ];
        let mut bytes = [0; PROOF_LEN];
        for (to, from) in bytes.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// What `bytes` say.
    ///
    /// # Errors
    /// [`ProofBytesError`] for anything [`ProofBytes::encode`] would not have made.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProofBytesError> {
        let bytes: &[u8; PROOF_LEN] =
            bytes.try_into().map_err(|_| ProofBytesError::Length { found: bytes.len() })?;
        let [version] = field::<32, 1>(bytes);
        if version != PROOF_VERSION {
            return Err(ProofBytesError::Version { found: version });
        }
        let [flags] = field::<33, 1>(bytes);
        if flags & !FLAGS_KNOWN != 0 {
            return Err(ProofBytesError::Flags { found: flags });
        }
        let proof = Self {
            flags,
            tokens_cumulative: TokenCount::new(u64::from_be_bytes(field::<34, 8>(bytes))),
            seq: ClaimSeq::new(u32::from_be_bytes(field::<42, 4>(bytes))),
            salt: u16::from_be_bytes(field::<46, 2>(bytes)),
            root: Hash32::new(field::<48, 32>(bytes)),
            signature: Signature::new(field::<80, 65>(bytes)),
        };
        let (found, wanted) = (Hash32::new(field::<0, 32>(bytes)), proof.claim());
        if found != wanted {
            return Err(ProofBytesError::ClaimWord { found, wanted });
        }
        Ok(proof)
    }
}

/// `LEN` bytes from `AT` on.
fn field<const AT: usize, const LEN: usize>(bytes: &[u8; PROOF_LEN]) -> [u8; LEN] {
    const { assert!(AT + LEN <= PROOF_LEN) };
    std::array::from_fn(|index| bytes[AT + index])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> ProofBytes {
        ProofBytes {
            flags: FLAG_NONCE_DERIVED,
            tokens_cumulative: TokenCount::new(100),
            seq: ClaimSeq::new(1),
            salt: 0,
            root: Hash32::new([7; 32]),
            signature: Signature::new([9; 65]),
        }
    }

    proptest! {
        #[test]
        fn every_proof_survives_its_bytes(
            (flags, tokens, seq, salt) in (0..16_u8, any::<u64>(), any::<u32>(), any::<u16>()),
            root in any::<[u8; 32]>(),
            mark in any::<u8>(),
        ) {
            let proof = ProofBytes {
                flags,
                tokens_cumulative: TokenCount::new(tokens),
                seq: ClaimSeq::new(seq),
                salt,
                root: Hash32::new(root),
                signature: Signature::new([mark; 65]),
            };
            prop_assert_eq!(ProofBytes::decode(&proof.encode()), Ok(proof));
        }
    }

    #[test]
    fn a_new_salt_changes_the_first_word_and_not_the_root() {
        let first = sample();
        let again = ProofBytes { salt: 1, ..first };
        assert_ne!(first.encode()[..32], again.encode()[..32]);
        assert_eq!(first.encode()[48..], again.encode()[48..]);
    }

    #[test]
    fn what_encode_would_not_make_is_refused() {
        let good = sample().encode();
        for short in [&good[..144], &[good.as_slice(), &[0]].concat(), &[]] {
            let found = short.len();
            assert_eq!(ProofBytes::decode(short), Err(ProofBytesError::Length { found }));
        }
        let with = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            ProofBytes::decode(&bytes).unwrap_err()
        };
        assert_eq!(with(32, 2), ProofBytesError::Version { found: 2 });
        assert_eq!(with(33, 16), ProofBytesError::Flags { found: 16 });
        for at in [0, 31, 47, 48, 79] {
            assert!(matches!(with(at, 0xee), ProofBytesError::ClaimWord { .. }), "{at}");
        }
    }
}
