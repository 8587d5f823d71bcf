//! What the chain says about a claim.
//!
//! Never needs a key: reads only. Never takes the newest claim for the right one: that whose proof
//! bytes carry the blob's root is.

use std::sync::Arc;

use super::{Check, Claim, VerifyError};
use crate::chain::Chain;
use crate::chain::evm::{EvmWallet, SentClaim};
use crate::node::access;
use crate::node::settings::InspectSettings;
use crate::proof::{Blob, FLAG_USER_VOUCHER, ProofBytes};
use crate::units::{BlockNumber, TokenCount};

/// Blocks before the head in which claims are looked for by default.
const BLOCKS_DEFAULT: u64 = 10_000;

/// Looks the blob's claim up and fills in what the chain has of it: proof bytes, signer, place.
pub(super) async fn look(
    settings: &InspectSettings,
    (blob, claim): (&Blob, &mut Claim),
    from: Option<u64>,
) -> Result<(), VerifyError> {
    let missing = VerifyError::NotSet("chain.rpc_urls, chain.id and chain.marketplace");
    let at = settings.chain.as_ref().ok_or(missing)?;
    let chain = access::connect(at, Arc::new(EvmWallet::throwaway())).await?;
    claim.marketplace = Some((at.chain_id, at.marketplace));
    let head = chain.head().await?.number;
    let default = head.saturating_sub(BlockNumber::new(BLOCKS_DEFAULT));
    let from = from.map_or(default, BlockNumber::new);
    let sent = chain.sent_claims(blob.job, from, head).await?;
    let known = chain.job(blob.job).await?;
    let used = known.map_or(TokenCount::ZERO, |known| known.tokens_used);
    let root = blob.root().ok();
    let carries = |sent: &&SentClaim| {
        let proof = sent.proof.as_deref().and_then(|bytes| ProofBytes::decode(bytes).ok());
        proof.is_some_and(|proof| Some(proof.root) == root && proof.seq == blob.seq)
    };
    let Some(found) = sent.iter().find(carries) else {
        let words = format!(
            "none of {} claims of job {} since block {from} carries this root",
            sent.len(),
            blob.job
        );
        claim.chain.push(Check::fails("chain", words));
        return Ok(());
    };
    claim.proof = found.proof.as_deref().and_then(|bytes| ProofBytes::decode(bytes).ok());
    let is_hosts = claim.proof.as_ref().is_some_and(|it| it.flags & FLAG_USER_VOUCHER == 0);
    claim.signer = claim.signer.or_else(|| is_hosts.then_some(found.host));
    let words = format!("claimed in {} by {}", found.tx, found.host);
    claim.chain.push(Check::holds("chain", words));
    // Claims may be mined in another order than they were made; those that carry less are below.
    let below = |sent: &&SentClaim| {
        let proof = sent.proof.as_deref().and_then(|bytes| ProofBytes::decode(bytes).ok());
        proof.is_some_and(|proof| proof.tokens_cumulative <= blob.tokens())
    };
    let counted = sent.iter().filter(below).map(|sent| sent.tokens);
    let counted = counted.fold(TokenCount::ZERO, TokenCount::saturating_add);
    claim.chain.push(match counted == blob.tokens() {
        true => Check::holds("paid", format!("{counted} tokens up to it, {used} in all")),
        false => Check::fails(
            "paid",
            format!(
                "the contract has counted {counted} tokens up to it, the blob has {}",
                blob.tokens()
            ),
        ),
    });
    Ok(())
}
