//! What the owner of a session may see of it.

use super::live::Phase;
use super::tracker::Tracker;
use crate::billing::{Account, TxState};
use crate::chain::{ChainJob, JobStatus, Limits};
use crate::claim::deadline;
use crate::units::{
    Address, Amount, ChainTime, ClaimSeq, JobId, PricePerToken, TokenCount, TxHash,
};

/// A claim, as its owner and the operator see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimReport {
    /// Its number.
    pub seq: ClaimSeq,
    /// The delta.
    pub tokens: TokenCount,
    /// The attempt that counts, or the newest one.
    pub tx: TxHash,
    /// Where it stands.
    pub state: TxState,
}

/// A session's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionReport {
    /// The job.
    pub job: JobId,
    /// Who pays.
    pub depositor: Address,
    /// Price per token in the contract's unit.
    pub price: PricePerToken,
    /// The locked amount.
    pub deposit: Amount,
    /// Currency; zero is native.
    pub payment_token: Address,
    /// `tokensUsed` on chain, as last read.
    pub tokens_on_chain: TokenCount,
    /// Tokens durable in the ledger.
    pub tokens_recorded: TokenCount,
    /// Tokens in claims that are not rejected.
    pub tokens_claimed: TokenCount,
    /// Tokens in claims that are final.
    pub tokens_confirmed: TokenCount,
    /// Tokens the deposit still buys.
    pub tokens_affordable: TokenCount,
    /// Claims, oldest first.
    pub claims: Vec<ClaimReport>,
    /// The completion's transaction and its state.
    pub completion: Option<(TxHash, TxState)>,
    /// Until when the next claim must be mined, chain clock.
    pub deadline: Option<ChainTime>,
    /// Where the session stands.
    pub phase: Phase,
    /// Tokens that can never be claimed, once that is known.
    pub tokens_forfeited: TokenCount,
}

/// The report of a job, from the live view and the contract's limits.
pub(super) fn build(tracker: &Tracker, limits: &Limits, known: &ChainJob) -> SessionReport {
    let job = known.id;
    let account = tracker.account(job).unwrap_or_else(|| Account::new(job));
    let affordable = limits.price_unit.affordable(known.deposit, known.price);
    let claims = account.claims().map(|(claim, tx)| ClaimReport {
        seq: claim.seq,
        tokens: claim.tokens,
        tx: tx.named(),
        state: tx.state,
    });
    let is_open = known.status == JobStatus::Active && !account.is_closed();
    SessionReport {
        job,
        depositor: known.depositor,
        price: known.price,
        deposit: known.deposit,
        payment_token: known.payment_token,
        tokens_on_chain: known.tokens_used,
        tokens_recorded: account.recorded(),
        tokens_claimed: account.claimed(),
        tokens_confirmed: account.confirmed(),
        tokens_affordable: tracker.left(job, affordable),
        claims: claims.collect(),
        completion: account.completion().map(|tx| (tx.named(), tx.state)),
        deadline: is_open.then(|| {
            deadline(known.start_time, known.duration_max, known.last_proof_time, known.silence_max)
        }),
        phase: tracker.phase(job).unwrap_or(Phase::Active),
        tokens_forfeited: account.lost().unwrap_or_default().total(),
    }
}
