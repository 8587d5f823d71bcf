//! The ledger as the auditor sees it: its own sums over the entries.
//!
//! Never uses the accounts of `billing`: two programs that make the same mistake prove nothing.
//! Remembers what does not fit instead of refusing it.

use std::collections::BTreeMap;

use crate::billing::{Entry, Fact, Purpose, RejectReason, Subject};
use crate::units::{Address, Amount, BlockNumber, JobId, TxHash, WalletNonce};

/// What a transaction was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A claim of so many tokens.
    Claim(u64),
    /// A completion.
    Complete,
    /// A fill or an errand of the wallet.
    Wallet,
}

/// What the ledger says became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Signed; its way is not over.
    Open,
    /// In a block.
    Included(Mined),
    /// In a block, for good.
    Final(Mined),
    /// It did not do its work.
    Rejected(RejectReason),
}

/// Where the ledger saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mined {
    pub hash: TxHash,
    pub block: BlockNumber,
    pub fee: Amount,
}

/// A transaction.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub subject: Subject,
    pub nonce: WalletNonce,
    pub kind: Kind,
    /// All attempts, oldest first.
    pub attempts: Vec<TxHash>,
    /// From which attempt on they only take the nonce.
    pub empty_from: Option<usize>,
    pub fate: Fate,
}

impl Sent {
    /// Whether this attempt does the work.
    pub fn does_work(&self, hash: TxHash) -> bool {
        let at = self.attempts.iter().position(|attempt| *attempt == hash);
        at.is_some_and(|at| self.empty_from.is_none_or(|from| at < from))
    }
}

/// The terms the ledger holds for a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opened {
    pub depositor: Address,
    pub deposit: Amount,
    pub price: u128,
    pub payment_token: Address,
    pub tokens_before: u64,
}

/// One job.
#[derive(Debug, Clone, Default)]
pub(super) struct JobView {
    pub opened: Option<Opened>,
    /// Tokens delivered, each position of each turn once.
    pub recorded: u64,
    /// Next position of each turn.
    next: BTreeMap<u32, u32>,
    /// What was lost when it closed; `None` while it is open.
    pub lost: Option<u64>,
    pub halted: Option<String>,
}

/// The whole ledger.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub jobs: BTreeMap<JobId, JobView>,
    /// Transactions, in the order of their first signature.
    pub sent: Vec<Sent>,
    /// Transactions of each account, as indices of `sent`.
    by_subject: BTreeMap<Subject, Vec<usize>>,
    /// Newest transaction of each account and nonce, as an index of `sent`.
    newest: BTreeMap<(Subject, WalletNonce), usize>,
    /// What does not add up inside the ledger: whose, and what.
    pub faults: Vec<(Subject, String)>,
}

impl View {
    /// Adds an entry.
    pub fn apply(&mut self, entry: &Entry) {
        match entry.subject {
            Subject::Job(job) => self.apply_to_job(job, &entry.fact),
            Subject::Wallet => {}
        }
        self.apply_to_txs(entry);
    }

    /// Transactions of an account.
    pub fn of(&self, subject: Subject) -> impl Iterator<Item = &Sent> {
        let indices = self.by_subject.get(&subject).map_or(&[][..], Vec::as_slice);
        indices.iter().filter_map(|at| self.sent.get(*at))
    }

    /// Tokens of a job's claims whose fate counts.
    pub fn claims(&self, job: JobId, counts: impl Fn(Fate) -> bool) -> u64 {
        let mut sum = 0_u64;
        for sent in self.of(Subject::Job(job)).filter(|sent| counts(sent.fate)) {
            match sent.kind {
                Kind::Claim(tokens) => sum = sum.saturating_add(tokens),
                Kind::Complete | Kind::Wallet => {}
            }
        }
        sum
    }

    /// The lowest block in which the ledger saw one of its transactions.
    pub fn first_block(&self) -> Option<BlockNumber> {
        let block = |sent: &Sent| match sent.fate {
            Fate::Included(mined) | Fate::Final(mined) => Some(mined.block),
            Fate::Open | Fate::Rejected(_) => None,
        };
        self.sent.iter().filter_map(block).min()
    }

    fn apply_to_job(&mut self, job: JobId, fact: &Fact) {
        let view = self.jobs.entry(job).or_default();
        match fact {
            Fact::JobOpened { depositor, deposit, price, payment_token, tokens_before, .. } => {
                view.opened = Some(Opened {
                    depositor: *depositor,
                    deposit: *deposit,
                    price: price.get(),
                    payment_token: *payment_token,
                    tokens_before: tokens_before.get(),
                });
            }
            Fact::Delivered { turn, position, ids, .. } => {
                let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
                let next = view.next.entry(turn.get()).or_default();
                if *next != *position {
                    let what = format!("turn {turn}: tokens at {position}, not at {next}");
                    self.faults.push((job.into(), what));
                    return;
                }
                *next = next.saturating_add(count);
                view.recorded = view.recorded.saturating_add(u64::from(count));
            }
            Fact::JobClosed { unclaimable, forfeited, .. } => {
                let lost = unclaimable.get().saturating_add(forfeited.get());
                view.lost = Some(lost);
                self.check_loss(job, lost);
            }
            Fact::JobReopened { .. } => view.lost = None,
            Fact::JobHalted { why } => view.halted = Some(why.clone()),
            Fact::OwnerProven
            | Fact::TurnStarted(_)
            | Fact::TurnEnded { .. }
            | Fact::TxPrepared { .. }
            | Fact::TxRepriced { .. }
            | Fact::TxCancelled { .. }
            | Fact::TxIncluded { .. }
            | Fact::TxReorged { .. }
            | Fact::TxConfirmed { .. }
            | Fact::TxRejected { .. } => {}
        }
    }

    /// What a session's end lost is what was recorded and is in no final claim.
    fn check_loss(&mut self, job: JobId, lost: u64) {
        let paid = self.claims(job, |fate| matches!(fate, Fate::Final(_)));
        let recorded = self.jobs.get(&job).map_or(0, |view| view.recorded);
        let wanted = recorded.saturating_sub(paid);
        if lost != wanted {
            let what = format!("closed with {lost} tokens lost, {wanted} were not paid");
            self.faults.push((job.into(), what));
        }
    }

    fn apply_to_txs(&mut self, entry: &Entry) {
        let subject = entry.subject;
        match &entry.fact {
            Fact::TxPrepared { nonce, purpose, attempt } => {
                self.prepare(subject, *nonce, purpose);
                self.attempt(subject, *nonce, attempt.hash);
            }
            Fact::TxRepriced { nonce, attempt } => self.attempt(subject, *nonce, attempt.hash),
            Fact::TxCancelled { nonce, attempt } => {
                if let Some(sent) = self.newest(subject, *nonce) {
                    let at = sent.attempts.len();
                    sent.empty_from.get_or_insert(at);
                }
                self.attempt(subject, *nonce, attempt.hash);
            }
            Fact::TxIncluded { nonce, hash, block, fee, .. } => {
                let mined = Mined { hash: *hash, block: *block, fee: *fee };
                self.fate(subject, *nonce, |_| Some(Fate::Included(mined)));
            }
            Fact::TxReorged { nonce, .. } => {
                self.fate(subject, *nonce, |fate| match fate {
                    Fate::Included(_) | Fate::Final(_) => Some(Fate::Open),
                    Fate::Open | Fate::Rejected(_) => None,
                });
            }
            Fact::TxConfirmed { nonce, .. } => {
                self.fate(subject, *nonce, |fate| match fate {
                    Fate::Included(mined) => Some(Fate::Final(mined)),
                    Fate::Open | Fate::Final(_) | Fate::Rejected(_) => None,
                });
            }
            Fact::TxRejected { nonce, reason, .. } => {
                self.fate(subject, *nonce, |_| Some(Fate::Rejected(*reason)));
            }
            Fact::JobOpened { .. }
            | Fact::OwnerProven
            | Fact::TurnStarted(_)
            | Fact::Delivered { .. }
            | Fact::TurnEnded { .. }
            | Fact::JobClosed { .. }
            | Fact::JobReopened { .. }
            | Fact::JobHalted { .. } => {}
        }
    }

    fn prepare(&mut self, subject: Subject, nonce: WalletNonce, purpose: &Purpose) {
        let kind = match purpose {
            Purpose::Claim(claim) => Kind::Claim(claim.tokens.get()),
            Purpose::Complete => Kind::Complete,
            Purpose::Fill | Purpose::Errand(_) => Kind::Wallet,
        };
        if let (Purpose::Claim(claim), Subject::Job(job)) = (purpose, subject) {
            let live = self.claims(job, |fate| !matches!(fate, Fate::Rejected(_)));
            let sum = live.saturating_add(claim.tokens.get());
            let recorded = self.jobs.get(&job).map_or(0, |view| view.recorded);
            let cumulative = claim.tokens_cumulative;
            if sum > recorded {
                let what = format!("claims of {sum} tokens, {recorded} were recorded");
                self.faults.push((subject, what));
            }
            if cumulative.get() != sum {
                let what = format!("nonce {nonce}: signed for {cumulative} in all, not {sum}");
                self.faults.push((subject, what));
            }
        }
        let at = self.sent.len();
        let (attempts, empty_from, fate) = (Vec::new(), None, Fate::Open);
        self.sent.push(Sent { subject, nonce, kind, attempts, empty_from, fate });
        self.newest.insert((subject, nonce), at);
        self.by_subject.entry(subject).or_default().push(at);
    }

    fn attempt(&mut self, subject: Subject, nonce: WalletNonce, hash: TxHash) {
        match self.newest(subject, nonce) {
            Some(sent) => sent.attempts.push(hash),
            None => self.stray(subject, nonce),
        }
    }

    fn fate(
        &mut self,
        subject: Subject,
        nonce: WalletNonce,
        next: impl FnOnce(Fate) -> Option<Fate>,
    ) {
        let Some(sent) = self.newest(subject, nonce) else { return self.stray(subject, nonce) };
        match next(sent.fate) {
            Some(fate) => sent.fate = fate,
            None => self.stray(subject, nonce),
        }
    }

    fn stray(&mut self, subject: Subject, nonce: WalletNonce) {
        self.faults.push((subject, format!("nonce {nonce}: an entry that fits no transaction")));
    }

    fn newest(&mut self, subject: Subject, nonce: WalletNonce) -> Option<&mut Sent> {
        let at = *self.newest.get(&(subject, nonce))?;
        self.sent.get_mut(at)
    }
}
