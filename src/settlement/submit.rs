//! Signing and sending, one durable entry before the first broadcast.
//!
//! Never sends bytes the ledger does not hold, never signs a second claim under a new nonce while
//! the first may still count. A crash between any two lines here loses nothing: the entry is
//! either there, and the same bytes go out again, or it is not, and nothing was sent.

use futures_util::stream::{self, StreamExt};

use super::watch::Step;
use super::{CALLS_AT_ONCE, Settlement, StepError, View};
use crate::billing::{Attempt, Errand, Fact, Purpose, Subject, Tx};
use crate::chain::{Broadcast, Call, DryRun, Fees, PrepareError, SignedTx, TxSpec};
use crate::units::{Amount, Gas, JobId, WalletNonce};

/// Gas is estimated on the pending block; the mined one may differ by what others did first.
const GAS_HEADROOM_PERCENT: u64 = 130;

/// Replacement must raise both fees by at least a tenth in common clients; an eighth is safe.
const REPRICE_PERCENT: u128 = 113;

/// A chain that stands still asks for no higher fee: past this multiple of the market's present
/// fees a transaction only waits.
const REPRICE_MARKET_MULTIPLE: u128 = 4;

impl Settlement {
    /// Signs and writes down, for a job, what a dry run let pass. False where it did not; the
    /// next one then waits.
    pub(super) async fn submit(
        &mut self,
        job: JobId,
        (call, purpose): (Call, Purpose),
        trial: DryRun,
        view: &View,
    ) -> Result<bool, StepError> {
        let step = match purpose {
            Purpose::Claim(_) => Step::Claim,
            Purpose::Complete | Purpose::Fill | Purpose::Errand(_) => Step::Complete,
        };
        let signed = match trial {
            DryRun::Succeeds(gas) => {
                self.sign(job.into(), None, (call, purpose, gas), view).await?.map(drop)
            }
            DryRun::Reverts(words) => Err(words),
        };
        match signed {
            Ok(()) => {
                self.watch.accept(job, step);
                Ok(true)
            }
            Err(words) => {
                tracing::warn!(%job, words, "the chain would refuse this call");
                self.watch.refuse(job, step, view.head.number);
                Ok(false)
            }
        }
    }

    /// Dry run, then as [`Settlement::sign`], for the wallet's own business.
    pub(super) async fn sign_own(
        &mut self,
        nonce: Option<WalletNonce>,
        (call, purpose): (Call, Purpose),
        view: &View,
    ) -> Result<Result<WalletNonce, String>, StepError> {
        match self.chain.dry_run(&call).await? {
            DryRun::Succeeds(gas) => {
                self.sign(Subject::Wallet, nonce, (call, purpose, gas), view).await
            }
            DryRun::Reverts(words) => Ok(Err(words)),
        }
    }

    /// Signs and writes down; [`Settlement::send_signed`] sends. `nonce`: a hole to fill, else the
    /// line's next. The words of a refusal: nothing was signed then.
    async fn sign(
        &mut self,
        subject: Subject,
        nonce: Option<WalletNonce>,
        (call, purpose, gas): (Call, Purpose, Gas),
        view: &View,
    ) -> Result<Result<WalletNonce, String>, StepError> {
        let market = self.market(view).await?;
        // A nonce that an earlier fill held: these bytes must differ from its own.
        let earlier = nonce.and_then(|nonce| self.tx(subject, nonce));
        let market = match earlier.as_ref().and_then(|tx| tx.attempts.last()) {
            Some(last) => Fees {
                fee_max: market.fee_max.max(raised(last.fee_max)),
                tip_max: market.tip_max.max(raised(last.tip_max)),
            },
            None => market,
        };
        let spec = TxSpec {
            nonce: nonce.unwrap_or_else(|| self.line.next(view.wallet.nonce_mined)),
            fees: self.capped(market),
            gas_limit: Gas::new(gas.get().saturating_mul(GAS_HEADROOM_PERCENT) / 100),
        };
        let signed = match self.chain.prepare(&call, spec) {
            Ok(signed) => signed,
            Err(PrepareError(why)) => {
                tracing::error!(%subject, why, "cannot sign");
                return Ok(Err(why));
            }
        };
        let attempt = attempt_of(&signed, spec);
        let prepared = Fact::TxPrepared { nonce: spec.nonce, purpose, attempt };
        // The nonce is taken before the append: where its outcome is not heard, it may be durable.
        self.line.take(spec.nonce, subject);
        self.waiting = self.waiting.saturating_add(1);
        self.books.append(subject, vec![prepared]).await?;
        self.signed.push((subject, spec.nonce, signed));
        Ok(Ok(spec.nonce))
    }

    /// Sends what was signed and is durable, all of it at once: a slow endpoint must not make the
    /// last of many claims wait for the answers to all others.
    pub(super) async fn send_signed(&mut self) {
        let signed = std::mem::take(&mut self.signed);
        let sends = signed.into_iter().map(async |(subject, nonce, signed)| {
            self.send(subject, nonce, &signed).await;
        });
        stream::iter(sends).buffered(CALLS_AT_ONCE).collect::<()>().await;
    }

    /// Sends signed bytes that the ledger holds, and logs what the endpoint said.
    pub(super) async fn send(
        &self,
        subject: Subject,
        nonce: WalletNonce,
        signed: &SignedTx,
    ) -> Broadcast {
        let answer = self.chain.broadcast(signed).await;
        let tx = signed.hash;
        match &answer {
            Broadcast::Accepted => tracing::info!(%subject, %nonce, %tx, "transaction broadcast"),
            Broadcast::AlreadyKnown => tracing::debug!(%subject, %nonce, %tx, "already known"),
            Broadcast::NonceUsed => tracing::debug!(%subject, %nonce, %tx, "nonce used already"),
            Broadcast::Underpriced => tracing::warn!(%subject, %nonce, %tx, "fees are too low"),
            Broadcast::Unknown(why) => {
                tracing::warn!(%subject, %nonce, %tx, why, "broadcast unknown; will send again");
            }
            Broadcast::Rejected(why) => {
                tracing::error!(%subject, %nonce, %tx, why, "endpoint refuses the transaction");
            }
        }
        answer
    }

    /// Signs the same call under the same nonce with higher fees.
    pub(super) async fn reprice(
        &mut self,
        subject: Subject,
        tx: &Tx,
        view: &View,
    ) -> Result<(), StepError> {
        let call = match tx.cancelled_from {
            Some(_) => Call::Nothing,
            None => call_of(subject, &tx.purpose),
        };
        let Some(attempt) = self.sign_again(subject, tx, &call, view).await? else {
            return Ok(());
        };
        let (nonce, signed) = (tx.nonce, signed_of(&attempt));
        let fact = match tx.cancelled_from {
            Some(_) => Fact::TxCancelled { nonce, attempt },
            None => Fact::TxRepriced { nonce, attempt },
        };
        self.books.append(subject, vec![fact]).await?;
        self.send(subject, nonce, &signed).await;
        Ok(())
    }

    /// Replaces a transaction that has become pointless by an empty transfer under its nonce: it
    /// costs less than a revert, and whatever waits behind it moves on.
    pub(super) async fn cancel(
        &mut self,
        subject: Subject,
        tx: &Tx,
        view: &View,
    ) -> Result<(), StepError> {
        let nonce = tx.nonce;
        let Some(attempt) = self.sign_again(subject, tx, &Call::Nothing, view).await? else {
            return Ok(());
        };
        tracing::info!(%subject, %nonce, "a pointless transaction is replaced in place");
        let signed = signed_of(&attempt);
        self.books.append(subject, vec![Fact::TxCancelled { nonce, attempt }]).await?;
        self.send(subject, nonce, &signed).await;
        Ok(())
    }

    /// A further attempt under a transaction's nonce, dear enough to replace the last; `None`
    /// where the market or the operator's ceiling says to wait.
    async fn sign_again(
        &mut self,
        subject: Subject,
        tx: &Tx,
        call: &Call,
        view: &View,
    ) -> Result<Option<Attempt>, StepError> {
        let Some(last) = tx.attempts.last() else { return Ok(None) };
        let current = self.market(view).await?;
        let wanted = Fees {
            fee_max: current.fee_max.max(raised(last.fee_max)),
            tip_max: current.tip_max.max(raised(last.tip_max)),
        };
        let ceiling = current.fee_max.get().saturating_mul(REPRICE_MARKET_MULTIPLE);
        let fees = self.capped(wanted);
        self.watch.moved(tx.nonce);
        let nonce = tx.nonce;
        if wanted.fee_max.get() > ceiling {
            tracing::warn!(%subject, %nonce, "paid far above the market already: waiting");
            return Ok(None);
        }
        if fees.fee_max < raised(last.fee_max) || fees.tip_max < raised(last.tip_max) {
            tracing::warn!(%subject, %nonce, "the fee ceiling forbids a replacement");
            return Ok(None);
        }
        let spec = TxSpec { nonce, fees, gas_limit: Gas::new(last.gas_limit) };
        let signed = self.chain.prepare(call, spec).ok();
        Ok(signed.map(|signed| attempt_of(&signed, spec)))
    }

    fn capped(&self, fees: Fees) -> Fees {
        let Some(ceiling) = self.rules.fee_max else { return fees };
        let fee_max = fees.fee_max.min(ceiling);
        Fees { fee_max, tip_max: fees.tip_max.min(fee_max) }
    }
}

/// The call that a transaction makes, anew from what the ledger holds of it.
fn call_of(subject: Subject, purpose: &Purpose) -> Call {
    match (purpose, subject) {
        (Purpose::Claim(claim), Subject::Job(job)) => {
            Call::Claim { job, tokens: claim.tokens, proof: claim.proof.clone() }
        }
        (Purpose::Complete, Subject::Job(job)) => Call::Complete { job },
        (Purpose::Errand(errand), _) => {
            let Errand { to, value, input, .. } = errand.clone();
            Call::Raw { to, value, input }
        }
        // An account takes no claim of the wallet's: only a fill is left.
        (Purpose::Fill | Purpose::Claim(_) | Purpose::Complete, _) => Call::Nothing,
    }
}

fn raised(amount: Amount) -> Amount {
    Amount::new(amount.get().saturating_mul(REPRICE_PERCENT).div_ceil(100))
}

fn attempt_of(signed: &SignedTx, spec: TxSpec) -> Attempt {
    Attempt {
        hash: signed.hash,
        raw: signed.raw.clone(),
        fee_max: spec.fees.fee_max,
        tip_max: spec.fees.tip_max,
        gas_limit: spec.gas_limit.get(),
    }
}

fn signed_of(attempt: &Attempt) -> SignedTx {
    SignedTx { hash: attempt.hash, raw: attempt.raw.clone() }
}
