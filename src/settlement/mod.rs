//! Settlement: turns recorded tokens into claims, and claims into confirmed ones.
//!
//! Never touches a request and never trusts memory over ledger and chain: every decision is taken
//! anew from the account (a fold of the ledger) and from the chain's state, so a restart at any
//! point goes on where the ledger stands. Relies on being the only submitter of its wallet (the
//! node holds a lock) and on `tick` being called again and again.

mod lifecycle;
mod reconcile;
mod submit;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;

use metrics::{counter, gauge};

use crate::billing::{Account, Lost, TxState};
use crate::chain::{Chain, ChainError, ChainEvent, ChainJob, Head, Limits, Wallet, WalletState};
use crate::claim::ClaimRules;
use crate::ledger::LedgerError;
use crate::session::{Books, BooksParts, Grace, Phase};
use crate::units::{
    Amount, BlockNumber, ChainSeconds, JobId, Millis, TokenCount, TxHash, WalletNonce,
};
use watch::Watch;

/// The operator's wishes for settlement.
#[derive(Debug, Clone, PartialEq)]
pub struct SettlementRules {
    /// Unclaimed tokens from which a claim is due; raised to the contract's minimum.
    pub claim_at: TokenCount,
    /// How long before the deadline a claim is forced.
    pub claim_margin: ChainSeconds,
    /// The greatest share of a claim's value that its fee may take, 0 … 1.
    pub fee_share_max: f64,
    /// The highest `maxFeePerGas` that is ever signed, wei; `None` for no ceiling.
    pub fee_max: Option<Amount>,
    /// Confirmations after which a transaction is final, at least 1.
    pub confirmations: u64,
    /// How long a session may be quiet before it is completed.
    pub grace: Grace,
    /// Pending time after which a transaction is signed again with higher fees.
    pub reprice_after: Millis,
    /// Every job is looked at this often, whatever events say.
    pub sweep_every: Millis,
}

/// What settlement tells the rest of the node. Must not block.
pub trait Observer: Send + Sync {
    /// A claim is in a block.
    fn claim_included(&self, job: JobId, tokens: TokenCount, tx: TxHash);
    /// Whether the chain answered when it was last looked at.
    fn chain_answers(&self, answers: bool);
    /// A session is over on chain.
    fn session_closed(&self, job: JobId, lost: Lost);
}

/// Settlement cannot go on: the node must stop.
#[derive(Debug, thiserror::Error)]
pub enum SettlementError {
    /// The ledger does not take entries: nothing may be sent any more.
    #[error("settlement stops: {0}")]
    Ledger(#[from] LedgerError),
}

/// A step of one job ended early.
enum StepError {
    /// The chain did not answer: try again at the next tick.
    Chain(ChainError),
    /// Fatal.
    Ledger(LedgerError),
}

impl From<ChainError> for StepError {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

impl From<LedgerError> for StepError {
    fn from(error: LedgerError) -> Self {
        Self::Ledger(error)
    }
}

/// What one tick read of the chain before looking at jobs.
#[derive(Debug, Clone, Copy)]
struct View {
    head: Head,
    wallet: WalletState,
    now: Millis,
}

/// The service; driven by [`Settlement::tick`].
pub struct Settlement {
    chain: Arc<dyn Chain>,
    wallet: Arc<dyn Wallet>,
    books: Books,
    limits: Limits,
    rules: SettlementRules,
    observer: Arc<dyn Observer>,
    watch: Watch,
    nonce_floor: WalletNonce,
    events_from: Option<BlockNumber>,
    swept_at: Option<Millis>,
}

impl Settlement {
    /// A service over books whose tracker already holds the ledger's accounts.
    #[must_use]
    pub fn new(parts: SettlementParts) -> Self {
        let SettlementParts { chain, wallet, books, limits, rules, observer } = parts;
        let BooksParts { ledger, tracker, clock } = books;
        let nonce_floor =
            nonce_floor(tracker.jobs().iter().filter_map(|job| tracker.account(*job)));
        Self {
            chain,
            wallet,
            books: Books { ledger, tracker, clock },
            limits,
            rules,
            observer,
            watch: Watch::default(),
            nonce_floor,
            events_from: None,
            swept_at: None,
        }
    }

    /// One pass: reads the chain, moves every job that is due by at most one step of each kind.
    ///
    /// A silent chain ends the pass early and is not an error: nothing is lost by waiting.
    ///
    /// # Errors
    /// [`SettlementError`] when the ledger fails.
    pub async fn tick(&mut self) -> Result<(), SettlementError> {
        let looked = self.look().await;
        self.observer.chain_answers(looked.is_ok());
        let view = match looked {
            Ok(view) => view,
            Err(error) => {
                chain_failed(&error, "chain not readable");
                return Ok(());
            }
        };
        for job in self.jobs_due(&view).await {
            match self.step(job, &view).await {
                Ok(()) => {}
                Err(StepError::Chain(error)) => {
                    tracing::debug!(%job, "step cut short");
                    chain_failed(&error, "job not settled this time");
                }
                // A full queue, or a reading that failed: nothing was written and nothing was sent,
                // the next tick finds the same work. Only a broken store stops the node.
                Err(StepError::Ledger(error)) if self.books.ledger.is_healthy() => {
                    tracing::error!(%job, %error, "not settled this time");
                }
                Err(StepError::Ledger(error)) => return Err(error.into()),
            }
        }
        gauge!("sessions_active").set(precise(self.books.tracker.count_open()));
        Ok(())
    }

    async fn look(&self) -> Result<View, ChainError> {
        let head = self.chain.head().await?;
        let wallet = self.chain.wallet().await?;
        gauge!("chain_head_block").set(precise(head.number.get()));
        Ok(View { head, wallet, now: self.books.clock.now() })
    }

    /// Jobs to look at: those with something to do, those the chain spoke of, and all of them
    /// every so often: state is the guarantee, events are only the fast path.
    async fn jobs_due(&mut self, view: &View) -> Vec<JobId> {
        let sweep =
            self.swept_at.is_none_or(|at| view.now.saturating_sub(at) >= self.rules.sweep_every);
        if sweep {
            self.swept_at = Some(view.now);
        }
        let spoken_of = self.new_events(view).await;
        let tracker = &self.books.tracker;
        let mut due = Vec::new();
        for job in tracker.jobs() {
            let Some(account) = tracker.account(job) else { continue };
            let has_open_tx = account.txs_open().next().is_some();
            if account.is_closed() || (account.halted().is_some() && !has_open_tx) {
                continue;
            }
            let has_work = has_open_tx
                || account.unclaimed() >= self.limits.claim_min
                || tracker.is_quiet(job, view.now, self.rules.grace);
            if sweep || has_work || spoken_of.contains(&job) {
                due.push(job);
            }
        }
        due
    }

    async fn new_events(&mut self, view: &View) -> BTreeSet<JobId> {
        let head = view.head.number;
        let from = self.events_from.unwrap_or(head).min(head);
        let events = match self.chain.events(from, head).await {
            Ok(events) => events,
            Err(error) => {
                chain_failed(&error, "events not read");
                return BTreeSet::new();
            }
        };
        // Blocks that may still be reorganised are read again: events only say where to look.
        let overlap = BlockNumber::new(self.rules.confirmations);
        self.events_from = Some(head.saturating_sub(overlap).max(from));
        let job_of = |event: &ChainEvent| match event {
            ChainEvent::Created(job) | ChainEvent::TimedOut(job) => *job,
            ChainEvent::Proven { job, .. } | ChainEvent::Completed { job, .. } => *job,
        };
        events.iter().map(job_of).collect()
    }

    /// One job: reconcile what is out, then close, claim or complete.
    async fn step(&mut self, job: JobId, view: &View) -> Result<(), StepError> {
        if self.books.tracker.phase(job) == Some(Phase::Halted) {
            // Nothing new is signed for it, but a nonce of its that is never mined would hold up
            // every later claim of the wallet.
            return self.reconcile(job, view).await;
        }
        let Some(known) = self.chain.job(job).await? else {
            let why = "the chain no longer knows this job".to_owned();
            return self.suspect(job, view, why).await;
        };
        let read_at = view.now;
        self.books.tracker.observe(crate::session::Snapshot { job: known.clone(), read_at });
        let rejected_before = self.rejected_count(job);
        self.reconcile(job, view).await?;
        let Some(account) = self.books.tracker.account(job) else { return Ok(()) };
        if self.rejected_count(job) != rejected_before {
            // `known` was read before the rejection: claim again on a reading made after it.
            return Ok(());
        }
        if let Some(why) = disagreement(&account, known.tokens_used) {
            return self.suspect(job, view, why).await;
        }
        self.watch.agrees(job);
        if known.status != crate::chain::JobStatus::Active {
            return self.close_when_final(&account, view).await;
        }
        self.watch.runs(job);
        self.claim_or_complete(&account, &known, view).await
    }

    fn rejected_count(&self, job: JobId) -> usize {
        let is_rejected = |tx: &&crate::billing::Tx| matches!(tx.state, TxState::Rejected(_));
        let account = self.books.tracker.account(job);
        account.map_or(0, |account| account.txs().iter().filter(is_rejected).count())
    }

    fn confirmations(&self) -> u64 {
        self.rules.confirmations.max(1)
    }

    fn claim_rules(&self, known: &ChainJob) -> ClaimRules {
        ClaimRules {
            claim_min: self.limits.claim_min,
            rate_per_second: known.rate_per_second,
            claim_at: self.rules.claim_at.max(self.limits.claim_min),
            margin: self.rules.claim_margin,
            fee_share_max: self.rules.fee_share_max,
        }
    }

    fn is_closing(&self, job: JobId, now: Millis) -> bool {
        self.books.tracker.phase(job) == Some(Phase::Draining)
            || self.books.tracker.is_quiet(job, now, self.rules.grace)
    }
}

/// What a [`Settlement`] is made of.
pub struct SettlementParts {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// The host's key.
    pub wallet: Arc<dyn Wallet>,
    /// Where counts are kept.
    pub books: BooksParts,
    /// The contract's limits.
    pub limits: Limits,
    /// The operator's wishes.
    pub rules: SettlementRules,
    /// Who is told.
    pub observer: Arc<dyn Observer>,
}

/// One past the highest nonce the ledger ever used: a lagging endpoint cannot make us reuse one.
fn nonce_floor(accounts: impl Iterator<Item = Account>) -> WalletNonce {
    let used = accounts.flat_map(|account| {
        account.txs().iter().filter_map(|tx| tx.nonce.next()).collect::<Vec<_>>()
    });
    used.max().unwrap_or(WalletNonce::ZERO)
}

/// What differs between ledger and chain, while nothing is in between.
fn disagreement(account: &Account, tokens_used: TokenCount) -> Option<String> {
    let mut claims_open = account.txs_open().filter(|tx| tx.claim().is_some());
    if claims_open.any(|tx| tx.state == TxState::Prepared) {
        return None;
    }
    let before = account.terms().map_or(TokenCount::ZERO, |terms| terms.tokens_before);
    let expected = before.saturating_add(account.included());
    (tokens_used != expected)
        .then(|| format!("chain counts {tokens_used} tokens used, ledger {expected}"))
}

fn chain_failed(error: &ChainError, what: &'static str) {
    let kind = match error {
        ChainError::Unreachable(_) => "unreachable",
        ChainError::Unexpected(_) => "unexpected",
    };
    counter!("chain_errors_total", "kind" => kind).increment(1);
    tracing::warn!(%error, "{what}");
}

/// Gauges are f64; counts past 2^53 do not occur.
#[allow(clippy::cast_precision_loss)]
fn precise(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}
