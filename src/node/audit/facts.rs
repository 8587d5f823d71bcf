//! What the chain says about everything a ledger holds.
//!
//! Never decides: readings only. Asks for every transaction by its hash, so that nothing hangs on
//! events alone; events are read to find what the ledger does not know.

use std::collections::BTreeMap;

use super::view::{Fate, Sent, View};
use crate::chain::registry::Registry;
use crate::chain::{Chain, ChainError, ChainEvent, ChainJob, Inclusion};
use crate::units::{Address, BlockNumber, JobId, TokenCount, TxHash, WalletNonce};

/// Blocks of one event query: what public endpoints answer at once.
const EVENT_BLOCKS: u64 = 2_000;

/// Blocks before the head whose events are read where the ledger has no claim in a block yet.
const EVENT_BLOCKS_DEFAULT: u64 = 10_000;

/// A `ProofSubmitted` of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proven {
    pub job: JobId,
    pub tokens: TokenCount,
    pub tx: TxHash,
}

/// The readings.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub host: Address,
    /// By job of the ledger; `None` where the contract knows none.
    pub jobs: BTreeMap<JobId, Option<ChainJob>>,
    /// By attempt; those behind one that was found in a block are not asked for.
    pub seen: BTreeMap<TxHash, Inclusion>,
    /// Ours, from `events_from` on.
    pub proven: Vec<Proven>,
    pub events_from: BlockNumber,
    /// The wallet's next nonce by the newest block.
    pub nonce_mined: WalletNonce,
}

/// Reads everything.
///
/// # Errors
/// [`ChainError`] when one reading fails.
pub(super) async fn read<C: Chain + Registry>(
    chain: &C,
    view: &View,
    events_from: Option<BlockNumber>,
) -> Result<Facts, ChainError> {
    let mut jobs = BTreeMap::new();
    for job in view.jobs.keys() {
        jobs.insert(*job, chain.job(*job).await?);
    }
    let mut seen = BTreeMap::new();
    for sent in &view.sent {
        look_for(chain, sent, &mut seen).await?;
    }
    let head = chain.head().await?.number;
    let default = || head.saturating_sub(BlockNumber::new(EVENT_BLOCKS_DEFAULT));
    let events_from = events_from.or(view.first_block()).unwrap_or_else(default).min(head);
    let proven = events(chain, events_from, head).await?;
    let nonce_mined = chain.wallet().await?.nonce_mined;
    Ok(Facts { host: chain.host(), jobs, seen, proven, events_from, nonce_mined })
}

/// The attempt that the ledger names first: most often nothing else has to be asked.
async fn look_for<C: Chain>(
    chain: &C,
    sent: &Sent,
    seen: &mut BTreeMap<TxHash, Inclusion>,
) -> Result<(), ChainError> {
    let named = match sent.fate {
        Fate::Included(mined) | Fate::Final(mined) => Some(mined.hash),
        Fate::Open | Fate::Rejected(_) => None,
    };
    let others = sent.attempts.iter().rev().copied().filter(|hash| Some(*hash) != named);
    for hash in named.into_iter().chain(others) {
        let inclusion = chain.inclusion(hash).await?;
        let is_mined = matches!(inclusion, Inclusion::Included { .. });
        seen.insert(hash, inclusion);
        if is_mined {
            break;
        }
    }
    Ok(())
}

async fn events<C: Chain>(
    chain: &C,
    from: BlockNumber,
    head: BlockNumber,
) -> Result<Vec<Proven>, ChainError> {
    let mut proven = Vec::new();
    let mut low = from;
    while low <= head {
        let high = low.saturating_add(BlockNumber::new(EVENT_BLOCKS.saturating_sub(1))).min(head);
        for event in chain.events(low, high).await? {
            match event {
                ChainEvent::Proven { job, tokens, tx } => proven.push(Proven { job, tokens, tx }),
                ChainEvent::Created(_) | ChainEvent::Completed { .. } | ChainEvent::TimedOut(_) => {
                }
            }
        }
        let Some(next) = high.checked_add(BlockNumber::new(1)) else { break };
        low = next;
    }
    Ok(proven)
}
