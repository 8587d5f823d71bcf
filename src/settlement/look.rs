//! Looking at the chain: where it stands, what it says happened, and which jobs that concerns.
//!
//! Never relies on events alone: state is the guarantee, events only say where to look. What was
//! not read yet is read from where the last reading ended, also after a restart.

use std::collections::BTreeSet;

use metrics::gauge;

use super::line::Line;
use super::{Settlement, View, chain_failed, precise};
use crate::billing::{Account, Subject, Tx};
use crate::chain::{ChainError, ChainEvent};
use crate::session::Tracker;
use crate::units::{BlockNumber, JobId, WalletNonce};

/// Blocks of logs read in one pass: a long gap is back-filled in pieces, small enough for
/// providers that page at ten blocks.
const LOG_BLOCKS_MAX: u64 = 500;

/// Looks in a row that must show the same jump of the wallet's nonce.
const JUMP_LOOKS: u32 = 3;

impl Settlement {
    pub(super) async fn look(&mut self) -> Result<View, ChainError> {
        let (head, wallet) = tokio::try_join!(self.chain.head(), self.chain.wallet())?;
        if self.watch.leaps(head.number) {
            // What is final or believed is counted from the head: one wrong answer must not.
            let why = format!("the head leaps to block {}: asked again", head.number);
            return Err(ChainError::Unreachable(why));
        }
        let is_nonce_sure = self.is_nonce_sure(wallet.nonce_mined);
        gauge!("chain_head_block").set(precise(head.number.get()));
        self.watch.saw_head(head.number);
        Ok(View { head, wallet, is_nonce_sure, now: self.books.clock.now() })
    }

    /// Whether the chain's nonce is believed. A jump past everything of ours means that the key
    /// signs elsewhere, or that an answer is wrong: to sign behind a wrong one would leave a hole,
    /// so it has to be seen some times in a row.
    fn is_nonce_sure(&mut self, mined: WalletNonce) -> bool {
        let before = self.mined_before.unwrap_or_default();
        if mined > self.line.next(before) && self.watch.jumped(mined) < JUMP_LOOKS {
            return false;
        }
        self.mined_before = Some(mined);
        self.watch.no_jump();
        true
    }

    /// Jobs to look at: those with something to do, and all of them every so often.
    pub(super) fn jobs_due(&mut self, view: &View) -> Vec<JobId> {
        let since = |at| view.now.saturating_sub(at);
        self.is_sweep = self.swept_at.is_none_or(|at| since(at) >= self.rules.sweep_every);
        if self.is_sweep {
            self.swept_at = Some(view.now);
        }
        let tracker = &self.books.tracker;
        let due = tracker.jobs_where(view.now, self.rules.grace, |account, is_quiet| {
            let has_open_tx = account.txs_open().next().is_some();
            if has_open_tx {
                return true;
            }
            if account.halted().is_some() || account.terms().is_none() {
                return false;
            }
            if account.is_closed() {
                return !account.adds_up() || self.may_reopen(account, view);
            }
            self.is_sweep
                || is_quiet
                || self.watch.has_ended(account.job())
                || account.unclaimed() >= self.limits.claim_min
        });
        if self.is_sweep {
            // A sweep leaves out only what is over or halted: nothing is waited for there.
            self.watch.keep(&due);
        }
        due
    }

    /// Compares what the marketplace holds with the deposits of our open sessions: before v5 a
    /// depositor can take an inline deposit back in mid-session, and the settlement then fails
    /// (docs/spec/contract.md section 3).
    pub(super) async fn watch_funds(&mut self) -> Result<(), ChainError> {
        for (token, (sum, jobs)) in self.books.tracker.deposits_at_stake() {
            let is_short = self.chain.funds(token).await? < sum;
            // A session that was paid out a moment ago may still look active: only what lasts
            // from one sweep to the next is believed.
            let is_believed = is_short && !self.watch.short_of.insert(token);
            if !is_short {
                self.watch.short_of.remove(&token);
            }
            for job in jobs {
                if self.books.tracker.set_funded(job, !is_believed) && is_believed {
                    tracing::error!(%job, %token, deposits = %sum, "the marketplace holds less");
                }
            }
        }
        Ok(())
    }

    /// What the chain says happened in the blocks that were not read yet, and up to which.
    pub(super) async fn read_events(&self, view: &View) -> Result<News, ChainError> {
        let head = view.head.number;
        let from = self.events_from.unwrap_or(head).min(head);
        let to = from.saturating_add(BlockNumber::new(LOG_BLOCKS_MAX)).min(head);
        let events = self.chain.events(from, to).await?;
        let job_of = |event: &ChainEvent| match event {
            ChainEvent::Created(job) | ChainEvent::TimedOut(job) => *job,
            ChainEvent::Proven { job, .. } | ChainEvent::Completed { job, .. } => *job,
        };
        Ok(News { from, to, spoken_of: events.iter().map(job_of).collect() })
    }

    /// The jobs that the chain spoke of; what was known of them is not relied on any more.
    pub(super) fn take_events(
        &mut self,
        news: Result<News, ChainError>,
        view: &View,
    ) -> BTreeSet<JobId> {
        let News { from, to, spoken_of } = match news {
            Ok(news) => news,
            Err(error) => {
                chain_failed(&error, "events not read");
                return BTreeSet::new();
            }
        };
        // Blocks that may still be reorganised are read again.
        let head = view.head.number;
        let reach = self.rules.reorg_depth.max(self.rules.confirmations);
        let settled = head.saturating_sub(BlockNumber::new(reach));
        self.events_from = Some(to.min(settled).max(from));
        if to == head {
            self.books.tracker.chain_seen(view.now);
        }
        spoken_of.iter().for_each(|job| self.books.tracker.outdate(*job));
        spoken_of
    }

    /// Those among the jobs that the chain spoke of which run and are not looked at anyway.
    pub(super) fn jobs_spoken_of(&self, spoken_of: &BTreeSet<JobId>, due: &[JobId]) -> Vec<JobId> {
        let runs = |account: Account| {
            account.halted().is_none() && account.terms().is_some() && !account.is_closed()
        };
        let tracker = &self.books.tracker;
        let is_news = |job: &JobId| due.binary_search(job).is_err();
        let is_wanted = |job: &JobId| is_news(job) && tracker.account(*job).is_some_and(runs);
        spoken_of.iter().copied().filter(is_wanted).collect()
    }
}

/// What a reading of the log brought.
pub(super) struct News {
    from: BlockNumber,
    to: BlockNumber,
    spoken_of: BTreeSet<JobId>,
}

/// The nonce line, and the block from which logs may be missing: a little before the newest block
/// that the ledger knows.
pub(super) fn what_the_ledger_knows(
    tracker: &Tracker,
    reorg_depth: u64,
) -> (Line, Option<BlockNumber>) {
    let mut line = Line::default();
    let mut newest = None;
    let mut take = |subject: Subject, tx: &Tx| {
        line.take(tx.nonce, subject);
        newest = newest.max(tx.mined_in);
    };
    tracker.each(|account: &Account| {
        account.txs().iter().for_each(|tx| take(Subject::Job(account.job()), tx));
    });
    // Last: a fill comes after what it replaces.
    tracker.wallet().txs().all().iter().for_each(|tx| take(Subject::Wallet, tx));
    (line, newest.map(|block| block.saturating_sub(BlockNumber::new(reorg_depth))))
}
