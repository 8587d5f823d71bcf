//! The body of a claim: its proof, made of durable entries only.
//!
//! Never reads memory for what it proves. A claim that is tried again keeps its root and, where
//! nobody burnt it, its very bytes, so that a chain which refuses a proof it knows can count one of
//! the two at most.

use metrics::counter;

use super::watch::Step;
use super::{Settlement, StepError, View};
use crate::billing::{Account, ClaimBody, Purpose};
use crate::chain::{Call, PrepareError};
use crate::proof;
use crate::units::{ClaimSeq, TokenCount};

/// Claims rejected in a row after which a human must look.
const REJECTIONS_MAX: usize = 5;

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
