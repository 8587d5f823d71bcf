//! Reconciliation: what became of the transactions that were signed.
//!
//! Never takes "sent" for "paid": a claim counts when its receipt succeeded with the amount we
//! claimed, and is final after the confirmations the operator asked for. A transaction that no
//! endpoint knows is sent again as it is; only a nonce that is provably used up by others frees
//! its tokens.

use metrics::counter;

use super::{Settlement, StepError, View, precise};
use crate::billing::{Fact, Lost, RejectReason, Tx, TxState};
use crate::chain::{Broadcast, Inclusion, SignedTx};
use crate::session::Phase;
use crate::units::{Amount, BlockHash, BlockNumber, JobId, TokenCount, TxHash};

/// Where a mined attempt was found.
struct Mined {
    hash: TxHash,
    block: BlockNumber,
    block_hash: BlockHash,
    success: bool,
    proven: Option<TokenCount>,
    fee: Amount,
}

/// What the chain says about all attempts of a transaction together.
enum Sight {
    Mined(Mined),
    Pending,
    Absent,
}

impl Settlement {
    /// Moves every open transaction of a job as far as the chain allows.
    pub(super) async fn reconcile(&mut self, job: JobId, view: &View) -> Result<(), StepError> {
        let Some(account) = self.books.tracker.account(job) else { return Ok(()) };
        for tx in account.txs_open() {
            let sight = self.sight(tx).await?;
            match (&tx.state, sight) {
                (TxState::Included { block_hash, .. }, Sight::Mined(mined))
                    if mined.block_hash == *block_hash =>
                {
                    self.confirm(job, tx, &mined, view).await?;
                }
                (TxState::Included { .. }, _) => self.reorged(job, tx).await?,
                (_, Sight::Mined(mined)) => self.mined(job, tx, &mined, view).await?,
                (_, Sight::Pending) => self.waiting(job, tx, view).await?,
                (_, Sight::Absent) => self.absent(job, tx, view).await?,
            }
        }
        Ok(())
    }

    async fn sight(&self, tx: &Tx) -> Result<Sight, StepError> {
        let mut is_pending = false;
        for attempt in tx.attempts.iter().rev() {
            match self.chain.inclusion(attempt.hash).await? {
                Inclusion::Absent => {}
                Inclusion::Pending => is_pending = true,
                Inclusion::Included { block, block_hash, success, proven, fee } => {
                    let hash = attempt.hash;
                    return Ok(Sight::Mined(Mined {
                        hash,
                        block,
                        block_hash,
                        success,
                        proven,
                        fee,
                    }));
                }
            }
        }
        Ok(if is_pending { Sight::Pending } else { Sight::Absent })
    }

    /// First sight in a block.
    async fn mined(
        &mut self,
        job: JobId,
        tx: &Tx,
        mined: &Mined,
        view: &View,
    ) -> Result<(), StepError> {
        self.watch.moved(tx.nonce);
        if !mined.success {
            return self.reverted(job, tx, mined, view).await;
        }
        let included = Fact::TxIncluded {
            nonce: tx.nonce,
            hash: mined.hash,
            sighting: tx.sightings,
            block: mined.block,
            block_hash: mined.block_hash,
            fee: mined.fee,
        };
        self.books.append(job, vec![included]).await?;
        counter!("claim_gas_fee_wei_total").increment(u64::try_from(mined.fee.get()).unwrap_or(0));
        let Some(claim) = tx.claim() else { return Ok(()) };
        if mined.proven != Some(claim.tokens) {
            let counted = mined.proven.map_or_else(|| "none".to_owned(), |count| count.to_string());
            let wanted = claim.tokens;
            let why = format!("{}: claimed {wanted} tokens, event says {counted}", mined.hash);
            return self.halt(job, why).await;
        }
        tracing::info!(%job, tokens = claim.tokens.get(), tx = %mined.hash, "claim included");
        counter!("claims_total", "outcome" => "included").increment(1);
        self.observer.claim_included(job, claim.tokens, mined.hash);
        Ok(())
    }

    /// A revert is final only when its block is: until then the tokens stay bound.
    async fn reverted(
        &mut self,
        job: JobId,
        tx: &Tx,
        mined: &Mined,
        view: &View,
    ) -> Result<(), StepError> {
        if mined.block.confirmations_at(view.head.number) < self.confirmations() {
            return Ok(());
        }
        tracing::warn!(%job, nonce = %tx.nonce, tx = %mined.hash, "transaction reverted");
        self.reject(job, tx, (RejectReason::Reverted, mined.fee)).await
    }

    async fn reject(
        &mut self,
        job: JobId,
        tx: &Tx,
        (reason, fee): (RejectReason, Amount),
    ) -> Result<(), StepError> {
        let rejected = Fact::TxRejected { nonce: tx.nonce, first: tx.first(), reason, fee };
        self.books.append(job, vec![rejected]).await?;
        if tx.claim().is_some() {
            counter!("claims_total", "outcome" => "rejected").increment(1);
        } else {
            self.books.tracker.abort_settling(job);
        }
        Ok(())
    }

    async fn confirm(
        &mut self,
        job: JobId,
        tx: &Tx,
        mined: &Mined,
        view: &View,
    ) -> Result<(), StepError> {
        if mined.block.confirmations_at(view.head.number) < self.confirmations() {
            return Ok(());
        }
        let sighting = tx.sightings.saturating_sub(1);
        self.books.append(job, vec![Fact::TxConfirmed { nonce: tx.nonce, sighting }]).await?;
        if let Some(claim) = tx.claim() {
            counter!("claims_total", "outcome" => "confirmed").increment(1);
            counter!("tokens_confirmed_total").increment(claim.tokens.get());
        }
        Ok(())
    }

    /// Its block is gone, or the endpoint has fallen behind: either way the same bytes may be
    /// sent again.
    async fn reorged(&mut self, job: JobId, tx: &Tx) -> Result<(), StepError> {
        tracing::warn!(%job, nonce = %tx.nonce, "transaction is out of its block");
        let sighting = tx.sightings.saturating_sub(1);
        self.books.append(job, vec![Fact::TxReorged { nonce: tx.nonce, sighting }]).await?;
        Ok(())
    }

    async fn waiting(&mut self, job: JobId, tx: &Tx, view: &View) -> Result<(), StepError> {
        self.watch.is_ours(tx.nonce);
        self.press(job, tx, view).await
    }

    async fn absent(&mut self, job: JobId, tx: &Tx, view: &View) -> Result<(), StepError> {
        if view.wallet.nonce_mined > tx.nonce {
            let blocks = self.watch.foreign_for(tx.nonce, view.head.number);
            if blocks >= self.confirmations() {
                tracing::error!(%job, nonce = %tx.nonce, "nonce was used by a foreign transaction");
                return self.reject(job, tx, (RejectReason::NonceTaken, Amount::ZERO)).await;
            }
            return Ok(());
        }
        self.watch.is_ours(tx.nonce);
        // Newest first; where it is refused for good, say for want of funds, an earlier and
        // cheaper attempt may still be taken.
        for attempt in tx.attempts.iter().rev() {
            let signed = SignedTx { hash: attempt.hash, raw: attempt.raw.clone() };
            match self.send(job, tx.nonce, &signed).await {
                Broadcast::Rejected(_) => {}
                Broadcast::Underpriced => return self.reprice(job, tx).await,
                Broadcast::Accepted
                | Broadcast::AlreadyKnown
                | Broadcast::NonceUsed
                | Broadcast::Unknown(_) => break,
            }
        }
        // An endpoint that never shows what is pending must not keep us from raising the fee.
        self.press(job, tx, view).await
    }

    /// Raises the fee of a transaction that has waited long enough, if it is the one the chain
    /// waits for: behind a lower nonce of ours no fee helps.
    async fn press(&mut self, job: JobId, tx: &Tx, view: &View) -> Result<(), StepError> {
        let has_waited = self.watch.waits_for(tx.nonce, view.now) >= self.rules.reprice_after;
        if has_waited && tx.nonce == view.wallet.nonce_mined {
            self.reprice(job, tx).await?;
        }
        Ok(())
    }

    /// Ledger and chain disagree: a lagging endpoint explains some blocks of it, not more.
    pub(super) async fn suspect(
        &mut self,
        job: JobId,
        view: &View,
        why: String,
    ) -> Result<(), StepError> {
        let patience = self.confirmations().saturating_add(2);
        if self.watch.differs_for(job, view.head.number) < patience {
            return Ok(());
        }
        self.halt(job, why).await
    }

    /// Stops a job until a human looked.
    pub(super) async fn halt(&self, job: JobId, why: String) -> Result<(), StepError> {
        if self.books.tracker.phase(job) == Some(Phase::Halted) {
            tracing::error!(%job, why, "halted job has one more fault");
            return Ok(());
        }
        tracing::error!(%job, why, "job halted: compare `tally status` with the chain");
        self.books.append(job, vec![Fact::JobHalted { why }]).await?;
        Ok(())
    }

    /// The session is over on chain: once that is final, so is the account.
    pub(super) async fn close_when_final(
        &mut self,
        account: &crate::billing::Account,
        view: &View,
    ) -> Result<(), StepError> {
        let job = account.job();
        let ended_for = self.watch.ended_for(job, view.head.number);
        if account.txs_open().next().is_some() || ended_for < self.confirmations() {
            return Ok(());
        }
        let left = account.recorded().saturating_sub(account.confirmed());
        let lost = Lost::at_end(left, self.limits.claim_min);
        let Lost { unclaimable, forfeited } = lost;
        let closing = account.closings();
        let closed = Fact::JobClosed { closing, unclaimable, forfeited };
        self.books.append(job, vec![closed]).await?;
        counter!("tokens_unclaimable_total").increment(unclaimable.get());
        counter!("tokens_forfeited_total").increment(forfeited.get());
        metrics::gauge!("sessions_active").set(precise(self.books.tracker.count_open()));
        tracing::info!(%job, lost = lost.total().get(), "session closed");
        self.observer.session_closed(job, lost);
        Ok(())
    }
}
