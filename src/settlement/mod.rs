//! Settlement: turns recorded tokens into claims, and claims into confirmed ones.
//!
//! Never touches a request and never trusts memory over ledger and chain: every decision is taken
//! anew from the account (a fold of the ledger) and from the chain's state, so a restart at any
//! point goes on where the ledger stands. Relies on being the only submitter of its wallet (the
//! node holds a lock) and on `tick` being called again and again.

mod claims;
mod doubt;
mod errands;
mod lifecycle;
mod line;
mod look;
mod reconcile;
mod submit;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt};
use metrics::{counter, gauge};

use crate::billing::{Account, Lost, Subject, Tx, TxState};
use crate::chain::{
    Chain, ChainError, ChainJob, Fees, Head, JobStatus, Limits, SignedTx, Wallet, WalletState,
};
use crate::ledger::LedgerError;
use crate::session::{Books, BooksParts, Grace, Phase, Snapshot};
use crate::units::{
    Address, Amount, BlockNumber, ChainSeconds, JobId, Millis, TokenCount, TxHash, WalletNonce,
};
use doubt::disagreement;
use errands::Desk;
pub use errands::{Order, OrderOutcome};
use lifecycle::Due;
use line::Line;
use reconcile::{Seen, Standing};
use watch::Watch;

/// Calls of the chain that wait at once, for different jobs or transactions.
const CALLS_AT_ONCE: usize = 16;

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
    /// Confirmations after which a transaction counts as final, at least 1.
    pub confirmations: u64,
    /// How deep a reorg may reach: only below that is what a block rejects free again, and what it
    /// ends over; and a session is completed only when its claims lie deeper.
    pub reorg_depth: u64,
    /// How long a session may be quiet before it is completed.
    pub grace: Grace,
    /// Pending time after which a transaction is signed again with higher fees.
    pub reprice_after: Millis,
    /// Every job is looked at this often, whatever events say.
    pub sweep_every: Millis,
    /// Whether a session is completed also where that costs more than it pays out.
    pub complete_at_a_loss: bool,
    /// What one unit of a payment token is worth, wei; without it fees and value are not compared.
    pub wei_per_unit: BTreeMap<Address, f64>,
    /// Where withdrawals move on to.
    pub cold_address: Option<Address>,
    /// Earnings by currency from which they are withdrawn without being told.
    pub withdraw_above: BTreeMap<Address, Amount>,
}

/// What settlement tells the rest of the node. Must not block.
pub trait Observer: Send + Sync {
    /// A claim is in a block.
    fn claim_included(&self, job: JobId, tokens: TokenCount, tx: TxHash);
    /// Whether the chain answered when it was last looked at.
    fn chain_answers(&self, answers: bool);
    /// A session is over on chain.
    fn session_closed(&self, job: JobId, lost: Lost);

    /// Whether the wallet's gas pays a claim and a completion.
    fn gas_suffices(&self, suffices: bool);
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

/// What one pass read of the chain before looking at jobs.
#[derive(Debug, Clone, Copy)]
struct View {
    head: Head,
    wallet: WalletState,
    /// Whether the wallet's nonce is believed: nothing is signed where it is not.
    is_nonce_sure: bool,
    now: Millis,
}

/// What a pass read of a job.
struct Reading {
    known: Result<Option<ChainJob>, ChainError>,
    txs: Vec<Seen>,
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
    line: Line,
    desk: Desk,
    /// Earnings as last read, for the thresholds of withdrawals.
    earned: BTreeMap<Address, Amount>,
    /// Fees as read at a block.
    market: Option<(BlockNumber, Fees)>,
    events_from: Option<BlockNumber>,
    /// The chain's nonce as last believed.
    mined_before: Option<WalletNonce>,
    /// Transactions of ours that waited for a block when this pass began, or were signed in it.
    waiting: usize,
    /// Durable and not yet sent for the first time.
    signed: Vec<(Subject, WalletNonce, SignedTx)>,
    swept_at: Option<Millis>,
    is_sweep: bool,
}

impl Settlement {
    /// A service over books whose tracker already holds the ledger's accounts.
    #[must_use]
    pub fn new(parts: SettlementParts) -> Self {
        let SettlementParts { chain, wallet, books, limits, rules, observer } = parts;
        let BooksParts { ledger, tracker, clock } = books;
        let books = Books { ledger, tracker, clock };
        books.tracker.wake_at(rules.claim_at.max(limits.claim_min));
        let (line, events_from) = look::what_the_ledger_knows(&books.tracker, rules.reorg_depth);
        Self {
            chain,
            wallet,
            books,
            limits,
            rules,
            observer,
            watch: Watch::default(),
            line,
            desk: Desk::default(),
            earned: BTreeMap::new(),
            market: None,
            events_from,
            mined_before: None,
            waiting: 0,
            signed: Vec::new(),
            swept_at: None,
            is_sweep: false,
        }
    }

    /// One pass: reads the chain, moves every job that is due by at most one step of each kind.
    ///
    /// A silent chain ends the pass early and is not an error: nothing is lost by waiting. May be
    /// dropped at any await, for good: the ledger knows what was signed, and the next service made
    /// from it goes on. One that was dropped in a pass must not begin another, since it may not
    /// have heard of its own last entry.
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
        let due = self.jobs_due(&view);
        let mended = self.mend_line(&view).await;
        self.settled("the wallet's nonces", mended)?;
        let readings = self.read(due, &view).await;
        let mut active = Vec::new();
        for (job, reading) in readings {
            let stepped = self.step(job, reading, &view).await;
            active.extend(self.settled(job, stepped)?.flatten());
        }
        active.sort_by_key(Due::order);
        self.waiting = self.count_waiting(&view);
        if view.is_nonce_sure {
            // Sent at once, also where the ledger broke meanwhile: what it holds may go out.
            let claimed = self.claim_all(&active, &view).await;
            self.send_signed().await;
            claimed?;
            let completed = self.complete_all(&active, &view).await;
            self.send_signed().await;
            completed?;
        }
        let stepped = self.step_wallet(&view).await;
        self.settled("the wallet", stepped)?;
        self.send_signed().await;
        gauge!("sessions_active").set(precise(self.books.tracker.count_open()));
        Ok(())
    }

    /// What became of a step. A silent chain, a full queue or a reading that failed cut it short:
    /// what it had not written, the next pass finds again. Only a broken store stops the node.
    fn settled<T>(
        &self,
        what: impl std::fmt::Display,
        step: Result<T, StepError>,
    ) -> Result<Option<T>, SettlementError> {
        match step {
            Ok(done) => Ok(Some(done)),
            Err(StepError::Chain(error)) => {
                tracing::debug!(%what, "step cut short");
                chain_failed(&error, "not settled this time");
                Ok(None)
            }
            Err(StepError::Ledger(error)) if self.books.ledger.is_healthy() => {
                tracing::error!(%what, %error, "not settled this time");
                Ok(None)
            }
            Err(StepError::Ledger(error)) => Err(error.into()),
        }
    }

    /// Reads the jobs that are due and those the chain spoke of. What does not wait for each other
    /// is asked at once: a claim is as late as the calls in front of it are.
    async fn read(&mut self, due: Vec<JobId>, view: &View) -> Vec<(JobId, Reading)> {
        let (events, fees, mut readings) = futures_util::join!(
            self.read_events(view),
            self.read_fees(&due, view),
            self.read_jobs(due.clone()),
        );
        self.market = fees.map(|fees| (view.head.number, fees)).or(self.market);
        let spoken_of = self.take_events(events, view);
        let more = self.jobs_spoken_of(&spoken_of, &due);
        readings.extend(self.read_jobs(more).await);
        readings
    }

    async fn read_jobs(&self, jobs: Vec<JobId>) -> Vec<(JobId, Reading)> {
        let reads = jobs.into_iter().map(async |job| {
            let known = self.chain.job(job).await;
            // After the session: what is mined in between is no difference between the two.
            let txs = self.see(job.into()).await;
            (job, Reading { known, txs })
        });
        stream::iter(reads).buffered(CALLS_AT_ONCE).collect().await
    }

    /// One job: reconcile what is out, then close it, or say what is due. `None` where nothing is.
    async fn step(
        &mut self,
        job: JobId,
        Reading { known, txs }: Reading,
        view: &View,
    ) -> Result<Option<Due>, StepError> {
        let Some(account) = self.books.tracker.account(job) else { return Ok(None) };
        if self.books.tracker.phase(job) == Some(Phase::Halted) {
            // Nothing new is signed for it, but a nonce of its that is never mined would hold up
            // every later claim of the wallet.
            let standing = Standing { is_over: false };
            self.reconcile(job.into(), txs, standing, view).await?;
            return Ok(None);
        }
        let Some(known) = known? else {
            let why = "the chain no longer knows this job".to_owned();
            self.suspect(&account, view, why).await?;
            return Ok(None);
        };
        self.observe(&known, view);
        if disagreement(&account, known.tokens_used).is_none() {
            // Before anything can cut this step short: suspicion needs looks in a row.
            self.watch.agrees(job);
        }
        let is_active = known.status == JobStatus::Active;
        if account.is_closed() && is_active {
            self.reopen(&account).await?;
        }
        let standing = Standing { is_over: !is_active };
        self.reconcile(job.into(), txs, standing, view).await?;
        let before = account;
        let Some(account) = self.books.tracker.account(job) else { return Ok(None) };
        if account.included() != before.included() || account.claimed() != before.claimed() {
            // `known` was read before what changed: decided on at the next pass.
            return Ok(None);
        }
        if let Some(why) = disagreement(&account, known.tokens_used) {
            self.suspect(&account, view, why).await?;
            return Ok(None);
        }
        if !is_active {
            self.close_when_final(&account, view).await?;
            return Ok(None);
        }
        self.watch.runs(job);
        let plan = self.plan(&account, &known, view).await?;
        Ok(Some(Due { account, known, plan }))
    }

    fn observe(&self, known: &ChainJob, view: &View) {
        self.books.tracker.observe(Snapshot { job: known.clone(), read_at: view.now });
    }

    /// The wallet's own transactions, then what it was asked to do.
    async fn step_wallet(&mut self, view: &View) -> Result<(), StepError> {
        let standing = Standing { is_over: false };
        let txs = self.see(Subject::Wallet).await;
        self.reconcile(Subject::Wallet, txs, standing, view).await?;
        if self.is_sweep {
            self.read_earnings().await?;
            self.watch_funds().await?;
            self.market(view).await?;
        }
        if let Some((_, fees)) = self.market {
            self.observer.gas_suffices(view.wallet.balance >= lifecycle::gas_reserve(fees));
        }
        if view.is_nonce_sure { self.run_errands(view).await } else { Ok(()) }
    }

    /// Transactions of ours that wait for a block: what lies in one without having done its work
    /// waits for something else.
    fn count_waiting(&self, view: &View) -> usize {
        let mined = view.wallet.nonce_mined;
        let is_waiting = |tx: &Tx| tx.state == TxState::Prepared && tx.nonce >= mined;
        let of = |account: &Account| account.txs_open().filter(|tx| is_waiting(tx)).count();
        let wallet = self.books.tracker.wallet();
        let own = wallet.txs().open().filter(|tx| is_waiting(tx)).count();
        self.books.tracker.sum(of).saturating_add(own)
    }

    fn confirmations(&self) -> u64 {
        self.rules.confirmations.max(1)
    }

    fn is_closing(&self, job: JobId, now: Millis) -> bool {
        self.books.tracker.phase(job) == Some(Phase::Draining)
            || self.books.tracker.is_quiet(job, now, self.rules.grace)
    }

    /// Fees for the claims that `due` may come to; `None` where none of them does, where they are
    /// known, and where the chain does not answer.
    async fn read_fees(&self, due: &[JobId], view: &View) -> Option<Fees> {
        let tracker = &self.books.tracker;
        let may_claim = |job: &JobId| {
            tracker.unclaimed(*job).is_some_and(|unclaimed| unclaimed >= self.limits.claim_min)
        };
        if self.market_known(view).is_some() || !due.iter().any(may_claim) {
            return None;
        }
        self.chain.fees().await.ok()
    }

    fn market_known(&self, view: &View) -> Option<Fees> {
        self.market.filter(|(at, _)| *at == view.head.number).map(|(_, fees)| fees)
    }

    /// Fees of the market, read once a block.
    async fn market(&mut self, view: &View) -> Result<Fees, ChainError> {
        if let Some(fees) = self.market_known(view) {
            return Ok(fees);
        }
        let fees = self.chain.fees().await?;
        self.market = Some((view.head.number, fees));
        Ok(fees)
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
