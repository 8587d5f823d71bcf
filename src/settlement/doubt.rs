//! Doubt: what to do when ledger and chain disagree, and when a session is over for good.
//!
//! Never repairs a count: a lasting difference stops the job with a message for a human. A lagging
//! endpoint explains some blocks of it; a reorg deeper than the confirmations explains a claim that
//! is in no block any more, and such a claim goes back to where it stood.

use metrics::{counter, gauge};

use super::{Settlement, StepError, View, precise};
use crate::billing::{Account, Fact, Lost, TxState};
use crate::session::Phase;
use crate::units::{BlockNumber, JobId, TokenCount};

/// Looks in a row that must agree on a difference: a node that looks rarely sees many blocks
/// between two, and both may have met the same bad answer.
const LOOKS_MIN: u32 = 4;

/// Blocks behind the head in which final claims are looked for again.
const REACH_BLOCKS: u64 = 256;

impl Settlement {
    /// Ledger and chain disagree about a job: nothing is signed for it meanwhile. Believed for good
    /// only when it has lasted longer than any lag or reorg.
    pub(super) async fn suspect(
        &mut self,
        account: &Account,
        view: &View,
        why: String,
    ) -> Result<(), StepError> {
        let job = account.job();
        if self.watch.is_behind(view.head.number) {
            return Ok(());
        }
        let blocks = self.watch.differs_for(job, view.head.number);
        if self.reopen_lost_claims(account, view).await? {
            self.watch.agrees(job);
            return Ok(());
        }
        if blocks >= self.confirmations() && self.watch.alarm_once(job) {
            tracing::error!(%job, why, "ledger and chain differ: nothing is signed for it");
        }
        if blocks < self.patience() || self.watch.looks(job) < LOOKS_MIN {
            return Ok(());
        }
        self.halt(job, why).await
    }

    /// Blocks after which a difference is no lag and no reorg.
    fn patience(&self) -> u64 {
        self.confirmations().max(self.rules.reorg_depth).saturating_add(2)
    }

    /// Claims that were final and are in no block, or in one where they failed, wait again. Every
    /// one in reach is looked at: of two that a reorg mined again, the older may be the one that
    /// failed.
    pub(super) async fn reopen_lost_claims(
        &mut self,
        account: &Account,
        view: &View,
    ) -> Result<bool, StepError> {
        let mut is_any = false;
        let in_reach =
            |block: BlockNumber| block.confirmations_at(view.head.number) <= REACH_BLOCKS;
        let confirmed = account.claims().filter(|(_, tx)| tx.state == TxState::Confirmed);
        for (_, tx) in confirmed.filter(|(_, tx)| tx.mined_in.is_some_and(in_reach)) {
            if self.is_mined(tx).await? {
                continue;
            }
            self.reorged(account.job().into(), tx).await?;
            is_any = true;
        }
        Ok(is_any)
    }

    /// Stops a job until a human looked.
    pub(super) async fn halt(&self, job: JobId, why: String) -> Result<(), StepError> {
        if self.books.tracker.phase(job) == Some(Phase::Halted) {
            tracing::error!(%job, why, "halted job has one more fault");
            return Ok(());
        }
        tracing::error!(%job, why, "job halted: compare `tally audit` with the chain");
        self.books.append(job, vec![Fact::JobHalted { why }]).await?;
        Ok(())
    }

    /// The session is over on chain: once that lies so deep that no reorg takes it back, so does
    /// the account. A node that was cut off meanwhile would not look at a closed one again.
    pub(super) async fn close_when_final(
        &mut self,
        account: &Account,
        view: &View,
    ) -> Result<(), StepError> {
        let job = account.job();
        let ended_for = self.watch.ended_for(job, view.head.number);
        // Tokens that are on their way to the ledger, and answers that may still deliver some,
        // belong into the sum.
        let is_busy = account.txs_open().next().is_some() || self.books.tracker.is_busy(job);
        if is_busy || ended_for < self.believed_at() {
            return Ok(());
        }
        let closing = account.closings();
        let mut facts = Vec::new();
        match account.lost() {
            Some(_) if account.adds_up() => return Ok(()),
            // A reorg changed what was paid after the account was closed.
            Some(_) => facts.push(Fact::JobReopened { closing: closing.saturating_sub(1) }),
            None => {}
        }
        let lost = Lost::at_end(account.unpaid(), self.limits.claim_min);
        let Lost { unclaimable, forfeited } = lost;
        let block = view.head.number;
        facts.push(Fact::JobClosed { closing, block, unclaimable, forfeited });
        self.books.append(job, facts).await?;
        if closing == 0 {
            // A counter only grows: what a reorg changes later is in the ledger's reports.
            counter!("tokens_unclaimable_total").increment(unclaimable.get());
            counter!("tokens_forfeited_total").increment(forfeited.get());
        }
        gauge!("sessions_active").set(precise(self.books.tracker.count_open()));
        tracing::info!(%job, lost = lost.total().get(), "session closed");
        self.observer.session_closed(job, lost);
        Ok(())
    }

    /// The block that ended a session is gone.
    pub(super) async fn reopen(&mut self, account: &Account) -> Result<(), StepError> {
        let job = account.job();
        let closing = account.closings().saturating_sub(1);
        tracing::warn!(%job, "a closed session runs again: the block that ended it is gone");
        self.books.append(job, vec![Fact::JobReopened { closing }]).await?;
        self.watch.runs(job);
        Ok(())
    }

    /// Whether a closed account's end lies so shallow that a reorg may reach it.
    pub(super) fn may_reopen(&self, account: &Account, view: &View) -> bool {
        let reach = self.patience();
        let closed_in = account.closed_in();
        closed_in.is_some_and(|block| view.head.number.saturating_sub(block).get() <= reach)
    }
}

/// What differs between ledger and chain, while nothing is in between.
pub(super) fn disagreement(account: &Account, tokens_used: TokenCount) -> Option<String> {
    let mut claims_open = account.txs_open().filter(|tx| tx.claim().is_some());
    if claims_open.any(|tx| tx.state == TxState::Prepared) {
        return None;
    }
    let expected = account.tokens_used();
    (tokens_used != expected)
        .then(|| format!("chain counts {tokens_used} tokens used, ledger {expected}"))
}
