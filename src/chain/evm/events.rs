//! Reading the marketplace's logs.
//!
//! Never trusts a log for its topic alone: it has to come from the marketplace's address. Relies
//! on docs/spec/contract.md section 1 for the events; they are the fast path, state is the truth.

use alloy::primitives::{Address as EvmAddress, B256};
use alloy::sol_types::SolEvent;
use serde_json::{Value, json};

use super::bindings::{
    SessionCreatedByDepositor, SessionJobCreated, SessionTimedOut, completed, completed_by,
};
use super::dialect::{Dialect, Proven};
use super::rpc::{Refusal, Rpc, RpcFailure};
use super::wire::{Log, evm, job_of, u64_of};
use crate::chain::{ChainError, ChainEvent};
use crate::units::{Address, BlockNumber, TokenCount, TxHash};

/// Most requests that one query may be split into.
const REQUESTS_MAX: usize = 64;

/// Address and topics of a log query: every event that [`read`] understands.
pub(super) fn filter(marketplace: Address, dialect: Dialect) -> Value {
    let topics = [
        SessionJobCreated::SIGNATURE_HASH,
        SessionCreatedByDepositor::SIGNATURE_HASH,
        dialect.proven_topic(),
        completed::SessionCompleted::SIGNATURE_HASH,
        completed_by::SessionCompleted::SIGNATURE_HASH,
        SessionTimedOut::SIGNATURE_HASH,
    ];
    json!({"address": marketplace.to_string(), "topics": [topics]})
}

/// The logs of blocks `from ..= to`, oldest first. A range that the endpoint finds too large is
/// halved, and what it takes is remembered: the next query begins with it. One that would need too
/// many pages fails before the first is asked for.
pub(super) async fn fetch(
    rpc: &Rpc,
    filter: &Value,
    from: BlockNumber,
    to: BlockNumber,
) -> Result<Vec<Log>, ChainError> {
    let mut logs: Vec<Log> = Vec::new();
    let Some(mut open) = pages(from.get(), to.get(), rpc.log_span()) else {
        return Err(too_long(from, to));
    };
    let mut is_halved = false;
    for _ in 0..REQUESTS_MAX {
        let Some((low, high)) = open.pop() else { break };
        if low > high {
            continue;
        }
        let mut query = filter.clone();
        if let Some(fields) = query.as_object_mut() {
            fields.insert("fromBlock".into(), json!(format!("{low:#x}")));
            fields.insert("toBlock".into(), json!(format!("{high:#x}")));
        }
        match rpc.call::<Vec<Log>>("eth_getLogs", json!([query])).await {
            Ok(found) => {
                if is_halved {
                    rpc.learn_log_span(high.saturating_sub(low).saturating_add(1));
                }
                logs.extend(found.into_iter().filter(|log| !log.removed));
            }
            Err(RpcFailure::Refused(refusal)) if low < high && is_too_much(&refusal) => {
                is_halved = true;
                let middle = low.midpoint(high);
                // The later half first, so that the earlier one is popped next.
                open.push((middle.saturating_add(1), high));
                open.push((low, middle));
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    if !open.is_empty() {
        return Err(too_long(from, to));
    }
    logs.sort_by_key(|log| (log.block_number, log.log_index));
    Ok(logs)
}

/// The range in pages of at most `span` blocks, the earliest last; `None` where they are too many.
fn pages(from: u64, to: u64, span: Option<u64>) -> Option<Vec<(u64, u64)>> {
    let span = span.unwrap_or(u64::MAX).max(1);
    let mut pages = Vec::new();
    let mut low = from;
    while low <= to {
        if pages.len() == REQUESTS_MAX {
            return None;
        }
        let high = low.saturating_add(span.saturating_sub(1)).min(to);
        pages.push((low, high));
        let Some(next) = high.checked_add(1) else { break };
        low = next;
    }
    pages.reverse();
    Some(pages)
}

fn too_long(from: BlockNumber, to: BlockNumber) -> ChainError {
    let span = format!("logs of blocks {from}..={to}");
    ChainError::Unreachable(format!("{span} need over {REQUESTS_MAX} requests"))
}

/// Whether the endpoint would answer a smaller range. Words of public providers; a range past the
/// head is not among them.
fn is_too_much(refusal: &Refusal) -> bool {
    let lower = refusal.message.to_lowercase();
    let past_head = lower.contains("beyond") || lower.contains("head");
    let words = ["block range", "range is too", "limit", "too many", "more than", "too large"];
    !past_head && !refusal.is_throttle() && words.iter().any(|words| lower.contains(words))
}

/// The events in `logs`, in their order. Created and proven are those of `host`; completed and
/// timed out name no host in any version, so they are everybody's.
///
/// # Errors
/// [`ChainError::Unexpected`] where a log of a known topic does not decode.
pub(super) fn read(
    logs: Vec<Log>,
    marketplace: Address,
    host: Address,
    dialect: Dialect,
) -> Result<Vec<ChainEvent>, ChainError> {
    let mut events: Vec<ChainEvent> = Vec::with_capacity(logs.len());
    let ours = logs.iter().filter(|log| log.address == evm(marketplace));
    for log in ours {
        let Some(event) = event(log, evm(host), dialect)? else { continue };
        // v3 and v4 tell a completion twice, in two events of one name.
        if events.last() != Some(&event) {
            events.push(event);
        }
    }
    Ok(events)
}

/// The `ProofSubmitted` of `host` among a receipt's logs.
///
/// # Errors
/// [`ChainError::Unexpected`] for more than one: a claim makes exactly one.
pub(super) fn proven_in(
    logs: &[Log],
    marketplace: Address,
    host: Address,
    dialect: Dialect,
) -> Result<Option<Proven>, ChainError> {
    let mut found = None;
    for log in logs.iter().filter(|log| log.address == evm(marketplace)) {
        let Some(proven) = dialect.proven(log)?.filter(|proven| proven.host == host) else {
            continue;
        };
        if found.replace(proven).is_some() {
            let job = proven.job;
            return Err(ChainError::Unexpected(format!("job {job}: two proofs in one receipt")));
        }
    }
    Ok(found)
}

fn event(log: &Log, host: EvmAddress, dialect: Dialect) -> Result<Option<ChainEvent>, ChainError> {
    let topic = |nth: usize| log.topics.get(nth).copied().unwrap_or_default();
    let is_created = [SessionJobCreated::SIGNATURE_HASH, SessionCreatedByDepositor::SIGNATURE_HASH];
    let is_completed = [
        completed::SessionCompleted::SIGNATURE_HASH,
        completed_by::SessionCompleted::SIGNATURE_HASH,
    ];
    let name = topic(0);
    if name == dialect.proven_topic() {
        return proven(log, host, dialect);
    }
    if is_created.contains(&name) {
        let ours = topic(3) == host.into_word();
        return if ours { Ok(Some(ChainEvent::Created(job(topic(1))?))) } else { Ok(None) };
    }
    if is_completed.contains(&name) {
        // In both events the first word of data is the tokens that were paid.
        let word = log.data.first_chunk::<32>().copied().map(B256::from);
        let word =
            word.ok_or_else(|| ChainError::Unexpected("SessionCompleted is empty".into()))?;
        let tokens = TokenCount::new(u64_of(word.into(), "completed tokens")?);
        return Ok(Some(ChainEvent::Completed { job: job(topic(1))?, tokens }));
    }
    if name == SessionTimedOut::SIGNATURE_HASH {
        return Ok(Some(ChainEvent::TimedOut(job(topic(1))?)));
    }
    Ok(None)
}

fn proven(log: &Log, host: EvmAddress, dialect: Dialect) -> Result<Option<ChainEvent>, ChainError> {
    // Asked before decoding: another host's absurd claim is not our trouble.
    if log.topics.get(2) != Some(&host.into_word()) {
        return Ok(None);
    }
    let Some(Proven { job, tokens, .. }) = dialect.proven(log)? else { return Ok(None) };
    let tx = log.transaction_hash.map(|hash| TxHash::new(hash.0));
    let tx = tx.ok_or_else(|| ChainError::Unexpected("a mined log has no transaction".into()))?;
    Ok(Some(ChainEvent::Proven { job, tokens, tx }))
}

fn job(topic: B256) -> Result<crate::units::JobId, ChainError> {
    job_of(topic.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_range_once_and_in_order() {
        let pages = |from, to, span| {
            let mut pages = pages(from, to, span)?;
            pages.reverse();
            Some(pages)
        };
        assert_eq!(pages(5, 9, None), Some(vec![(5, 9)]));
        assert_eq!(pages(5, 9, Some(2)), Some(vec![(5, 6), (7, 8), (9, 9)]));
        assert_eq!(pages(5, 9, Some(5)), Some(vec![(5, 9)]));
        assert_eq!(pages(9, 5, Some(2)), Some(vec![]), "an empty range");
        assert_eq!(pages(1, 64, Some(1)).map(|pages| pages.len()), Some(64));
        assert_eq!(pages(1, 65, Some(1)), None, "one page too many");
        assert_eq!(pages(1, u64::MAX, None), Some(vec![(1, u64::MAX)]));
    }

    #[test]
    fn a_throttle_is_not_answered_with_more_requests() {
        let refusal = |message: &str| Refusal { code: -32005, message: message.into(), data: None };
        for words in ["query returned more than 10000 results", "block range is too wide"] {
            assert!(is_too_much(&refusal(words)), "{words}");
        }
        for words in ["rate limit exceeded", "too many requests", "limit exceeded"] {
            assert!(!is_too_much(&refusal(words)), "{words}");
        }
        assert!(!is_too_much(&refusal("block range extends beyond current head block")));
    }
}
