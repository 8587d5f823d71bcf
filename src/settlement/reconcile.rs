//! Reconciliation: what became of the transactions that were signed.
//!
//! Never takes "sent" for "paid": a claim counts when its receipt succeeded with the amount we
//! claimed, and is final after the confirmations the operator asked for. A transaction that no
//! endpoint knows is sent again as it is; only a nonce that is provably used up by others, or by a
//! revert, frees its tokens, and that only so deep that no reorg takes it back.

use metrics::counter;

use super::{Settlement, StepError, View};
use crate::billing::{Fact, Purpose, RejectReason, Subject, Tx, TxState};
use crate::chain::{Broadcast, ChainError, Inclusion, SignedTx};
use crate::units::{Amount, BlockHash, BlockNumber, TokenCount, TxHash};

/// Where a mined attempt was found.
pub(super) struct Mined {
    hash: TxHash,
    block: BlockNumber,
    block_hash: BlockHash,
    success: bool,
    proven: Option<TokenCount>,
    fee: Amount,
}

/// What the chain says about all attempts of a transaction together.
pub(super) enum Sight {
    Mined(Mined),
    Pending,
    Absent,
}

/// A transaction, and what was seen of it.
pub(super) type Seen = (Tx, Result<Sight, ChainError>);

/// How a subject's transactions are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Nothing can come of a claim or a completion any more: the session is over on chain.
    pub is_over: bool,
}

impl Settlement {
    /// Moves every open transaction of a subject as far as what was seen of it allows.
    pub(super) async fn reconcile(
        &mut self,
        subject: Subject,
        seen: Vec<Seen>,
        standing: Standing,
        view: &View,
    ) -> Result<(), StepError> {
        for (tx, sight) in seen {
            match (&tx.state, sight?) {
                (TxState::Included { block_hash, .. }, Sight::Mined(mined))
                    if mined.block_hash == *block_hash =>
                {
                    self.confirm(subject, &tx, &mined, view).await?;
                }
                (TxState::Included { .. }, _) => self.reorged(subject, &tx).await?,
                (_, Sight::Mined(mined)) => {
                    self.mined(subject, &tx, mined, view).await?;
                }
                (_, Sight::Pending) => {
                    self.watch.is_ours(tx.nonce);
                    self.hurry(subject, &tx, standing, view).await?;
                }
                (_, Sight::Absent) => self.absent(subject, &tx, standing, view).await?,
            }
        }
        Ok(())
    }

    /// Looks for every open transaction of a subject.
    pub(super) async fn see(&self, subject: Subject) -> Vec<Seen> {
        let mut seen = Vec::new();
        for tx in self.open_txs(subject) {
            let sight = self.sight(&tx).await;
            seen.push((tx, sight));
        }
        seen
    }

    fn open_txs(&self, subject: Subject) -> Vec<Tx> {
        match subject {
            Subject::Wallet => self.books.tracker.wallet().txs().open().cloned().collect(),
            Subject::Job(job) => {
                let account = self.books.tracker.account(job);
                account.map(|account| account.txs_open().cloned().collect()).unwrap_or_default()
            }
        }
    }

    async fn sight(&self, tx: &Tx) -> Result<Sight, ChainError> {
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

    /// Whether a transaction that counts as done is in a block and did its work there.
    pub(super) async fn is_mined(&self, tx: &Tx) -> Result<bool, StepError> {
        match self.sight(tx).await? {
            Sight::Mined(mined) => Ok(mined.success && Some(mined.hash) == tx.mined),
            Sight::Pending | Sight::Absent => Ok(false),
        }
    }

    /// First sight in a block.
    async fn mined(
        &mut self,
        subject: Subject,
        tx: &Tx,
        mined: Mined,
        view: &View,
    ) -> Result<(), StepError> {
        self.watch.moved(tx.nonce);
        if !tx.does_work(mined.hash) || !mined.success {
            return self.fruitless(subject, tx, mined, view).await;
        }
        let included = Fact::TxIncluded {
            nonce: tx.nonce,
            hash: mined.hash,
            sighting: tx.sightings,
            block: mined.block,
            block_hash: mined.block_hash,
            fee: mined.fee,
        };
        self.books.append(subject, vec![included]).await?;
        counter!("claim_gas_fee_wei_total").increment(u64::try_from(mined.fee.get()).unwrap_or(0));
        let (Some(claim), Subject::Job(job)) = (tx.claim(), subject) else { return Ok(()) };
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

    /// In a block without having done its work: a revert, or the empty transfer that was to take
    /// its nonce. Believed only where no reorg reaches: a block that is gone would let it count
    /// after all, beside the claim that took its tokens over.
    async fn fruitless(
        &mut self,
        subject: Subject,
        tx: &Tx,
        mined: Mined,
        view: &View,
    ) -> Result<(), StepError> {
        let depth = mined.block.confirmations_at(view.head.number);
        if depth < self.believed_at() {
            return Ok(());
        }
        let reason = if tx.does_work(mined.hash) {
            tracing::warn!(%subject, nonce = %tx.nonce, tx = %mined.hash, "transaction reverted");
            RejectReason::Reverted
        } else {
            RejectReason::Cancelled
        };
        self.reject(subject, tx, (reason, mined.fee)).await
    }

    /// How deep a block must lie so that what it rejects is free again, and what it ends is over.
    pub(super) fn believed_at(&self) -> u64 {
        self.confirmations().max(self.rules.reorg_depth)
    }

    async fn reject(
        &mut self,
        subject: Subject,
        tx: &Tx,
        (reason, fee): (RejectReason, Amount),
    ) -> Result<(), StepError> {
        let rejected = Fact::TxRejected { nonce: tx.nonce, first: tx.first(), reason, fee };
        self.books.append(subject, vec![rejected]).await?;
        self.watch.moved(tx.nonce);
        self.errand_over(tx.nonce, Err(reason));
        match subject {
            Subject::Job(_) if tx.claim().is_some() => {
                counter!("claims_total", "outcome" => "rejected").increment(1);
            }
            Subject::Job(job) => self.books.tracker.abort_settling(job),
            Subject::Wallet => {}
        }
        Ok(())
    }

    async fn confirm(
        &mut self,
        subject: Subject,
        tx: &Tx,
        mined: &Mined,
        view: &View,
    ) -> Result<(), StepError> {
        if mined.block.confirmations_at(view.head.number) < self.confirmations() {
            return Ok(());
        }
        let sighting = tx.sightings.saturating_sub(1);
        self.books.append(subject, vec![Fact::TxConfirmed { nonce: tx.nonce, sighting }]).await?;
        self.errand_over(tx.nonce, Ok((mined.hash, mined.fee)));
        if let Some(claim) = tx.claim() {
            counter!("claims_total", "outcome" => "confirmed").increment(1);
            counter!("tokens_confirmed_total").increment(claim.tokens.get());
        }
        Ok(())
    }

    /// Its block is gone, or the endpoint has fallen behind: either way the same bytes may be
    /// sent again.
    pub(super) async fn reorged(&mut self, subject: Subject, tx: &Tx) -> Result<(), StepError> {
        let nonce = tx.nonce;
        match tx.state {
            TxState::Confirmed => {
                tracing::error!(%subject, %nonce, "a final transaction has left its block");
            }
            TxState::Prepared | TxState::Included { .. } | TxState::Rejected(_) => {
                tracing::warn!(%subject, %nonce, "transaction is out of its block");
            }
        }
        let sighting = tx.sightings.saturating_sub(1);
        self.books.append(subject, vec![Fact::TxReorged { nonce: tx.nonce, sighting }]).await?;
        Ok(())
    }

    async fn absent(
        &mut self,
        subject: Subject,
        tx: &Tx,
        standing: Standing,
        view: &View,
    ) -> Result<(), StepError> {
        if view.wallet.nonce_mined > tx.nonce {
            return self.taken(subject, tx, view).await;
        }
        self.watch.is_ours(tx.nonce);
        // Newest first; where it is refused for good, say for want of funds, an earlier and
        // cheaper attempt may still be taken.
        let mut is_refused = true;
        for attempt in tx.attempts.iter().rev() {
            let signed = SignedTx { hash: attempt.hash, raw: attempt.raw.clone() };
            match self.send(subject, tx.nonce, &signed).await {
                Broadcast::Rejected(_) => {}
                Broadcast::Underpriced => return self.reprice(subject, tx, view).await,
                Broadcast::Accepted
                | Broadcast::AlreadyKnown
                | Broadcast::NonceUsed
                | Broadcast::Unknown(_) => {
                    is_refused = false;
                    break;
                }
            }
        }
        if is_refused && matches!(tx.purpose, Purpose::Errand(_)) && tx.cancelled_from.is_none() {
            // Money that is not there must not hold up claims: it is ordered again later.
            return self.cancel(subject, tx, view).await;
        }
        // An endpoint that never shows what is pending must not keep us from raising the fee.
        self.hurry(subject, tx, standing, view).await
    }

    /// Its nonce is used, and no endpoint shows an attempt of ours: a foreign transaction took it,
    /// where that lasts and the chain's count has no room for ours. One answer may come from a
    /// server that lags, and a claim be mined all the same; and where an earlier claim is the one
    /// that is missing from the count, that one is looked for first.
    async fn taken(&mut self, subject: Subject, tx: &Tx, view: &View) -> Result<(), StepError> {
        if self.watch.foreign_for(tx.nonce, view.head.number) < self.believed_at() {
            return Ok(());
        }
        if let (Some(_), Subject::Job(job)) = (tx.claim(), subject) {
            let Some(account) = self.books.tracker.account(job) else { return Ok(()) };
            let known = self.chain.job(job).await?;
            if known.is_none_or(|known| known.tokens_used != account.tokens_used()) {
                return self.reopen_lost_claims(&account, view).await.map(drop);
            }
        }
        tracing::error!(%subject, nonce = %tx.nonce, "nonce was used by a foreign transaction");
        self.reject(subject, tx, (RejectReason::NonceTaken, Amount::ZERO)).await
    }

    /// Replaces a pointless transaction in place, or raises the fee of one that has waited long
    /// enough, if it is the one the chain waits for: behind a lower nonce of ours no fee helps.
    async fn hurry(
        &mut self,
        subject: Subject,
        tx: &Tx,
        standing: Standing,
        view: &View,
    ) -> Result<(), StepError> {
        if standing.is_over && subject != Subject::Wallet && tx.cancelled_from.is_none() {
            return self.cancel(subject, tx, view).await;
        }
        let has_waited = self.watch.waits_for(tx.nonce, view.now) >= self.rules.reprice_after;
        if has_waited && tx.nonce == view.wallet.nonce_mined {
            self.reprice(subject, tx, view).await?;
        }
        Ok(())
    }
}
