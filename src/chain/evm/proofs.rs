//! The claims of a job as the chain holds them, with the proof bytes that were sent.
//!
//! For whoever checks claims without being their host: reads only, trusts no log for its topic
//! alone. Relies on `dialect` for the call that each version's claims are.

use alloy::primitives::{B256, U256};
use serde_json::json;

use super::rpc::Rpc;
use super::wire::Transaction;
use super::{EvmChain, events};
use crate::chain::ChainError;
use crate::units::{Address, BlockNumber, JobId, TokenCount, TxHash};

/// A `ProofSubmitted` and what was sent for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentClaim {
    /// The transaction.
    pub tx: TxHash,
    /// Who claimed.
    pub host: Address,
    /// The amount that the contract added.
    pub tokens: TokenCount,
    /// The proof bytes, put together again; `None` where the transaction calls something else than
    /// the marketplace's claim.
    pub proof: Option<Vec<u8>>,
}

impl EvmChain {
    /// Claims of `job` in blocks `from ..= to`, oldest first.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn sent_claims(
        &self,
        job: JobId,
        from: BlockNumber,
        to: BlockNumber,
    ) -> Result<Vec<SentClaim>, ChainError> {
        let word = format!("{:#066x}", U256::from(job.get()));
        let topics = json!([[self.dialect.proven_topic()], [word]]);
        let filter = json!({"address": self.marketplace.to_string(), "topics": topics});
        let fetch = |rpc| events::fetch(rpc, &filter, from, to);
        let logs = self.rpc.first_with(to, fetch).await?;
        let mut claims = Vec::with_capacity(logs.len());
        for log in logs {
            let proven = self.dialect.proven(&log)?.filter(|proven| proven.job == job);
            let (Some(proven), Some(tx)) = (proven, log.transaction_hash) else { continue };
            let sent = self.rpc.first_with(to, |rpc| transaction(rpc, tx)).await?;
            let proof = sent.and_then(|sent| self.dialect.proof_of(&sent.input));
            let tx = TxHash::new(tx.0);
            claims.push(SentClaim { tx, host: proven.host, tokens: proven.tokens, proof });
        }
        Ok(claims)
    }
}

async fn transaction(rpc: &Rpc, tx: B256) -> Result<Option<Transaction>, ChainError> {
    Ok(rpc.call("eth_getTransactionByHash", json!([tx])).await?)
}
