//! The stored twin of a fact.
//!
//! Never drops a field's meaning: what ledgers of the first schema lack has a default here, named
//! for what it meant then.

use serde::{Deserialize, Serialize};

use super::parts::{StoredAttempt, StoredEnd, StoredHeader, StoredPurpose, StoredReason};
use super::text::Text;
use crate::billing::Fact;
use crate::units::{
    Address, Amount, BlockHash, BlockNumber, ChainTime, Hash32, PricePerToken, TokenCount, TurnNo,
    TxHash, WalletNonce,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredTerms {
    depositor: Text<Address>,
    deposit: Text<Amount>,
    price: Text<PricePerToken>,
    payment_token: Text<Address>,
    start_time: u64,
    tokens_before: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredInclusion {
    nonce: u64,
    hash: Text<TxHash>,
    sighting: u32,
    block: u64,
    block_hash: Text<BlockHash>,
    fee: Text<Amount>,
}

/// What ledgers of the first schema say about a rejected transaction's cost.
fn nothing() -> Text<Amount> {
    Text(Amount::ZERO)
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum StoredFact {
    JobOpened(StoredTerms),
    OwnerProven,
    TurnStarted(StoredHeader),
    Delivered {
        turn: u32,
        position: u32,
        ids: Vec<u32>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        states: Vec<Text<Hash32>>,
    },
    TurnEnded {
        turn: u32,
        end: StoredEnd,
    },
    TxPrepared {
        nonce: u64,
        purpose: StoredPurpose,
        attempt: StoredAttempt,
    },
    TxRepriced {
        nonce: u64,
        attempt: StoredAttempt,
    },
    TxCancelled {
        nonce: u64,
        attempt: StoredAttempt,
    },
    TxIncluded(StoredInclusion),
    TxReorged {
        nonce: u64,
        sighting: u32,
    },
    TxConfirmed {
        nonce: u64,
        #[serde(default)]
        sighting: u32,
    },
    TxRejected {
        nonce: u64,
        first: Text<TxHash>,
        reason: StoredReason,
        #[serde(default = "nothing")]
        fee: Text<Amount>,
    },
    JobClosed {
        #[serde(default)]
        closing: u32,
        #[serde(default)]
        block: u64,
        #[serde(default)]
        unclaimable: u64,
        forfeited: u64,
    },
    JobReopened {
        closing: u32,
    },
    JobHalted {
        why: String,
    },
}

impl From<&Fact> for StoredFact {
    fn from(fact: &Fact) -> Self {
        match fact {
            Fact::JobOpened {
                depositor,
                deposit,
                price,
                payment_token,
                start_time,
                tokens_before,
            } => Self::JobOpened(StoredTerms {
                depositor: Text(*depositor),
                deposit: Text(*deposit),
                price: Text(*price),
                payment_token: Text(*payment_token),
                start_time: start_time.get(),
                tokens_before: tokens_before.get(),
            }),
            Fact::OwnerProven => Self::OwnerProven,
            Fact::TurnStarted(header) => Self::TurnStarted(header.into()),
            Fact::Delivered { turn, position, ids, states } => {
                let (turn, position, ids) = (turn.get(), *position, ids.clone());
                let states = states.iter().copied().map(Text).collect();
                Self::Delivered { turn, position, ids, states }
            }
            Fact::TurnEnded { turn, end } => {
                Self::TurnEnded { turn: turn.get(), end: (*end).into() }
            }
            Fact::TxPrepared { nonce, purpose, attempt } => Self::TxPrepared {
                nonce: nonce.get(),
                purpose: purpose.into(),
                attempt: attempt.into(),
            },
            Fact::TxRepriced { nonce, attempt } => {
                Self::TxRepriced { nonce: nonce.get(), attempt: attempt.into() }
            }
            Fact::TxCancelled { nonce, attempt } => {
                Self::TxCancelled { nonce: nonce.get(), attempt: attempt.into() }
            }
            Fact::TxIncluded { nonce, hash, sighting, block, block_hash, fee } => {
                Self::TxIncluded(StoredInclusion {
                    nonce: nonce.get(),
                    hash: Text(*hash),
                    sighting: *sighting,
                    block: block.get(),
                    block_hash: Text(*block_hash),
                    fee: Text(*fee),
                })
            }
            Fact::TxReorged { nonce, sighting } => {
                Self::TxReorged { nonce: nonce.get(), sighting: *sighting }
            }
            Fact::TxConfirmed { nonce, sighting } => {
                Self::TxConfirmed { nonce: nonce.get(), sighting: *sighting }
            }
            Fact::TxRejected { nonce, first, reason, fee } => Self::TxRejected {
                nonce: nonce.get(),
                first: Text(*first),
                reason: (*reason).into(),
                fee: Text(*fee),
            },
            Fact::JobClosed { closing, block, unclaimable, forfeited } => Self::JobClosed {
                closing: *closing,
                block: block.get(),
                unclaimable: unclaimable.get(),
                forfeited: forfeited.get(),
            },
            Fact::JobReopened { closing } => Self::JobReopened { closing: *closing },
            Fact::JobHalted { why } => Self::JobHalted { why: why.clone() },
        }
    }
}

impl From<StoredTerms> for Fact {
    fn from(terms: StoredTerms) -> Self {
        Self::JobOpened {
            depositor: terms.depositor.0,
            deposit: terms.deposit.0,
            price: terms.price.0,
            payment_token: terms.payment_token.0,
            start_time: ChainTime::new(terms.start_time),
            tokens_before: TokenCount::new(terms.tokens_before),
        }
    }
}

impl From<StoredInclusion> for Fact {
    fn from(seen: StoredInclusion) -> Self {
        Self::TxIncluded {
            nonce: WalletNonce::new(seen.nonce),
            hash: seen.hash.0,
            sighting: seen.sighting,
            block: BlockNumber::new(seen.block),
            block_hash: seen.block_hash.0,
            fee: seen.fee.0,
        }
    }
}

impl From<StoredFact> for Fact {
    fn from(stored: StoredFact) -> Self {
        match stored {
            StoredFact::JobOpened(terms) => terms.into(),
            StoredFact::OwnerProven => Self::OwnerProven,
            StoredFact::TurnStarted(header) => Self::TurnStarted(header.into()),
            StoredFact::Delivered { turn, position, ids, states } => {
                let states = states.into_iter().map(|state| state.0).collect();
                Self::Delivered { turn: TurnNo::new(turn), position, ids, states }
            }
            StoredFact::TurnEnded { turn, end } => {
                Self::TurnEnded { turn: TurnNo::new(turn), end: end.into() }
            }
            StoredFact::TxPrepared { nonce, purpose, attempt } => Self::TxPrepared {
                nonce: WalletNonce::new(nonce),
                purpose: purpose.into(),
                attempt: attempt.into(),
            },
            StoredFact::TxRepriced { nonce, attempt } => {
                Self::TxRepriced { nonce: WalletNonce::new(nonce), attempt: attempt.into() }
            }
            StoredFact::TxCancelled { nonce, attempt } => {
                Self::TxCancelled { nonce: WalletNonce::new(nonce), attempt: attempt.into() }
            }
            StoredFact::TxIncluded(seen) => seen.into(),
            StoredFact::TxReorged { nonce, sighting } => {
                Self::TxReorged { nonce: WalletNonce::new(nonce), sighting }
            }
            StoredFact::TxConfirmed { nonce, sighting } => {
                Self::TxConfirmed { nonce: WalletNonce::new(nonce), sighting }
            }
            StoredFact::TxRejected { nonce, first, reason, fee } => Self::TxRejected {
                nonce: WalletNonce::new(nonce),
                first: first.0,
                reason: reason.into(),
                fee: fee.0,
            },
            StoredFact::JobClosed { closing, block, unclaimable, forfeited } => Self::JobClosed {
                closing,
                block: BlockNumber::new(block),
                unclaimable: TokenCount::new(unclaimable),
                forfeited: TokenCount::new(forfeited),
            },
            StoredFact::JobReopened { closing } => Self::JobReopened { closing },
            StoredFact::JobHalted { why } => Self::JobHalted { why },
        }
    }
}
