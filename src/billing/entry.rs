//! What the ledger remembers: one fact an entry, never edited.
//!
//! Never carries text of prompts or answers: ids only. Keys make every append idempotent.

use std::collections::BTreeMap;

use super::Subject;
use crate::units::{
    Address, Amount, BlockHash, BlockNumber, ChainTime, ClaimSeq, Hash32, JobId, Millis,
    PricePerToken, TokenCount, TurnNo, TxHash, WalletNonce,
};

/// Where a turn's seed came from (docs/spec/proof.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedOrigin {
    /// The client gave it.
    Client,
    /// Derived from the nonces of both sides.
    Derived,
}

/// Why a turn ended, as clients are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEnd {
    /// End of turn or a stop string.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// The client cancelled or vanished.
    Cancelled,
    /// The deposit buys no more tokens.
    DepositExhausted,
    /// The engine failed.
    Error,
}

/// How a turn's tokens were chosen. No value is NaN: requests are checked for their ranges.
#[derive(Debug, Clone, PartialEq)]
pub struct Decode {
    /// Temperature; below 1e-6 the most likely token is taken.
    pub temperature: f32,
    /// Candidates kept by rank; 0 keeps all.
    pub top_k: u32,
    /// Candidates kept by cumulated probability; 1 keeps all.
    pub top_p: f32,
    /// Candidates kept relative to the best; 0 keeps all.
    pub min_p: f32,
    /// Penalty on tokens already seen; 1 is none.
    pub repetition_penalty: f32,
    /// Penalty for each time a token was generated; 0 is none.
    pub frequency_penalty: f32,
    /// Penalty on tokens that were generated; 0 is none.
    pub presence_penalty: f32,
    /// Added to the logits of ids.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The client's bound on generated tokens.
    pub max_tokens: u32,
    /// Stop strings, in the client's order.
    pub stop: Vec<String>,
    /// Whether no id that ends the text is drawn.
    pub ignore_eos: bool,
}

impl Eq for Decode {}

/// What both sides gave to a turn's seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnNonces {
    /// The host's: the turn's link of the chain whose end was told before.
    pub host: Hash32,
    /// The user's; `None` where the client sent none, and it was derived from the prompt.
    pub user: Option<Hash32>,
}

/// The fixed part of a turn: all that re-running it needs besides the weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnHeader {
    /// Its number within the job.
    pub turn: TurnNo,
    /// `modelSpec` of docs/spec/proof.md.
    pub model_spec: Hash32,
    /// Digest of the tokenizer's definition.
    pub tokenizer_spec: Hash32,
    /// Digest of `decode`.
    pub decode_spec: Hash32,
    /// Sampling parameters, stop strings and bound; `None` in ledgers of before schema 3, which
    /// hold the digest alone.
    pub decode: Option<Box<Decode>>,
    /// Version of the engine's arithmetic.
    pub engine_spec: u32,
    /// The sampling seed.
    pub seed: Hash32,
    /// Where the seed came from.
    pub seed_origin: SeedOrigin,
    /// What a derived seed was derived from; `None` in ledgers of before schema 3, where both
    /// nonces were zero.
    pub nonces: Option<TurnNonces>,
    /// The rendered prompt.
    pub prompt_ids: Vec<u32>,
}

/// Which call a transaction of ours makes. Everything that signing it again needs is in here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A claim.
    Claim(ClaimBody),
    /// The session's completion.
    Complete,
    /// An empty transfer to ourselves: takes a nonce that nothing of ours holds and that the
    /// chain waits for.
    Fill,
    /// The wallet's own business.
    Errand(Errand),
}

/// A call of the wallet that belongs to no job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// What it is for.
    pub kind: ErrandKind,
    /// Receiver.
    pub to: Address,
    /// Native currency sent along, wei.
    pub value: Amount,
    /// Call data.
    pub input: Vec<u8>,
}

/// What an errand is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrandKind {
    /// Earnings move from the earnings contract to the wallet.
    Withdraw {
        /// The currency; zero is native.
        token: Address,
        /// How much.
        amount: Amount,
        /// Where it moves on to, if anywhere.
        cold: Option<Address>,
    },
    /// What was withdrawn moves on to the cold address.
    Forward {
        /// The currency; zero is native.
        token: Address,
        /// How much.
        amount: Amount,
        /// The cold address.
        cold: Address,
    },
    /// A call to the node registry, or one that it needs first; named for reports.
    Registry {
        /// Name of the function, such as `registerNode`.
        name: String,
    },
}

/// What a claim says, fixed before its first broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimBody {
    /// Number of the root issued for the job.
    pub seq: ClaimSeq,
    /// The delta it claims.
    pub tokens: TokenCount,
    /// Tokens claimed by this job up to and with this claim.
    pub tokens_cumulative: TokenCount,
    /// The proof bytes sent.
    pub proof: Vec<u8>,
}

/// One signed attempt; all attempts of a transaction share its nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Hash of the signed bytes.
    pub hash: TxHash,
    /// The signed bytes.
    pub raw: Vec<u8>,
    /// `maxFeePerGas`, wei.
    pub fee_max: Amount,
    /// `maxPriorityFeePerGas`, wei.
    pub tip_max: Amount,
    /// Gas limit.
    pub gas_limit: u64,
}

/// Why a transaction of ours did not do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// Mined and reverted.
    Reverted,
    /// Its nonce was taken by a transaction that is not ours.
    NonceTaken,
    /// It had become pointless: an empty transfer of ours took its nonce on purpose.
    Cancelled,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact {
    /// A job was first admitted, on these terms.
    JobOpened {
        /// Who pays.
        depositor: Address,
        /// The locked amount.
        deposit: Amount,
        /// The agreed price.
        price: PricePerToken,
        /// Currency; zero is native.
        payment_token: Address,
        /// When the session began, chain clock.
        start_time: ChainTime,
        /// `tokensUsed` on chain at that moment: work claimed before this ledger.
        tokens_before: TokenCount,
    },
    /// The depositor proved who they are: plain access is over for this job.
    OwnerProven,
    /// A turn began.
    TurnStarted(TurnHeader),
    /// Tokens of a turn were delivered: `ids` follow `position` earlier ones of the turn.
    Delivered {
        /// The turn.
        turn: TurnNo,
        /// Tokens of the turn before these.
        position: u32,
        /// The billed ids.
        ids: Vec<u32>,
        /// Digests of the hidden states that produced them, one for each; none at all where the
        /// engine has none, and in ledgers of before schema 3.
        states: Vec<Hash32>,
    },
    /// A turn ended.
    TurnEnded {
        /// The turn.
        turn: TurnNo,
        /// Why.
        end: TurnEnd,
    },
    /// A transaction was signed under `nonce`; nothing was sent before this was durable.
    TxPrepared {
        /// The wallet's transaction number: its identity.
        nonce: WalletNonce,
        /// What it does.
        purpose: Purpose,
        /// The first attempt.
        attempt: Attempt,
    },
    /// The same transaction was signed again with higher fees.
    TxRepriced {
        /// Its nonce.
        nonce: WalletNonce,
        /// The attempt.
        attempt: Attempt,
    },
    /// Its work became pointless: an empty transfer was signed under the same nonce.
    TxCancelled {
        /// Its nonce.
        nonce: WalletNonce,
        /// The empty transfer.
        attempt: Attempt,
    },
    /// It is in a block.
    TxIncluded {
        /// Its nonce.
        nonce: WalletNonce,
        /// Which attempt.
        hash: TxHash,
        /// How many times it was seen in a block before: a chain may reorg back and forth.
        sighting: u32,
        /// The block's height.
        block: BlockNumber,
        /// The block's hash.
        block_hash: BlockHash,
        /// What it cost, wei.
        fee: Amount,
    },
    /// The block it was in is gone, however deep it was: it is on its way again.
    TxReorged {
        /// Its nonce.
        nonce: WalletNonce,
        /// Which sighting is gone.
        sighting: u32,
    },
    /// It has the confirmations the operator asked for: final.
    TxConfirmed {
        /// Its nonce.
        nonce: WalletNonce,
        /// Which sighting is final.
        sighting: u32,
    },
    /// It will never do its work; the tokens of a claim are free to be claimed again.
    TxRejected {
        /// Its nonce.
        nonce: WalletNonce,
        /// Its first attempt: a refused nonce is used again by another transaction.
        first: TxHash,
        /// Why.
        reason: RejectReason,
        /// What it cost all the same, wei: a revert and a cancellation use gas.
        fee: Amount,
    },
    /// The session is over on chain.
    JobClosed {
        /// How many times it was closed before.
        closing: u32,
        /// The chain's newest block then.
        block: BlockNumber,
        /// Tokens recorded and not paid that were too few for a claim.
        unclaimable: TokenCount,
        /// Tokens recorded and not paid that a claim could have carried in time.
        forfeited: TokenCount,
    },
    /// The block that ended the session is gone: it runs again.
    JobReopened {
        /// Which closing is void.
        closing: u32,
    },
    /// Ledger and chain disagree: nothing more is done for this job until a human looked.
    JobHalted {
        /// The message for that human.
        why: String,
    },
}

impl Fact {
    /// The nonce of the transaction it is about; `None` for any other fact.
    #[must_use]
    pub const fn nonce(&self) -> Option<WalletNonce> {
        match self {
            Self::TxPrepared { nonce, .. }
            | Self::TxRepriced { nonce, .. }
            | Self::TxCancelled { nonce, .. }
            | Self::TxIncluded { nonce, .. }
            | Self::TxReorged { nonce, .. }
            | Self::TxConfirmed { nonce, .. }
            | Self::TxRejected { nonce, .. } => Some(*nonce),
            Self::JobOpened { .. }
            | Self::OwnerProven
            | Self::TurnStarted(_)
            | Self::Delivered { .. }
            | Self::TurnEnded { .. }
            | Self::JobClosed { .. }
            | Self::JobReopened { .. }
            | Self::JobHalted { .. } => None,
        }
    }
}

/// A fact about a job or about the wallet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose account it belongs to.
    pub subject: Subject,
    /// Wall-clock time of the fact, for reports only.
    pub at: Millis,
    /// The fact.
    pub fact: Fact,
}

impl Entry {
    /// The job it is about; `None` for the wallet's own business.
    #[must_use]
    pub const fn job(&self) -> Option<JobId> {
        self.subject.job()
    }

    /// The entry's identity: appending the same key twice counts once.
    #[must_use]
    pub fn key(&self) -> String {
        let of = self.subject;
        match &self.fact {
            Fact::JobOpened { .. } => format!("{of}/opened"),
            Fact::OwnerProven => format!("{of}/owner"),
            Fact::TurnStarted(header) => format!("{of}/turn/{}", header.turn),
            Fact::Delivered { turn, position, .. } => format!("{of}/turn/{turn}/at/{position}"),
            Fact::TurnEnded { turn, .. } => format!("{of}/turn/{turn}/end"),
            Fact::TxPrepared { nonce, attempt, .. }
            | Fact::TxRepriced { nonce, attempt }
            | Fact::TxCancelled { nonce, attempt } => {
                format!("{of}/tx/{nonce}/{}", attempt.hash)
            }
            Fact::TxIncluded { nonce, hash, sighting, .. } => {
                format!("{of}/tx/{nonce}/{hash}/in/{sighting}")
            }
            Fact::TxReorged { nonce, sighting } => format!("{of}/tx/{nonce}/reorg/{sighting}"),
            Fact::TxConfirmed { nonce, sighting } => {
                format!("{of}/tx/{nonce}/confirmed{}", again(*sighting))
            }
            Fact::TxRejected { nonce, first, .. } => format!("{of}/tx/{nonce}/{first}/rejected"),
            Fact::JobClosed { closing, .. } => format!("{of}/closed{}", again(*closing)),
            Fact::JobReopened { closing } => format!("{of}/reopened/{closing}"),
            Fact::JobHalted { .. } => format!("{of}/halted"),
        }
    }
}

/// What tells a repeat from the first, which has no number: ledgers of the first schema know no
/// repeats.
fn again(nth: u32) -> String {
    if nth == 0 { String::new() } else { format!("/{nth}") }
}
