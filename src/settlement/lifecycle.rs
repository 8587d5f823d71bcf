//! The life of a running session: claim what is due, complete what is quiet.
//!
//! Never completes while a proof is in flight, and closes the door for prompts before it signs.

use super::watch::Step;
use super::{Settlement, StepError, View};
use crate::billing::{Account, Purpose, TxState};
use crate::chain::{Call, ChainJob};
use crate::claim::{
    ClaimPlan, CompletionInput, CompletionPlan, FeeEstimate, PlanInput, Wait, deadline, plan_claim,
    plan_completion,
};
use crate::units::{Address, Amount, Gas, JobId};

/// Gas of one claim for the fee rule: 219 k at the 30th proof (docs/spec/contract.md section 2).
const CLAIM_GAS: Gas = Gas::new(220_000);

impl Settlement {
    /// At most one transaction for a job that is active on chain.
    pub(super) async fn claim_or_complete(
        &mut self,
        account: &Account,
        known: &ChainJob,
        view: &View,
    ) -> Result<(), StepError> {
        let job = account.job();
        let is_closing = self.is_closing(job, view.now);
        let plan = self.plan(account, known, view).await?;
        match plan {
            ClaimPlan::Claim(_) if !self.watch.may_try(job, Step::Claim, view.head.number) => {
                Ok(())
            }
            ClaimPlan::Claim(tokens) => self.submit_claim(account, tokens, is_closing, view).await,
            ClaimPlan::Wait(wait) => {
                tracing::trace!(%job, ?wait, "no claim");
                self.complete_when_due(account, known, view, wait).await
            }
        }
    }

    async fn plan(
        &self,
        account: &Account,
        known: &ChainJob,
        view: &View,
    ) -> Result<ClaimPlan, StepError> {
        let job = account.job();
        let unit = self.limits.price_unit;
        let before = account.terms().map(|terms| terms.tokens_before).unwrap_or_default();
        let spoken_for = before.saturating_add(account.claimed()).max(known.tokens_used);
        let mut claims_open = account.txs_open().filter(|tx| tx.claim().is_some());
        let mut input = PlanInput {
            unclaimed: account.unclaimed(),
            deposit_left: unit.affordable(known.deposit, known.price).saturating_sub(spoken_for),
            in_flight: claims_open.any(|tx| tx.state == TxState::Prepared),
            closing: self.is_closing(job, view.now),
            now: view.head.time,
            last_proof_time: known.last_proof_time,
            deadline: deadline(
                known.start_time,
                known.duration_max,
                known.last_proof_time,
                known.silence_max,
            ),
            fees: None,
        };
        let rules = self.claim_rules(known);
        let ClaimPlan::Claim(_) = plan_claim(&rules, &input) else {
            return Ok(plan_claim(&rules, &input));
        };
        // Fees are asked for only where a claim would otherwise be made.
        input.fees = self.fee_estimate(known).await?;
        Ok(plan_claim(&rules, &input))
    }

    /// Fee and value in wei; sessions in another currency cannot be compared.
    async fn fee_estimate(&self, known: &ChainJob) -> Result<Option<FeeEstimate>, StepError> {
        if known.payment_token != Address::ZERO {
            return Ok(None);
        }
        let fees = self.chain.fees().await?;
        let fee = fees.fee_max.get().saturating_mul(u128::from(CLAIM_GAS.get()));
        let value = known.price.get() / u128::from(self.limits.price_unit.get());
        Ok(Some(FeeEstimate { fee: Amount::new(fee), value_per_token: Amount::new(value) }))
    }

    async fn complete_when_due(
        &mut self,
        account: &Account,
        known: &ChainJob,
        view: &View,
        wait: Wait,
    ) -> Result<(), StepError> {
        let job = account.job();
        let input = CompletionInput {
            is_idle: self.books.tracker.is_quiet(job, view.now, self.rules.grace),
            has_open_tx: account.txs_open().next().is_some(),
            has_claimable: !matches!(wait, Wait::BelowMinimum | Wait::DepositSpent),
            now: view.head.time,
            start_time: known.start_time,
            dispute_window: self.limits.dispute_window,
        };
        match plan_completion(&input) {
            CompletionPlan::NotYet | CompletionPlan::Window(_) => Ok(()),
            CompletionPlan::Complete => self.complete(account, view).await,
        }
    }

    /// Closes the door, looks once more, signs. Whatever does not end in a signature opens the
    /// door again.
    async fn complete(&mut self, planned: &Account, view: &View) -> Result<(), StepError> {
        let job = planned.job();
        let may_try = self.watch.may_try(job, Step::Complete, view.head.number);
        if !may_try || !self.books.tracker.begin_settling(job) {
            return Ok(());
        }
        let unchanged = self.books.tracker.account(job).as_ref() == Some(planned);
        let signed = if unchanged { self.sign_completion(job, view).await } else { Ok(false) };
        if !matches!(signed, Ok(true)) {
            self.books.tracker.abort_settling(job);
        }
        signed.map(|_| ())
    }

    async fn sign_completion(&mut self, job: JobId, view: &View) -> Result<bool, StepError> {
        self.submit(job, Call::Complete { job }, Purpose::Complete, view).await
    }
}
