//! The body of a claim: its proof, made of durable entries only.
//!
//! Never reads memory for what it proves. A claim that is tried again keeps its root and, where
//! nobody burnt it, its very bytes, so that a chain which refuses a proof it knows can count one of
//! the two at most.

use futures_util::stream::{self, StreamExt};
use metrics::counter;

use super::lifecycle::Due;
use super::watch::Step;
use super::{CALLS_AT_ONCE, Settlement, SettlementError, StepError, View};
use crate::billing::{Account, ClaimBody, Purpose};
use crate::chain::{DryRun, PrepareError};
use crate::claim::ClaimPlan;
use crate::proof;
use crate::units::{ClaimSeq, JobId, TokenCount};

/// Claims rejected in a row after which a human must look.
const REJECTIONS_MAX: usize = 5;

/// A claim, and what the chain says would come of it.
struct Tried {
    tokens: TokenCount,
    claim: Purpose,
    trial: DryRun,
}

impl Settlement {
    /// Claims what is due among jobs that are active on chain, in their order. The chain is asked
    /// about many at once: sessions may come to a claim in the same second.
    pub(super) async fn claim_all(
        &mut self,
        active: &[Due],
        view: &View,
    ) -> Result<(), SettlementError> {
        if !self.has_room() {
            return Ok(());
        }
        for (job, claim) in self.try_claims(active, view).await {
            // A signature takes room, a refusal does not.
            if self.has_room() {
                let submitted = self.submit_claim(job, claim, view).await;
                self.settled(job, submitted)?;
            }
        }
        Ok(())
    }

    /// The first claims of those that may be tried, with what the chain says to each.
    async fn try_claims(
        &self,
        active: &[Due],
        view: &View,
    ) -> Vec<(JobId, Result<Option<Tried>, StepError>)> {
        let due = active.iter().filter_map(|Due { account, plan, .. }| match plan {
            ClaimPlan::Claim(tokens) => Some((account, *tokens)),
            ClaimPlan::Wait(_) => None,
        });
        let may_try =
            |account: &Account| self.watch.may_try(account.job(), Step::Claim, view.head.number);
        let first = due.filter(|(account, _)| may_try(account)).take(CALLS_AT_ONCE);
        let first: Vec<_> = first.map(|(account, tokens)| (account.clone(), tokens)).collect();
        let tries = first.into_iter().map(async |(account, tokens)| {
            (account.job(), self.try_claim(&account, tokens, view).await)
        });
        stream::iter(tries).buffered(CALLS_AT_ONCE).collect().await
    }

    async fn try_claim(
        &self,
        account: &Account,
        tokens: TokenCount,
        view: &View,
    ) -> Result<Option<Tried>, StepError> {
        let Some(body) = self.prove(account, tokens, view).await? else { return Ok(None) };
        let claim = Purpose::Claim(body);
        let trial = self.try_out(account.job().into(), &claim).await?;
        Ok(Some(Tried { tokens, claim, trial }))
    }

    async fn submit_claim(
        &mut self,
        job: JobId,
        tried: Result<Option<Tried>, StepError>,
        view: &View,
    ) -> Result<(), StepError> {
        if tried.is_err() {
            // It must not be the first to be tried again and again, in front of all others.
            self.watch.postpone(job, Step::Claim, view.head.number);
        }
        let Some(Tried { tokens, claim, trial }) = tried? else { return Ok(()) };
        if self.submit(job, claim, trial, view).await? {
            counter!("tokens_claimed_total").increment(tokens.get());
            counter!("claims_total", "outcome" => "submitted").increment(1);
        }
        Ok(())
    }

    /// A claim of `tokens`; `None` where the job was halted instead.
    async fn prove(
        &self,
        account: &Account,
        tokens: TokenCount,
        view: &View,
    ) -> Result<Option<ClaimBody>, StepError> {
        let job = account.job();
        let is_final = self.is_closing(job, view.now);
        let why = if account.rejections_in_a_row() >= REJECTIONS_MAX {
            format!("{REJECTIONS_MAX} claims in a row were rejected")
        } else {
            match self.build_claim(account, tokens, is_final).await? {
                Ok(body) => return Ok(Some(body)),
                Err(why) => format!("no proof for {tokens} tokens: {why}"),
            }
        };
        self.halt(job, why).await?;
        Ok(None)
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
        let flags = [
            (is_final, proof::FLAG_FINAL),
            (cut.is_canonical, proof::FLAG_CANONICAL),
            (cut.lacks_user_nonce, proof::FLAG_NONCE_DERIVED),
        ];
        let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
        let bytes = proof::ProofBytes { flags, tokens_cumulative, seq, salt, root, signature };
        Ok(Ok(ClaimBody { seq, tokens, tokens_cumulative, proof: bytes.encode().to_vec() }))
    }

    /// A claim that is tried again after a rejection keeps its root. Its salt moves on where a dry
    /// run was refused since: a stranger can burn a first word that was seen, not the root.
    fn seq_and_salt(
        &self,
        account: &Account,
        tokens: TokenCount,
        tokens_cumulative: TokenCount,
    ) -> (ClaimSeq, u16) {
        let same = |claim: &&ClaimBody| {
            claim.tokens == tokens && claim.tokens_cumulative == tokens_cumulative
        };
        let earlier = account.claims().map(|(claim, _)| claim).filter(same).last();
        let seq = earlier.map_or_else(|| account.seq_next(), |claim| claim.seq);
        let salt_before = earlier.and_then(|claim| {
            let bytes = proof::ProofBytes::decode(&claim.proof).ok()?;
            Some(bytes.salt)
        });
        let refusals = self.watch.refusals(account.job(), Step::Claim);
        let moved = u16::try_from(refusals).unwrap_or(u16::MAX);
        (seq, salt_before.unwrap_or(0).saturating_add(moved))
    }
}
