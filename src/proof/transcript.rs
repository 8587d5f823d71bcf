//! A job's transcript: delivered ids as chunks, in ledger order, cut where claims were made.
//!
//! Never reads an entry it cannot place: the first one that contradicts those before it is a
//! fault, and nothing behind it can be cut. Never lets a later entry change an earlier root: the
//! chunks of the first N tokens follow from those tokens and from the claims prepared before N
//! was first claimed. Relies on the ledger's order, which is never rewritten.

use std::collections::BTreeMap;

use super::preimage::{Preimage, count};
use super::spec::turn_hash;
use super::tree::{Node, top};
use crate::billing::{Entry, Fact, Purpose, SeedOrigin, TurnHeader};
use crate::units::{ClaimSeq, Hash32, JobId, TokenCount, TurnNo};

const TAG_CHUNK: u8 = 0x00;
const TAG_ROOT: u8 = 0x03;

/// Tokens of a full chunk (docs/spec/proof.md).
pub(super) const CHUNK_TOKENS: usize = 32;

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
    /// All of these tokens were made by a canonical engine and carry digests of the states that
    /// produced them.
    pub is_canonical: bool,
    /// The seed of one of these tokens was derived without a nonce of the user's.
    pub lacks_user_nonce: bool,
}

/// The root that a claim carries: `seq` counts the roots of a job from 1.
#[must_use]
pub fn root(job: JobId, seq: ClaimSeq, cut: &Cut) -> Hash32 {
    Preimage::tagged(TAG_ROOT).job(job).u32(seq.get()).hash(cut.top).u64(cut.tokens.get()).finish()
}

/// A leaf of the tree: at most 32 tokens of one turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The turn.
    pub turn: TurnNo,
    /// Its number within the turn, from 0.
    pub number: u32,
    /// Tokens of the turn before it.
    pub position: u32,
    /// The billed ids.
    pub ids: Vec<u32>,
    /// [`act_digest`] of its tokens.
    pub act_digest: Hash32,
}

impl Chunk {
    /// The leaf's hash; `turn` is the hash of its turn's header.
    #[must_use]
    pub fn hash(&self, turn: Hash32) -> Hash32 {
        Preimage::tagged(TAG_CHUNK)
            .hash(turn)
            .u32(self.number)
            .u32(self.position)
            .u32(count(self.ids.len()))
            .ids(&self.ids)
            .hash(self.act_digest)
            .finish()
    }
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
    is_canonical: bool,
    lacks_user_nonce: bool,
    tokens: u64,
    ended: bool,
}

/// A billed token, and the digest of the state that produced it, where there is one.
#[derive(Debug, Clone, Copy)]
struct Token {
    id: u32,
    state: Option<Hash32>,
}

/// What opens or closes chunks.
#[derive(Debug, Clone)]
enum Step {
    Ids { turn: TurnNo, tokens: Vec<Token> },
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
        let chunker = self.cut_up(end);
        let leaf = |chunk: &Chunk| {
            let turn = self.turns.get(&chunk.turn)?;
            Some(Node { hash: chunk.hash(turn.hash), tokens: count(chunk.ids.len()) })
        };
        let leaves: Option<Vec<Node>> = chunker.chunks.iter().map(leaf).collect();
        let top = top(&leaves?)?;
        Some(Cut {
            top: top.hash,
            tokens: TokenCount::new(u64::from(top.tokens)),
            model_spec: chunker.model_spec,
            is_canonical: chunker.is_canonical,
            lacks_user_nonce: chunker.lacks_user_nonce,
        })
    }

    /// The chunks of the first `tokens` tokens, in the order of the tree's leaves.
    ///
    /// `None` where [`Transcript::cut_at`] has none.
    #[must_use]
    pub fn chunks_at(&self, tokens: TokenCount) -> Option<Vec<Chunk>> {
        let end = tokens.get();
        (end > 0 && end <= self.tokens).then(|| self.cut_up(end).chunks)
    }

    fn cut_up(&self, end: u64) -> Chunker<'_> {
        let mut chunker = Chunker::new(self, end);
        self.steps.iter().for_each(|step| chunker.take(step));
        chunker.close_all();
        chunker
    }

    /// What the claim with number `seq` covers, as it was when the claim was prepared.
    #[must_use]
    pub fn cut_of(&self, seq: ClaimSeq) -> Option<Cut> {
        self.cut_at(self.claimed_tokens(seq)?)
    }

    /// How many tokens the claim with number `seq` covers.
    #[must_use]
    pub fn claimed_tokens(&self, seq: ClaimSeq) -> Option<TokenCount> {
        let (_, tokens) = self.claimed.iter().find(|(known, _)| *known == seq)?;
        Some(TokenCount::new(*tokens))
    }

    fn apply(&mut self, fact: &Fact) -> Result<(), TranscriptError> {
        match fact {
            Fact::TurnStarted(header) => self.start(header),
            Fact::Delivered { turn, position, ids, states } => {
                let state = |index: usize| states.get(index).copied();
                let token = |(index, id): (usize, &u32)| Token { id: *id, state: state(index) };
                self.deliver(*turn, *position, ids.iter().enumerate().map(token).collect())
            }
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
        let is_derived = header.seed_origin == SeedOrigin::Derived;
        let begun = Turn {
            hash,
            model_spec: header.model_spec,
            is_canonical: header.engine_spec > 0,
            lacks_user_nonce: is_derived && header.nonces.is_none_or(|it| it.user.is_none()),
            tokens: 0,
            ended: false,
        };
        self.turns.insert(turn, begun);
        Ok(())
    }

    fn deliver(
        &mut self,
        no: TurnNo,
        position: u32,
        tokens: Vec<Token>,
    ) -> Result<(), TranscriptError> {
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
        let count = u64::try_from(tokens.len()).unwrap_or(u64::MAX);
        turn.tokens = turn.tokens.saturating_add(count);
        self.tokens = self.tokens.saturating_add(count);
        self.steps.push(Step::Ids { turn: no, tokens });
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

/// `actDigest` of a chunk, from the digests of the hidden states that produced its tokens; zero
/// where one is missing.
#[must_use]
pub fn act_digest(states: impl Iterator<Item = Option<Hash32>>) -> Hash32 {
    let mut states = states;
    let whole = states.try_fold(Preimage::new(), |preimage, state| Some(preimage.hash(state?)));
    whole.map_or(Hash32::ZERO, Preimage::finish)
}

/// The chunk of a turn that is filling up.
#[derive(Default)]
struct Open {
    /// Its number within the turn.
    number: u32,
    /// Tokens of the turn before it.
    position: u32,
    tokens: Vec<Token>,
}

/// Cuts the first tokens into leaves, in the order in which their chunks close.
struct Chunker<'t> {
    transcript: &'t Transcript,
    /// Where chunks of all turns close, the end included; the next one last.
    cuts: Vec<u64>,
    left: u64,
    taken: u64,
    open: BTreeMap<TurnNo, Open>,
    chunks: Vec<Chunk>,
    model_spec: Hash32,
    is_canonical: bool,
    lacks_user_nonce: bool,
}

impl<'t> Chunker<'t> {
    fn new(transcript: &'t Transcript, end: u64) -> Self {
        let mut cuts = transcript.cuts_before(end);
        cuts.reverse();
        Self {
            transcript,
            cuts,
            left: end,
            taken: 0,
            open: BTreeMap::new(),
            chunks: Vec::new(),
            model_spec: Hash32::ZERO,
            is_canonical: true,
            lacks_user_nonce: false,
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            // Once the last token is taken the cut has closed everything: an end that was
            // recorded behind it must not be seen, or a root would depend on when it is built.
            Step::End { turn } if self.left > 0 => self.close(*turn),
            Step::End { .. } => {}
            Step::Ids { turn, tokens } => {
                tokens.iter().for_each(|token| self.token(*turn, *token));
            }
        }
    }

    fn token(&mut self, turn: TurnNo, token: Token) {
        let Some(left) = self.left.checked_sub(1) else { return };
        self.left = left;
        self.taken = self.taken.saturating_add(1);
        if let Some(of) = self.transcript.turns.get(&turn) {
            self.model_spec = of.model_spec;
            self.is_canonical &= of.is_canonical && token.state.is_some();
            self.lacks_user_nonce |= of.lacks_user_nonce;
        }
        let open = self.open.entry(turn).or_default();
        open.tokens.push(token);
        if open.tokens.len() >= CHUNK_TOKENS {
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
        let Some(open) = self.open.get_mut(&no).filter(|open| !open.tokens.is_empty()) else {
            return;
        };
        self.chunks.push(Chunk {
            turn: no,
            number: open.number,
            position: open.position,
            ids: open.tokens.iter().map(|token| token.id).collect(),
            act_digest: act_digest(open.tokens.iter().map(|token| token.state)),
        });
        open.number = open.number.saturating_add(1);
        open.position = open.position.saturating_add(count(open.tokens.len()));
        open.tokens.clear();
    }
}

#[cfg(test)]
mod tests;
