//! The host's nonces: links of a hash chain, one for each turn.
//!
//! Never tells a link before its turn: a commitment says nothing of the links behind it, and each
//! link is checked by hashing it back to the commitment. Relies on a secret that only the host can
//! make, and makes again after a restart, so that nothing of it is stored. Layout:
//! docs/spec/proof.md.

use super::preimage::{Preimage, keccak256};
use crate::units::{Address, Hash32, JobId, Signature, TurnNo};

const TAG_JOB: u8 = 0x05;
const TAG_CHAIN: u8 = 0x06;
const SECRET_DOMAIN: &[u8] = b"Tally host nonces 1";

/// Turns that one chain serves; the next turn begins another. Making a link costs as many hashes
/// at most: half a millisecond.
pub const TURNS_PER_CHAIN: u32 = 1024;

/// What the host's key signs for its secret. The signature is never told to anybody.
#[must_use]
pub fn secret_digest(chain_id: u64, marketplace: Address) -> Hash32 {
    Preimage::new().bytes(SECRET_DOMAIN).word(chain_id).bytes(marketplace.bytes()).finish()
}

/// The host's nonces of all jobs.
#[derive(Clone, Copy)]
pub struct HostNonces {
    secret: Hash32,
}

impl HostNonces {
    /// From the host key's signature over [`secret_digest`].
    #[must_use]
    pub fn new(signature: &Signature) -> Self {
        Self { secret: keccak256(signature.bytes()) }
    }

    /// The nonce of a turn: told when the turn has ended.
    #[must_use]
    pub fn link(self, job: JobId, turn: TurnNo) -> Hash32 {
        let left = TURNS_PER_CHAIN.saturating_sub(1).saturating_sub(turn.get() % TURNS_PER_CHAIN);
        hashed(self.tail(job, turn), left)
    }

    /// What commits the host to the nonces of this turn's chain: told before its first turn.
    #[must_use]
    pub fn commitment(self, job: JobId, turn: TurnNo) -> Hash32 {
        hashed(self.tail(job, turn), TURNS_PER_CHAIN)
    }

    fn tail(self, job: JobId, turn: TurnNo) -> Hash32 {
        let of_job = Preimage::tagged(TAG_JOB).hash(self.secret).job(job).finish();
        Preimage::tagged(TAG_CHAIN).hash(of_job).u32(turn.get() / TURNS_PER_CHAIN).finish()
    }
}

/// Whether `link` is the nonce of `turn` under this commitment.
#[must_use]
pub fn is_committed(link: Hash32, turn: TurnNo, commitment: Hash32) -> bool {
    hashed(link, (turn.get() % TURNS_PER_CHAIN).saturating_add(1)) == commitment
}

fn hashed(from: Hash32, times: u32) -> Hash32 {
    (0..times).fold(from, |hash, _| keccak256(hash.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonces(mark: u8) -> HostNonces {
        HostNonces::new(&Signature::new([mark; 65]))
    }

    #[test]
    fn every_link_hashes_back_to_what_was_told_before() {
        let job = JobId::new(7).unwrap();
        for turn in [0, 1, 2, 1022, 1023, 1024, 1025, 2048, u32::MAX] {
            let turn = TurnNo::new(turn);
            let (link, told) = (nonces(1).link(job, turn), nonces(1).commitment(job, turn));
            assert!(is_committed(link, turn, told), "{turn}");
            let other = TurnNo::new(turn.get().wrapping_add(1));
            assert!(!is_committed(link, other, told), "{turn}");
        }
        let at = |turn| nonces(1).link(job, TurnNo::new(turn));
        assert_eq!(keccak256(at(1).bytes()), at(0));
        assert_ne!(keccak256(at(1024).bytes()), at(1023), "a chain of its own");
    }

    #[test]
    fn keys_and_jobs_have_nonces_of_their_own() {
        let job = |number| JobId::new(number).unwrap();
        let at = |mark, of| nonces(mark).link(job(of), TurnNo::new(0));
        assert_ne!(at(1, 7), at(2, 7));
        assert_ne!(at(1, 7), at(1, 8));
        let (a, b) = (Address::new([1; 20]), Address::new([2; 20]));
        assert_ne!(secret_digest(1, a), secret_digest(2, a));
        assert_ne!(secret_digest(1, a), secret_digest(1, b));
    }
}
