//! A job's transcript: delivered ids as chunks, in ledger order, cut where claims were made.
//!
//! Never reads an entry it cannot place: the first one that contradicts those before it is a
//! fault, and nothing behind it can be cut. Never lets a later entry change an earlier root: the
//! chunks of the first N tokens follow from those tokens and from the claims prepared before N
//! was first claimed. Relies on the ledger's order, which is never rewritten.

use std::collections::BTreeMap;

use super::preimage::Preimage;
use super::spec::turn_hash;
use super::tree::{Node, top};
use crate::billing::{Entry, Fact, Purpose, TurnHeader};
use crate::units::{ClaimSeq, Hash32, JobId, TokenCount, TurnNo};

const TAG_CHUNK: u8 = 0x00;
const TAG_ROOT: u8 = 0x03;

/// Tokens of a full chunk (docs/spec/proof.md).
const CHUNK_TOKENS: usize = 32;

/// An entry that contradicts those before it: a fault of ours, for a human.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TranscriptError {
    /// Tokens or an end of a turn that never started.
    #[error("job {job}: turn {turn} has entries but never started")]
    UnknownTurn {
        /// The job.
        job: JobId,
        /// The turn.
        turn: TurnNo,
    },
    /// A turn that started twice.
    #[error("job {job}: turn {turn} started twice")]
    StartedTwice {
        /// The job.
        job: JobId,
        /// The turn.
        turn: TurnNo,
    },
    /// Tokens of a turn that had ended.
    #[error("job {job}: turn {turn} goes on after its end")]
    AfterEnd {
        /// The job.
        job: JobId,
        /// The turn.
        turn: TurnNo,
    },
    /// Tokens that do not follow those before them.
    #[error("job {job}: turn {turn} goes on at position {found}, wanted {wanted}")]
    Gap {
        /// The job.
        job: JobId,
        /// The turn.
        turn: TurnNo,
        /// Tokens of the turn that are known.
        wanted: u64,
        /// Where the entry says its tokens start.
        found: u64,
    },
    /// A claim of more than was recorded before it.
    #[error("job {job}: claim {seq} covers {claimed} tokens, recorded are {recorded}")]
    ClaimBeyond {
        /// The job.
        job: JobId,
        /// The claim.
        seq: ClaimSeq,
        /// What it covers.
        claimed: TokenCount,
        /// What the ledger held then.
        recorded: TokenCount,
    },
}

/// The first tokens of a job, hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Hash at the top of the sum tree.
    pub top: Hash32,
    /// Tokens below it: those of this ledger, not what was claimed before it.
    pub tokens: TokenCount,
    /// The model of the last of these tokens, which the claim's voucher names.
    pub model_spec: Hash32,
}

/// The root that a claim carries: `seq` counts the roots of a job from 1.
#[must_use]
pub fn root(job: JobId, seq: ClaimSeq, cut: &Cut) -> Hash32 {
    Preimage::tagged(TAG_ROOT).job(job).u32(seq.get()).hash(cut.top).u64(cut.tokens.get()).finish()
}

/// A job's tokens in ledger order, with the places where claims cut them.
#[derive(Debug, Clone)]
pub struct Transcript {
    job: JobId,
    turns: BTreeMap<TurnNo, Turn>,
    steps: Vec<Step>,
    /// Cumulative tokens of claims, in the order they were prepared.
    claimed: Vec<(ClaimSeq, u64)>,
    last_header: Hash32,
    tokens: u64,
    fault: Option<TranscriptError>,
}

#[derive(Debug, Clone)]
struct Turn {
    hash: Hash32,
    model_spec: Hash32,
    tokens: u64,
    ended: bool,
}

/// What opens or closes chunks.
#[derive(Debug, Clone)]
enum Step {
    Ids { turn: TurnNo, ids: Vec<u32> },
    End { turn: TurnNo },
}

impl Transcript {
    /// The transcript of `job`; `entries` in ledger order, those of other jobs are passed over.
    #[must_use]
    pub fn from_entries(job: JobId, entries: &[Entry]) -> Self {
        let mut transcript = Self {
            job,
            turns: BTreeMap::new(),
            steps: Vec::new(),
            claimed: Vec::new(),
            last_header: Hash32::ZERO,
            tokens: 0,
            fault: None,
        };
        entries.iter().for_each(|entry| transcript.push(entry));
        transcript
    }

    /// Takes the next entry of the ledger. After a fault nothing is taken.
    pub fn push(&mut self, entry: &Entry) {
        if entry.job() == Some(self.job) && self.fault.is_none() {
            self.fault = self.apply(&entry.fact).err();
        }
    }

    /// Why entries were left out: the job must be halted, its first tokens can still be cut.
    #[must_use]
    pub fn fault(&self) -> Option<&TranscriptError> {
        self.fault.as_ref()
    }

    /// Tokens that can be cut.
    #[must_use]
    pub fn tokens(&self) -> TokenCount {
        TokenCount::new(self.tokens)
    }

    /// The first `tokens` tokens in ledger order. Hashes them all: about a microsecond each.
    ///
    /// `None` for 0, for more than the ledger holds, and past 2^32 - 1.
    #[must_use]
    pub fn cut_at(&self, tokens: TokenCount) -> Option<Cut> {
        let end = tokens.get();
        if end == 0 || end > self.tokens {
            return None;
        }
        let mut chunker = Chunker::new(self, end);
        self.steps.iter().for_each(|step| chunker.take(step));
        chunker.close_all();
        let top = top(&chunker.leaves)?;
        let model_spec = chunker.model_spec;
        Some(Cut { top: top.hash, tokens: TokenCount::new(u64::from(top.tokens)), model_spec })
    }

    /// What the claim with number `seq` covers, as it was when the claim was prepared.
    #[must_use]
    pub fn cut_of(&self, seq: ClaimSeq) -> Option<Cut> {
        let (_, tokens) = self.claimed.iter().find(|(known, _)| *known == seq)?;
        self.cut_at(TokenCount::new(*tokens))
    }

    fn apply(&mut self, fact: &Fact) -> Result<(), TranscriptError> {
        match fact {
            Fact::TurnStarted(header) => self.start(header),
            Fact::Delivered { turn, position, ids } => self.deliver(*turn, *position, ids),
            Fact::TurnEnded { turn, .. } => self.end(*turn),
            Fact::TxPrepared { purpose: Purpose::Claim(claim), .. } => {
                let (seq, claimed) = (claim.seq, claim.tokens_cumulative);
                if claimed.get() > self.tokens {
                    let (job, recorded) = (self.job, self.tokens());
                    return Err(TranscriptError::ClaimBeyond { job, seq, claimed, recorded });
                }
                self.claimed.push((seq, claimed.get()));
                Ok(())
            }
            Fact::TxPrepared {
                purpose: Purpose::Complete | Purpose::Fill | Purpose::Errand(_),
                ..
            }
            | Fact::JobOpened { .. }
            | Fact::OwnerProven
            | Fact::TxRepriced { .. }
            | Fact::TxCancelled { .. }
            | Fact::TxIncluded { .. }
            | Fact::TxReorged { .. }
            | Fact::TxConfirmed { .. }
            | Fact::TxRejected { .. }
            | Fact::JobClosed { .. }
            | Fact::JobReopened { .. }
            | Fact::JobHalted { .. } => Ok(()),
        }
    }

    fn start(&mut self, header: &TurnHeader) -> Result<(), TranscriptError> {
        let (job, turn) = (self.job, header.turn);
        if self.turns.contains_key(&turn) {
            return Err(TranscriptError::StartedTwice { job, turn });
        }
        let hash = turn_hash(job, header, self.last_header);
        self.last_header = hash;
        let model_spec = header.model_spec;
        self.turns.insert(turn, Turn { hash, model_spec, tokens: 0, ended: false });
        Ok(())
    }

    fn deliver(&mut self, no: TurnNo, position: u32, ids: &[u32]) -> Result<(), TranscriptError> {
        let job = self.job;
        let unknown = TranscriptError::UnknownTurn { job, turn: no };
        let turn = self.turns.get_mut(&no).ok_or(unknown)?;
        if turn.ended {
            return Err(TranscriptError::AfterEnd { job, turn: no });
        }
        let found = u64::from(position);
        if found != turn.tokens {
            return Err(TranscriptError::Gap { job, turn: no, wanted: turn.tokens, found });
        }
        let count = u64::try_from(ids.len()).unwrap_or(u64::MAX);
        turn.tokens = turn.tokens.saturating_add(count);
        self.tokens = self.tokens.saturating_add(count);
        self.steps.push(Step::Ids { turn: no, ids: ids.to_vec() });
        Ok(())
    }

    fn end(&mut self, no: TurnNo) -> Result<(), TranscriptError> {
        let unknown = TranscriptError::UnknownTurn { job: self.job, turn: no };
        self.turns.get_mut(&no).ok_or(unknown)?.ended = true;
        self.steps.push(Step::End { turn: no });
        Ok(())
    }

    /// Where claims cut the first `end` tokens, ascending: claims prepared before `end` was first
    /// claimed, since later ones must not change a root that is out.
    fn cuts_before(&self, end: u64) -> Vec<u64> {
        let mut cuts: Vec<u64> = self
            .claimed
            .iter()
            .map(|(_, tokens)| *tokens)
            .take_while(|tokens| *tokens != end)
            .filter(|tokens| *tokens > 0 && *tokens < end)
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }
}

/// The chunk of a turn that is filling up.
#[derive(Default)]
struct Open {
    /// Its number within the turn.
    number: u32,
    /// Tokens of the turn before it.
    position: u32,
    ids: Vec<u32>,
}

/// Cuts the first tokens into leaves, in the order in which their chunks close.
struct Chunker<'t> {
    transcript: &'t Transcript,
    /// Where chunks of all turns close, the end included; the next one last.
    cuts: Vec<u64>,
    left: u64,
    taken: u64,
    open: BTreeMap<TurnNo, Open>,
    leaves: Vec<Node>,
    model_spec: Hash32,
}

impl<'t> Chunker<'t> {
    fn new(transcript: &'t Transcript, end: u64) -> Self {
        let mut cuts = transcript.cuts_before(end);
        cuts.reverse();
        let (open, leaves) = (BTreeMap::new(), Vec::new());
        Self { transcript, cuts, left: end, taken: 0, open, leaves, model_spec: Hash32::ZERO }
    }

    fn take(&mut self, step: &Step) {
        match step {
            // Once the last token is taken the cut has closed everything: an end that was
            // recorded behind it must not be seen, or a root would depend on when it is built.
            Step::End { turn } if self.left > 0 => self.close(*turn),
            Step::End { .. } => {}
            Step::Ids { turn, ids } => ids.iter().for_each(|id| self.token(*turn, *id)),
        }
    }

    fn token(&mut self, turn: TurnNo, id: u32) {
        let Some(left) = self.left.checked_sub(1) else { return };
        self.left = left;
        self.taken = self.taken.saturating_add(1);
        if let Some(of) = self.transcript.turns.get(&turn) {
            self.model_spec = of.model_spec;
        }
        let open = self.open.entry(turn).or_default();
        open.ids.push(id);
        if open.ids.len() >= CHUNK_TOKENS {
            self.close(turn);
        }
        if self.cuts.last() == Some(&self.taken) {
            self.cuts.pop();
            self.close_all();
        }
    }

    /// Several chunks closed by one cut stand in the order of their turns' numbers.
    fn close_all(&mut self) {
        let turns: Vec<TurnNo> = self.open.keys().copied().collect();
        turns.into_iter().for_each(|turn| self.close(turn));
    }

    fn close(&mut self, no: TurnNo) {
        let (Some(open), Some(turn)) = (self.open.get_mut(&no), self.transcript.turns.get(&no))
        else {
            return;
        };
        let tokens = super::preimage::count(open.ids.len());
        if tokens == 0 {
            return;
        }
        let hash = Preimage::tagged(TAG_CHUNK)
            .hash(turn.hash)
            .u32(open.number)
            .u32(open.position)
            .u32(tokens)
            .ids(&open.ids)
            // The ledger keeps no digests of hidden states: version-1 claims carry zeros.
            .hash(Hash32::ZERO)
            .finish();
        open.ids.clear();
        open.number = open.number.saturating_add(1);
        open.position = open.position.saturating_add(tokens);
        self.leaves.push(Node { hash, tokens });
    }
}

#[cfg(test)]
mod tests;
