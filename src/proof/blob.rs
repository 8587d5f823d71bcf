//! The blob of a claim: all that whoever has the weights needs to re-run it.
//!
//! Never holds text: ids only. Never trusts itself: what was decoded says which root it has, and
//! the caller compares that with the chain. Layout: docs/spec/proof.md.

mod bytes;
mod decode;
mod encode;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::preimage::count;
use super::spec::{decode_spec, turn_hash};
use super::transcript::{CHUNK_TOKENS, Chunk, Cut, Transcript, root};
use super::tree::{Node, top};
use super::voucher::VoucherDomain;
use crate::billing::{Entry, Fact, TurnEnd, TurnHeader};
use crate::units::{ClaimSeq, Hash32, JobId, TokenCount, TurnNo};

/// A claim's transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Where it is claimed.
    pub domain: VoucherDomain,
    /// The job.
    pub job: JobId,
    /// Number of the root.
    pub seq: ClaimSeq,
    /// Turns in the order of the ledger, up to the last one with a token in the claim.
    pub turns: Vec<BlobTurn>,
    /// The leaves.
    pub chunks: Vec<Chunk>,
}

/// A turn of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobTurn {
    /// Its header.
    pub header: TurnHeader,
    /// Why it ended; `None` where that was not recorded, or where the claim ends before it.
    pub end: Option<TurnEnd>,
}

/// Why a blob is none, or does not agree with itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// Bytes that are no blob of this version.
    #[error("not a blob of version 1: {0} at byte {1}")]
    Malformed(&'static str, usize),
    /// Its turns and chunks do not fit together.
    #[error("turn {turn}: {why}")]
    Inconsistent {
        /// The turn.
        turn: TurnNo,
        /// What is wrong.
        why: &'static str,
    },
    /// It covers nothing, or more than a count can say.
    #[error("the blob's chunks have no sum")]
    NoSum,
}

impl Blob {
    /// The blob of the claim with number `seq`; `entries` are the job's, in ledger order. `None`
    /// where the claim is not among them.
    #[must_use]
    pub fn of_claim(
        domain: VoucherDomain,
        job: JobId,
        seq: ClaimSeq,
        entries: &[Entry],
    ) -> Option<Self> {
        let transcript = Transcript::from_entries(job, entries);
        let tokens = transcript.claimed_tokens(seq)?;
        let chunks = transcript.chunks_at(tokens)?;
        let mut sizes: BTreeMap<TurnNo, u64> = BTreeMap::new();
        for chunk in &chunks {
            let size = sizes.entry(chunk.turn).or_default();
            *size = size.saturating_add(u64::from(count(chunk.ids.len())));
        }
        let (mut turns, mut ends) = (Vec::new(), BTreeMap::new());
        let mut recorded: BTreeMap<TurnNo, u64> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.job() == Some(job)) {
            match &entry.fact {
                Fact::TurnStarted(header) => turns.push(header.clone()),
                Fact::Delivered { turn, ids, .. } => {
                    let size = recorded.entry(*turn).or_default();
                    *size = size.saturating_add(u64::from(count(ids.len())));
                }
                Fact::TurnEnded { turn, end } => {
                    ends.insert(*turn, *end);
                }
                _ => {}
            }
        }
        let last = turns.iter().rposition(|header| sizes.contains_key(&header.turn))?;
        turns.truncate(last.saturating_add(1));
        let whole = |turn: &TurnNo| sizes.get(turn) == recorded.get(turn);
        let turns = turns.into_iter().map(|header| {
            let end = ends.get(&header.turn).copied().filter(|_| whole(&header.turn));
            BlobTurn { header, end }
        });
        Some(Self { domain, job, seq, turns: turns.collect(), chunks })
    }

    /// Tokens that it covers.
    #[must_use]
    pub fn tokens(&self) -> TokenCount {
        let sizes = self.chunks.iter().map(|chunk| u64::from(count(chunk.ids.len())));
        TokenCount::new(sizes.fold(0, u64::saturating_add))
    }

    /// The billed ids of a turn, in their order.
    #[must_use]
    pub fn output(&self, turn: TurnNo) -> Vec<u32> {
        let chunks = self.chunks.iter().filter(|chunk| chunk.turn == turn);
        chunks.flat_map(|chunk| chunk.ids.iter().copied()).collect()
    }

    /// The root over what it holds.
    ///
    /// # Errors
    /// [`BlobError::Inconsistent`] where its parts do not fit, [`BlobError::NoSum`].
    pub fn root(&self) -> Result<Hash32, BlobError> {
        let hashes = self.turn_hashes()?;
        let mut places: BTreeMap<TurnNo, (u32, u32)> = BTreeMap::new();
        let mut leaves = Vec::with_capacity(self.chunks.len());
        for chunk in &self.chunks {
            let wrong = |why| BlobError::Inconsistent { turn: chunk.turn, why };
            let turn = hashes.get(&chunk.turn).ok_or_else(|| wrong("has chunks and no header"))?;
            let (number, position) = places.entry(chunk.turn).or_default();
            if (chunk.number, chunk.position) != (*number, *position) {
                return Err(wrong("its chunks do not follow each other"));
            }
            if chunk.ids.is_empty() || chunk.ids.len() > CHUNK_TOKENS {
                return Err(wrong("a chunk holds 1 to 32 tokens"));
            }
            *number = number.saturating_add(1);
            *position = position.saturating_add(count(chunk.ids.len()));
            leaves.push(Node { hash: chunk.hash(*turn), tokens: count(chunk.ids.len()) });
        }
        let top = top(&leaves).ok_or(BlobError::NoSum)?;
        let last = self.chunks.last().and_then(|chunk| self.header(chunk.turn));
        let cut = Cut {
            top: top.hash,
            tokens: TokenCount::new(u64::from(top.tokens)),
            model_spec: last.map_or(Hash32::ZERO, |header| header.model_spec),
            is_canonical: false,
            lacks_user_nonce: false,
        };
        Ok(root(self.job, self.seq, &cut))
    }

    /// The header of a turn.
    #[must_use]
    pub fn header(&self, turn: TurnNo) -> Option<&TurnHeader> {
        self.turns.iter().map(|turn| &turn.header).find(|header| header.turn == turn)
    }

    /// The headers' hashes, each over the one before it.
    fn turn_hashes(&self) -> Result<BTreeMap<TurnNo, Hash32>, BlobError> {
        let (mut hashes, mut before) = (BTreeMap::new(), Hash32::ZERO);
        for BlobTurn { header, .. } in &self.turns {
            let turn = header.turn;
            let decode = header.decode.as_deref();
            if decode.is_some_and(|decode| decode_spec(decode) != header.decode_spec) {
                let why = "its settings are not those that it was hashed with";
                return Err(BlobError::Inconsistent { turn, why });
            }
            before = turn_hash(self.job, header, before);
            if hashes.insert(turn, before).is_some() {
                return Err(BlobError::Inconsistent { turn, why: "it has two headers" });
            }
        }
        Ok(hashes)
    }
}
