//! What a ledger's work earned: a fold of its entries into rows by day, model or job.
//!
//! Never estimates: every recorded token is in exactly one state and has exactly one day, model
//! and job, so *earned = claimed + pending + unclaimable + forfeited* in every row and in the
//! total. Money is what the contract pays for a job's whole count, rounded down once; a part of a
//! job is worth the difference of two such counts, so that parts always add up to the whole.
//! Relies on the price unit and the treasury's share being the contract's own.

mod date;

use std::collections::BTreeMap;

pub use date::date;

use super::{Account, AccountFault, Accounts, Entry, Fact, Subject, Tx, TxState};
use crate::units::{Address, Amount, Hash32, JobId, PriceUnit, TokenCount, TurnNo, WalletNonce};

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// Hundredths of a percent that make a whole.
const BASIS_POINTS: u64 = 10_000;

/// How rows are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupBy {
    /// A row for each day (UTC) on which tokens were recorded or gas was paid.
    Day,
    /// A row for each model.
    Model,
    /// A row for each job.
    Job,
}

/// What a row is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Days since the Unix epoch, UTC.
    Day(u64),
    /// `modelSpec` of docs/spec/proof.md.
    Model(Hash32),
    /// A job.
    Job(JobId),
    /// Gas that belongs to none of the others: the wallet's own business, and by model that of
    /// jobs without tokens.
    Wallet,
    /// All rows of one payment token together.
    Total,
}

/// One quantity, whole and by what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts<T> {
    /// Recorded as delivered; the sum of the others.
    pub earned: T,
    /// In claims that are final.
    pub claimed: T,
    /// Not claimed, or in a claim that is not final; the session goes on.
    pub pending: T,
    /// Too few for a claim when the session ended.
    pub unclaimable: T,
    /// A claim could have carried it and did not.
    pub forfeited: T,
}

/// What is known of the contract's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContractTerms {
    /// Price units that make one payment unit; money is unknown without.
    pub price_unit: Option<PriceUnit>,
    /// The treasury's share, 1/10000; the host's share is unknown without.
    pub fee_basis_points: Option<u64>,
}

/// One row. Money is in the payment token's smallest unit, gas in wei.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What it is about.
    pub group: Group,
    /// The currency; zero is native.
    pub payment_token: Address,
    /// Tokens.
    pub tokens: Parts<u64>,
    /// What they cost the depositor; `None` where the price unit is unknown.
    pub paid: Option<Parts<u128>>,
    /// The host's share of it; `None` where the treasury's is unknown.
    pub host: Option<Parts<u128>>,
    /// What mined transactions of ours cost, reverted and cancelled ones included, wei.
    pub gas: u128,
}

impl Row {
    /// The host's share of what was claimed, less gas; `None` where either is unknown or in
    /// another currency.
    #[must_use]
    pub fn net(&self) -> Option<i128> {
        let host = self.host.filter(|_| self.payment_token == Address::ZERO)?;
        let claimed = i128::try_from(host.claimed).ok()?;
        claimed.checked_sub(i128::try_from(self.gas).ok()?)
    }
}

/// All rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// By group, then payment token.
    pub rows: Vec<Row>,
    /// One row for each payment token.
    pub totals: Vec<Row>,
    /// Jobs whose terms the ledger does not hold: their tokens are counted without a value.
    pub jobs_without_terms: Vec<JobId>,
}

/// Earnings cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EarningsError {
    /// The ledger does not add up.
    #[error("the ledger does not add up: {0}")]
    Fault(#[from] AccountFault),
    /// A product or a sum is past 2^128.
    #[error("{subject}: an amount is past every number")]
    Overflow {
        /// Whose.
        subject: Subject,
    },
}

/// Tokens recorded one after the other on one day by one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    day: u64,
    model: Hash32,
    tokens: u64,
}

/// What a job's account does not remember.
#[derive(Debug, Clone, Default)]
struct Work {
    /// Oldest first; together all recorded tokens.
    stretches: Vec<Stretch>,
    /// Models of turns that run.
    models: BTreeMap<TurnNo, Hash32>,
}

/// The fold.
#[derive(Debug, Clone, Default)]
pub struct Earnings {
    accounts: Accounts,
    work: BTreeMap<JobId, Work>,
    /// The day on which each transaction's fee became known, in the order of preparation.
    fee_days: BTreeMap<Subject, Vec<u64>>,
}

impl Earnings {
    /// Adds one entry.
    ///
    /// # Errors
    /// [`AccountFault`] when it does not fit; nothing is changed then.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), AccountFault> {
        self.accounts.apply(entry)?;
        let day = entry.at.get() / DAY_MS;
        match &entry.fact {
            Fact::TurnStarted(header) => {
                if let Some(work) = self.work_of(entry) {
                    work.models.insert(header.turn, header.model_spec);
                }
            }
            Fact::Delivered { turn, ids, .. } => {
                let tokens = u64::try_from(ids.len()).unwrap_or(u64::MAX);
                if let Some(work) = self.work_of(entry) {
                    work.add(*turn, day, tokens);
                }
            }
            Fact::TurnEnded { turn, .. } => {
                if let Some(work) = self.work_of(entry) {
                    work.models.remove(turn);
                }
            }
            Fact::TxPrepared { .. } => self.fee_days.entry(entry.subject).or_default().push(day),
            Fact::TxIncluded { nonce, .. } | Fact::TxRejected { nonce, .. } => {
                self.fee_seen(entry.subject, *nonce, day);
            }
            Fact::JobOpened { .. }
            | Fact::OwnerProven
            | Fact::TxRepriced { .. }
            | Fact::TxCancelled { .. }
            | Fact::TxReorged { .. }
            | Fact::TxConfirmed { .. }
            | Fact::JobClosed { .. }
            | Fact::JobReopened { .. }
            | Fact::JobHalted { .. } => {}
        }
        Ok(())
    }

    /// All accounts so far.
    #[must_use]
    pub const fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The rows.
    ///
    /// # Errors
    /// [`EarningsError::Overflow`].
    pub fn report(&self, by: GroupBy, terms: ContractTerms) -> Result<Report, EarningsError> {
        let mut sheet = Sheet { by, terms, rows: BTreeMap::new(), totals: BTreeMap::new() };
        let mut jobs_without_terms = Vec::new();
        for (job, account) in &self.accounts.jobs {
            let overflow = EarningsError::Overflow { subject: Subject::Job(*job) };
            let empty = Work::default();
            let work = self.work.get(job).unwrap_or(&empty);
            if account.terms().is_none() && account.recorded() > TokenCount::ZERO {
                jobs_without_terms.push(*job);
            }
            let days = self.fee_days.get(&Subject::Job(*job)).map_or(&[][..], Vec::as_slice);
            sheet.add_tokens(account, work).ok_or_else(|| overflow.clone())?;
            sheet.add_gas(account, work, days).ok_or(overflow)?;
        }
        let overflow = EarningsError::Overflow { subject: Subject::Wallet };
        let days = self.fee_days.get(&Subject::Wallet).map_or(&[][..], Vec::as_slice);
        sheet.add_wallet_gas(self.accounts.wallet.txs().all(), days).ok_or(overflow)?;
        Ok(Report {
            rows: sheet.rows.into_values().collect(),
            totals: sheet.totals.into_values().collect(),
            jobs_without_terms,
        })
    }

    fn work_of(&mut self, entry: &Entry) -> Option<&mut Work> {
        entry.job().map(|job| self.work.entry(job).or_default())
    }

    /// A nonce that was refused is used again: the newest transaction of it is meant.
    fn fee_seen(&mut self, subject: Subject, nonce: WalletNonce, day: u64) {
        let txs: &[Tx] = match subject {
            Subject::Wallet => self.accounts.wallet.txs().all(),
            Subject::Job(job) => self.accounts.jobs.get(&job).map_or(&[], Account::txs),
        };
        let at = txs.iter().rposition(|tx| tx.nonce == nonce);
        let days = self.fee_days.entry(subject).or_default();
        if let Some(slot) = at.and_then(|at| days.get_mut(at)) {
            *slot = day;
        }
    }
}

impl Work {
    fn add(&mut self, turn: TurnNo, day: u64, tokens: u64) {
        let model = self.models.get(&turn).copied().unwrap_or(Hash32::ZERO);
        match self.stretches.last_mut() {
            Some(last) if last.day == day && last.model == model => {
                last.tokens = last.tokens.saturating_add(tokens);
            }
            Some(_) | None => self.stretches.push(Stretch { day, model, tokens }),
        }
    }

    fn total(&self) -> u64 {
        self.stretches.iter().fold(0, |sum, stretch| sum.saturating_add(stretch.tokens))
    }
}

/// Where a job's tokens stand, as the number of tokens up to the end of each state: claims carry
/// the oldest tokens, what a session's end lost is what follows them.
#[derive(Clone, Copy)]
struct Bounds {
    claimed: u64,
    forfeited: u64,
    unclaimable: u64,
    recorded: u64,
}

impl Bounds {
    fn of(account: &Account) -> Self {
        let recorded = account.recorded().get();
        let lost = account.lost().unwrap_or_default();
        let claimed = account.confirmed().get().min(recorded);
        let forfeited = claimed.saturating_add(lost.forfeited.get()).min(recorded);
        let unclaimable = forfeited.saturating_add(lost.unclaimable.get()).min(recorded);
        Self { claimed, forfeited, unclaimable, recorded }
    }

    /// A quantity of the tokens from the `from`th up to the `to`th; `upto` tells it of the first n.
    fn parts<T: Default>(
        self,
        (from, to): (u64, u64),
        upto: impl Fn(u64, u64) -> Option<T>,
    ) -> Option<Parts<T>> {
        let part = |low: u64, high: u64| {
            let (low, high) = (low.max(from), high.min(to));
            if low < high { upto(low, high) } else { Some(T::default()) }
        };
        Some(Parts {
            earned: part(from, to)?,
            claimed: part(0, self.claimed)?,
            forfeited: part(self.claimed, self.forfeited)?,
            unclaimable: part(self.forfeited, self.unclaimable)?,
            pending: part(self.unclaimable, self.recorded)?,
        })
    }
}

/// What the first tokens of a job are worth.
#[derive(Clone, Copy)]
struct Worth<'a> {
    account: &'a Account,
    unit: PriceUnit,
}

impl Worth<'_> {
    /// What the contract takes from the deposit for the tokens from `low` to `high` of this
    /// ledger, which come after those that were claimed before it. `None` on overflow.
    fn paid(self, low: u64, high: u64) -> Option<u128> {
        self.at(high)?.checked_sub(self.at(low)?)
    }

    /// The host's share of it: the treasury's is rounded down.
    fn host(self, (low, high): (u64, u64), basis_points: u64) -> Option<u128> {
        let share = |tokens| -> Option<u128> {
            let paid = self.at(tokens)?;
            let fee = paid.checked_mul(u128::from(basis_points.min(BASIS_POINTS)))?;
            paid.checked_sub(fee / u128::from(BASIS_POINTS))
        };
        share(high)?.checked_sub(share(low)?)
    }

    fn at(self, tokens: u64) -> Option<u128> {
        let Some(terms) = self.account.terms() else { return Some(0) };
        let count = terms.tokens_before.checked_add(TokenCount::new(tokens))?;
        self.unit.cost(count, terms.price).map(Amount::get)
    }
}

/// Rows in the making.
struct Sheet {
    by: GroupBy,
    terms: ContractTerms,
    rows: BTreeMap<(Group, Address), Row>,
    totals: BTreeMap<Address, Row>,
}

impl Sheet {
    /// `None` on overflow, as everywhere here.
    fn add_tokens(&mut self, account: &Account, work: &Work) -> Option<()> {
        let bounds = Bounds::of(account);
        let token = payment_token(account);
        let mut from = 0_u64;
        for stretch in &work.stretches {
            let to = from.checked_add(stretch.tokens)?;
            let group = match self.by {
                GroupBy::Day => Group::Day(stretch.day),
                GroupBy::Model => Group::Model(stretch.model),
                GroupBy::Job => Group::Job(account.job()),
            };
            let tokens = bounds.parts((from, to), |low, high| high.checked_sub(low))?;
            let mut row = self.blank(group, token);
            row.tokens = tokens;
            if let Some(unit) = self.terms.price_unit {
                let worth = Worth { account, unit };
                row.paid = Some(bounds.parts((from, to), |low, high| worth.paid(low, high))?);
                if let Some(fee) = self.terms.fee_basis_points {
                    let host = bounds.parts((from, to), |low, high| worth.host((low, high), fee));
                    row.host = Some(host?);
                }
            }
            self.add(&row)?;
            from = to;
        }
        Some(())
    }

    /// Gas of a job: by model in proportion to its tokens, each share rounded down and the
    /// remainder with the last.
    fn add_gas(&mut self, account: &Account, work: &Work, days: &[u64]) -> Option<()> {
        let token = payment_token(account);
        for (nth, tx) in account.txs().iter().enumerate() {
            let day = days.get(nth).copied().unwrap_or_default();
            let gas = fee_paid(tx);
            match self.by {
                GroupBy::Day => self.add_fee(Group::Day(day), token, gas)?,
                GroupBy::Job => self.add_fee(Group::Job(account.job()), token, gas)?,
                GroupBy::Model => self.share_fee(work, token, gas)?,
            }
        }
        Some(())
    }

    fn share_fee(&mut self, work: &Work, token: Address, gas: u128) -> Option<()> {
        let total = u128::from(work.total());
        if total == 0 {
            return self.add_fee(Group::Wallet, token, gas);
        }
        let mut before = 0_u128;
        let mut tokens = 0_u128;
        for stretch in &work.stretches {
            tokens = tokens.checked_add(u128::from(stretch.tokens))?;
            let until = gas.checked_mul(tokens)?.checked_div(total)?;
            self.add_fee(Group::Model(stretch.model), token, until.checked_sub(before)?)?;
            before = until;
        }
        Some(())
    }

    fn add_wallet_gas(&mut self, txs: &[Tx], days: &[u64]) -> Option<()> {
        for (nth, tx) in txs.iter().enumerate() {
            let day = days.get(nth).copied().unwrap_or_default();
            let group = match self.by {
                GroupBy::Day => Group::Day(day),
                GroupBy::Job | GroupBy::Model => Group::Wallet,
            };
            self.add_fee(group, Address::ZERO, fee_paid(tx))?;
        }
        Some(())
    }

    fn add_fee(&mut self, group: Group, token: Address, gas: u128) -> Option<()> {
        if gas == 0 {
            return Some(());
        }
        let row = Row { gas, ..self.blank(group, token) };
        self.add(&row)
    }

    /// A row of zeros; money that will be known is zero, not unknown.
    fn blank(&self, group: Group, payment_token: Address) -> Row {
        let paid = self.terms.price_unit.map(|_| Parts::default());
        let host = paid.filter(|_| self.terms.fee_basis_points.is_some());
        Row { group, payment_token, tokens: Parts::default(), paid, host, gas: 0 }
    }

    fn add(&mut self, row: &Row) -> Option<()> {
        let (blank, total) =
            (self.blank(row.group, row.payment_token), self.blank(Group::Total, row.payment_token));
        merge(self.rows.entry((row.group, row.payment_token)).or_insert(blank), row)?;
        merge(self.totals.entry(row.payment_token).or_insert(total), row)
    }
}

/// A transaction that is in no block cost nothing.
fn fee_paid(tx: &Tx) -> u128 {
    match tx.state {
        TxState::Prepared => 0,
        TxState::Included { .. } | TxState::Confirmed | TxState::Rejected(_) => tx.fee.get(),
    }
}

fn payment_token(account: &Account) -> Address {
    account.terms().map_or(Address::ZERO, |terms| terms.payment_token)
}

fn merge(into: &mut Row, row: &Row) -> Option<()> {
    into.tokens = sum(into.tokens, row.tokens, u64::checked_add)?;
    into.paid = both(into.paid, row.paid)?;
    into.host = both(into.host, row.host)?;
    into.gas = into.gas.checked_add(row.gas)?;
    Some(())
}

/// The outer `None` is an overflow, the inner one money that is unknown.
#[allow(clippy::option_option)]
fn both(one: Option<Parts<u128>>, other: Option<Parts<u128>>) -> Option<Option<Parts<u128>>> {
    match (one, other) {
        (Some(one), Some(other)) => sum(one, other, u128::checked_add).map(Some),
        (None, _) | (_, None) => Some(None),
    }
}

fn sum<T>(one: Parts<T>, other: Parts<T>, add: impl Fn(T, T) -> Option<T>) -> Option<Parts<T>> {
    Some(Parts {
        earned: add(one.earned, other.earned)?,
        claimed: add(one.claimed, other.claimed)?,
        pending: add(one.pending, other.pending)?,
        unclaimable: add(one.unclaimable, other.unclaimable)?,
        forfeited: add(one.forfeited, other.forfeited)?,
    })
}

#[cfg(test)]
mod tests;
