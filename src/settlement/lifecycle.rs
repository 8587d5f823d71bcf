//! The life of a running session: claim what is due, complete what is quiet.
//!
//! Never completes while a proof is in flight or shallow enough to be reorganised away, and closes
//! the door for prompts before it signs.

use super::watch::Step;
use super::{Settlement, SettlementError, StepError, View};
use crate::billing::{Account, Purpose, TxState};
use crate::chain::{ChainJob, Fees};
use crate::claim::{
    ClaimPlan, ClaimRules, CompletionInput, CompletionPlan, FeeEstimate, PlanInput, Wait, deadline,
    plan_claim, plan_completion,
};
use crate::units::{Address, Amount, ChainTime, Gas, JobId, TokenCount};

/// Gas of one claim for the fee rule: 219 k at v3's 30th proof (docs/spec/contract.md section 2),
/// 267 k at the first of our v7 stand-in.
const CLAIM_GAS: Gas = Gas::new(270_000);

/// Gas of a completion: 174 to 186 k there, 251 k in an ERC-20 of our stand-ins.
const COMPLETE_GAS: Gas = Gas::new(250_000);

/// Gas of a transfer, of an ERC-20's as well.
const TRANSFER_GAS: Gas = Gas::new(65_000);

/// Transactions of ours that may wait for blocks at once: geth guarantees an account 16 places.
const OPEN_TXS_MAX: usize = 16;

/// A job that is active on chain, looked at and due for something.
pub(super) struct Due {
    pub account: Account,
    pub known: ChainJob,
    pub plan: ClaimPlan,
}

impl Due {
    /// Most urgent first; among equals the most valuable.
    pub fn order(&self) -> (ChainTime, std::cmp::Reverse<u128>, JobId) {
        let tokens = match self.plan {
            ClaimPlan::Claim(tokens) => tokens.get(),
            ClaimPlan::Wait(_) => 0,
        };
        let value = self.known.price.get().saturating_mul(u128::from(tokens));
        (deadline_of(&self.known), std::cmp::Reverse(value), self.account.job())
    }
}

/// When anyone may end the session.
pub(super) fn deadline_of(known: &ChainJob) -> ChainTime {
    let ChainJob { start_time, duration_max, last_proof_time, silence_max, .. } = known;
    deadline(*start_time, *duration_max, *last_proof_time, *silence_max)
}

impl Settlement {
    /// Completes what is due for it among jobs that are active on chain.
    pub(super) async fn complete_all(
        &mut self,
        active: &[Due],
        view: &View,
    ) -> Result<(), SettlementError> {
        for Due { account, known, plan } in active {
            let (job, ClaimPlan::Wait(wait)) = (account.job(), plan) else { continue };
            if self.has_room() {
                tracing::trace!(%job, ?wait, "no claim");
                let completed = self.complete_when_due(account, known, view, *wait).await;
                self.settled(job, completed)?;
            }
        }
        Ok(())
    }

    /// Whether an endpoint keeps one more transaction of ours.
    pub(super) fn has_room(&self) -> bool {
        let has_room = self.waiting < OPEN_TXS_MAX;
        if !has_room {
            tracing::debug!("as many transactions wait for blocks as an endpoint keeps");
        }
        has_room
    }

    /// What is due for a job.
    pub(super) async fn plan(
        &mut self,
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
            deadline: deadline_of(known),
            fees: None,
        };
        let rules = self.claim_rules(known);
        let ClaimPlan::Claim(tokens) = plan_claim(&rules, &input) else {
            return Ok(plan_claim(&rules, &input));
        };
        // Fees are asked for only where a claim would otherwise be made.
        input.fees = self.fee_estimate(known, (CLAIM_GAS, tokens), view).await?;
        Ok(plan_claim(&rules, &input))
    }

    fn claim_rules(&self, known: &ChainJob) -> ClaimRules {
        ClaimRules {
            claim_min: self.limits.claim_min,
            rate_per_second: known.rate_per_second,
            claim_at: self.rules.claim_at.max(self.limits.claim_min),
            margin: self.rules.claim_margin,
            fee_share_max: self.rules.fee_share_max,
        }
    }

    /// What a call of this gas costs at today's price, and what the tokens are worth, in wei.
    /// `None` where the session's currency has no known value.
    async fn fee_estimate(
        &mut self,
        known: &ChainJob,
        (gas, tokens): (Gas, TokenCount),
        view: &View,
    ) -> Result<Option<FeeEstimate>, StepError> {
        let Some(value) = self.worth(known, tokens) else { return Ok(None) };
        let fees = self.market(view).await?;
        // The offer holds twice the base fee and the tip (`chain::evm::fees`): half of it and half
        // the tip is what the next block takes.
        let price = fees.fee_max.get().saturating_add(fees.tip_max.get()) / 2;
        let fee = Amount::new(price.saturating_mul(u128::from(gas.get())));
        Ok(Some(FeeEstimate { fee, value }))
    }

    /// What `tokens` of a session are worth in wei, rounded down.
    fn worth(&self, known: &ChainJob, tokens: TokenCount) -> Option<Amount> {
        let amount = self.limits.price_unit.cost(tokens, known.price)?;
        if known.payment_token == Address::ZERO {
            return Some(amount);
        }
        let wei_per_unit = self.rules.wei_per_unit.get(&known.payment_token)?;
        Some(scaled(amount, *wei_per_unit))
    }

    async fn complete_when_due(
        &mut self,
        account: &Account,
        known: &ChainJob,
        view: &View,
        wait: Wait,
    ) -> Result<(), StepError> {
        let job = account.job();
        let fees = if self.rules.complete_at_a_loss {
            None
        } else {
            self.fee_estimate(known, (COMPLETE_GAS, account.confirmed()), view).await?
        };
        let input = CompletionInput {
            is_idle: self.books.tracker.is_quiet(job, view.now, self.rules.grace),
            has_open_tx: account.txs_open().next().is_some(),
            has_shallow_claim: self.has_shallow_claim(account, view),
            has_claimable: !matches!(wait, Wait::BelowMinimum | Wait::DepositSpent),
            now: view.head.time,
            start_time: known.start_time,
            dispute_window: self.limits.dispute_window,
            fees,
            fee_share_max: self.rules.fee_share_max,
        };
        match plan_completion(&input) {
            CompletionPlan::NotYet | CompletionPlan::Window(_) | CompletionPlan::Fee => Ok(()),
            CompletionPlan::Complete => self.complete(account, view).await,
        }
    }

    /// Whether a reorg could still take a claim back: completing behind it would forfeit it.
    fn has_shallow_claim(&self, account: &Account, view: &View) -> bool {
        let deep = self.rules.reorg_depth;
        let blocks = account.claims().filter_map(|(_, tx)| tx.mined_in);
        blocks.into_iter().any(|block| block.confirmations_at(view.head.number) < deep)
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
        let trial = self.try_out(job.into(), &Purpose::Complete).await?;
        self.submit(job, Purpose::Complete, trial, view).await
    }
}

/// What a claim, a completion and a transfer may cost at these fees.
pub(super) fn gas_reserve(fees: Fees) -> Amount {
    let gas = [CLAIM_GAS, COMPLETE_GAS, TRANSFER_GAS].into_iter();
    let gas = gas.fold(Gas::ZERO, Gas::saturating_add);
    Amount::new(fees.fee_max.get().saturating_mul(u128::from(gas.get())))
}

/// A rule of thumb on purpose: no amount that is paid or claimed is derived from it.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn scaled(amount: Amount, factor: f64) -> Amount {
    Amount::new((amount.get() as f64 * factor) as u128)
}
