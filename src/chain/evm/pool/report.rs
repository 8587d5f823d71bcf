//! A look at each endpoint, for the operator.
//!
//! Never shows more of a URL than its host, and never changes whom reads are asked of, except that
//! an endpoint which answers is known to answer.

use futures_util::future::join_all;

use super::{At, Pool};
use crate::chain::ChainError;
use crate::chain::evm::rpc::Rpc;
use crate::clock::within;
use crate::units::Millis;

/// One endpoint as `tally doctor` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointReport {
    /// Host and port; the rest of the URL may hold a key.
    pub host: String,
    /// The chain id it reports, and the height of its newest block; or why there is no answer.
    pub answer: Result<(u64, u64), String>,
    /// Smoothed time of its answers, milliseconds; `None` before the first.
    pub latency: Option<Millis>,
    /// Blocks behind the newest that any of them shows.
    pub lag: u64,
    /// What was wrong with it before it was asked now.
    pub trouble: Option<String>,
}

impl Pool {
    /// Asks each endpoint for chain and head, whatever its standing.
    pub(in crate::chain::evm) async fn report(&self) -> Vec<EndpointReport> {
        let looked = join_all(self.endpoints.iter().map(|rpc| self.look_at(rpc))).await;
        let heads = looked.iter().filter_map(|(_, answer)| answer.as_ref().ok().map(|(_, h)| *h));
        let best = heads.max().unwrap_or_default();
        let named = self.endpoints.iter().zip(looked);
        named
            .map(|(rpc, (trouble, answer))| EndpointReport {
                host: rpc.shown().to_owned(),
                latency: rpc.health().latency(),
                lag: answer.as_ref().map_or(0, |(_, head)| best.saturating_sub(*head)),
                answer: answer.map_err(|error| error.to_string()),
                trouble,
            })
            .collect()
    }

    /// What was wrong before, and what it answers now.
    async fn look_at(&self, rpc: &Rpc) -> (Option<String>, Result<(u64, u64), ChainError>) {
        let trouble = rpc.health().words().map(str::to_owned);
        (trouble, self.chain_and_head(rpc).await)
    }

    async fn chain_and_head(&self, rpc: &Rpc) -> Result<(u64, u64), ChainError> {
        let both = async { tokio::try_join!(rpc.chain_id(), rpc.block(At::Latest)) };
        let silent = || ChainError::Unreachable(format!("{}: no answer in time", rpc.shown()));
        let (id, block) =
            within(&*self.clock, self.timeout, both).await.unwrap_or_else(|| Err(silent()))?;
        Ok((id, block.height().unwrap_or_default()))
    }
}
