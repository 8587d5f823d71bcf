//! Submission: signing and sending, one durable entry before the first broadcast.
//!
//! Never sends bytes the ledger does not hold, never signs a second claim under a new nonce while
//! the first may still count. A crash between any two lines here loses nothing: the entry is
//! either there, and the same bytes go out again, or it is not, and nothing was sent.

use metrics::counter;

use super::watch::Step;
use super::{Settlement, StepError, View};
use crate::billing::{Account, Attempt, ClaimBody, Errand, Fact, Purpose, Tx};
use crate::chain::{Broadcast, Call, DryRun, Fees, PrepareError, SignedTx, TxSpec};
use crate::proof;
use crate::units::{Amount, ClaimSeq, Gas, JobId, TokenCount, WalletNonce};

/// Claims rejected in a row after which a human must look.
const REJECTIONS_MAX: usize = 5;

/// Gas is estimated on the pending block; the mined one may differ by what others did first.
const GAS_HEADROOM_PERCENT: u64 = 130;

/// Replacement must raise both fees by at least a tenth in common clients; an eighth is safe.
const REPRICE_PERCENT: u128 = 113;

/// A chain that stands still asks for no higher fee: past this multiple of the market's present
/// fees a transaction only waits.
const REPRICE_MARKET_MULTIPLE: u128 = 4;

impl Settlement {
    /// Claims `tokens` for a job.
    pub(super) async fn submit_claim(
        &mut self,
        account: &Account,
        tokens: TokenCount,
        is_final: bool,
        view: &View,
    ) -> Result<(), StepError> {
        let job = account.job();
        if account.rejections_in_a_row() >= REJECTIONS_MAX {
            let why = format!("{REJECTIONS_MAX} claims in a row were rejected");
            return self.halt(job, why).await;
        }
        let body = match self.build_claim(account, tokens, is_final).await? {
            Ok(body) => body,
            Err(why) => {
                return self.halt(job, format!("no proof for {tokens} tokens: {why}")).await;
            }
        };
        let call = Call::Claim { job, tokens, proof: body.proof.clone() };
        if self.submit(job, call, Purpose::Claim(body), view).await? {
            counter!("tokens_claimed_total").increment(tokens.get());
            counter!("claims_total", "outcome" => "submitted").increment(1);
        }
        Ok(())
    }

    /// Dry run, sign, write down, send. False where the dry run was refused.
    pub(super) async fn submit(
        &mut self,
        job: JobId,
        call: Call,
        purpose: Purpose,
        view: &View,
    ) -> Result<bool, StepError> {
        let step = match purpose {
            Purpose::Claim(_) => Step::Claim,
            Purpose::Complete | Purpose::Fill | Purpose::Errand(_) => Step::Complete,
        };
        let gas = match self.chain.dry_run(&call).await? {
            DryRun::Succeeds(gas) => gas,
            DryRun::Reverts(words) => {
                tracing::warn!(%job, words, "the chain would refuse this call");
                self.watch.refuse(job, step, view.head.number);
                return Ok(false);
            }
        };
        self.watch.accept(job, step);
        let spec = TxSpec {
            nonce: self.nonce_floor.max(view.wallet.nonce_mined),
            fees: self.capped(self.chain.fees().await?),
            gas_limit: Gas::new(gas.get().saturating_mul(GAS_HEADROOM_PERCENT) / 100),
        };
        let signed = match self.chain.prepare(&call, spec) {
            Ok(signed) => signed,
            Err(PrepareError(why)) => {
                tracing::error!(%job, why, "cannot sign");
                return Ok(false);
            }
        };
        let attempt = attempt_of(&signed, spec);
        let prepared = Fact::TxPrepared { nonce: spec.nonce, purpose, attempt };
        self.books.append(job, vec![prepared]).await?;
        self.nonce_floor = spec.nonce.next().unwrap_or(spec.nonce);
        self.send(job, spec.nonce, &signed).await;
        Ok(true)
    }

    /// Sends signed bytes that the ledger holds, and logs what the endpoint said.
    pub(super) async fn send(
        &self,
        job: JobId,
        nonce: WalletNonce,
        signed: &SignedTx,
    ) -> Broadcast {
        let answer = self.chain.broadcast(signed).await;
        let tx = signed.hash;
        match &answer {
            Broadcast::Accepted => tracing::info!(%job, %nonce, %tx, "transaction broadcast"),
            Broadcast::AlreadyKnown => tracing::debug!(%job, %nonce, %tx, "already known"),
            Broadcast::NonceUsed => tracing::debug!(%job, %nonce, %tx, "nonce used already"),
            Broadcast::Underpriced => tracing::warn!(%job, %nonce, %tx, "fees are too low"),
            Broadcast::Unknown(why) => {
                tracing::warn!(%job, %nonce, %tx, why, "broadcast unknown; will send again");
            }
            Broadcast::Rejected(why) => {
                tracing::error!(%job, %nonce, %tx, why, "endpoint refuses the transaction");
            }
        }
        answer
    }

    /// Signs the same call under the same nonce with higher fees.
    pub(super) async fn reprice(&mut self, job: JobId, tx: &Tx) -> Result<(), StepError> {
        let Some(last) = tx.attempts.last() else { return Ok(()) };
        let raised = |amount: Amount| {
            Amount::new(amount.get().saturating_mul(REPRICE_PERCENT).div_ceil(100))
        };
        let current = self.chain.fees().await?;
        let wanted = Fees {
            fee_max: current.fee_max.max(raised(last.fee_max)),
            tip_max: current.tip_max.max(raised(last.tip_max)),
        };
        let ceiling = current.fee_max.get().saturating_mul(REPRICE_MARKET_MULTIPLE);
        let fees = self.capped(wanted);
        self.watch.moved(tx.nonce);
        if wanted.fee_max.get() > ceiling {
            tracing::warn!(%job, nonce = %tx.nonce, "paid far above the market already: waiting");
            return Ok(());
        }
        if fees.fee_max < raised(last.fee_max) || fees.tip_max < raised(last.tip_max) {
            tracing::warn!(%job, nonce = %tx.nonce, "the fee ceiling forbids a replacement");
            return Ok(());
        }
        let call = match &tx.purpose {
            Purpose::Claim(claim) => {
                Call::Claim { job, tokens: claim.tokens, proof: claim.proof.clone() }
            }
            Purpose::Complete => Call::Complete { job },
            Purpose::Fill => Call::Nothing,
            Purpose::Errand(errand) => {
                let Errand { to, value, input, .. } = errand.clone();
                Call::Raw { to, value, input }
            }
        };
        let gas_limit = Gas::new(last.gas_limit);
        let spec = TxSpec { nonce: tx.nonce, fees, gas_limit };
        let Ok(signed) = self.chain.prepare(&call, spec) else { return Ok(()) };
        let attempt = attempt_of(&signed, spec);
        self.books.append(job, vec![Fact::TxRepriced { nonce: tx.nonce, attempt }]).await?;
        self.send(job, tx.nonce, &signed).await;
        Ok(())
    }

    fn capped(&self, fees: Fees) -> Fees {
        let Some(ceiling) = self.rules.fee_max else { return fees };
        let fee_max = fees.fee_max.min(ceiling);
        Fees { fee_max, tip_max: fees.tip_max.min(fee_max) }
    }

    /// The claim's proof, from durable entries only.
    async fn build_claim(
        &self,
        account: &Account,
        tokens: TokenCount,
        is_final: bool,
    ) -> Result<Result<ClaimBody, String>, StepError> {
        let job = account.job();
        let entries = self.books.ledger.job_entries(job).await?;
        let tokens_cumulative = account.claimed().saturating_add(tokens);
        let transcript = proof::Transcript::from_entries(job, &entries);
        let Some(cut) = transcript.cut_at(tokens_cumulative) else {
            let why = transcript.fault().map_or_else(
                || format!("the ledger holds {} tokens", transcript.tokens()),
                ToString::to_string,
            );
            return Ok(Err(why));
        };
        let (seq, salt) = self.seq_and_salt(account, tokens, tokens_cumulative);
        let root = proof::root(job, seq, &cut);
        let voucher = proof::Voucher { job, tokens_cumulative, seq, root, model: cut.model_spec };
        let domain = proof::VoucherDomain {
            chain_id: self.chain.chain_id(),
            marketplace: self.chain.marketplace(),
        };
        let signature = match self.wallet.sign_digest(proof::voucher_digest(&domain, &voucher)) {
            Ok(signature) => signature,
            Err(PrepareError(why)) => return Ok(Err(why)),
        };
        // No nonces are on the wire yet, so each claim says that they were missing.
        let mut flags = proof::FLAG_NONCE_DERIVED;
        if is_final {
            flags |= proof::FLAG_FINAL;
        }
        let bytes = proof::ProofBytes { flags, tokens_cumulative, seq, salt, root, signature };
        Ok(Ok(ClaimBody { seq, tokens, tokens_cumulative, proof: bytes.encode().to_vec() }))
    }

    /// A claim that is tried again after a rejection keeps its root and changes its salt: a
    /// stranger can burn a first word that was seen, not the root.
    fn seq_and_salt(
        &self,
        account: &Account,
        tokens: TokenCount,
        tokens_cumulative: TokenCount,
    ) -> (ClaimSeq, u16) {
        let same = |claim: &&ClaimBody| {
            claim.tokens == tokens && claim.tokens_cumulative == tokens_cumulative
        };
        let earlier: Vec<&ClaimBody> =
            account.claims().map(|(claim, _)| claim).filter(same).collect();
        let seq = earlier.last().map_or_else(|| account.seq_next(), |claim| claim.seq);
        let tried = u32::try_from(earlier.len()).unwrap_or(u32::MAX);
        let salt = tried.saturating_add(self.watch.refusals(account.job(), Step::Claim));
        (seq, u16::try_from(salt).unwrap_or(u16::MAX))
    }
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
