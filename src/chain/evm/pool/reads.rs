//! The reads that a pool offers.
//!
//! Never decides: what answers mean together is in `quorum`. As many endpoints as needed are asked
//! at once, the others when one of them fails, is slow or contradicts.
//!
//! - [`Pool::first`]: the first endpoint in the operator's order that is well, the next one where
//!   it fails. For what decides nothing about money: gas balance, registries, events, earnings.
//! - [`Pool::judge`], [`Pool::agree`], [`Pool::agree_on_state`], [`Pool::head`]: what counts needs
//!   a quorum.
//!
//! Relies on `Pool::ask`.

use std::future::Future;
use std::sync::PoisonError;

use alloy::primitives::U256;
use alloy::sol_types::SolCall;
use metrics::gauge;
use serde_json::json;

use super::{Plan, Pool, Vote, given};
use crate::chain::ChainError;
use crate::chain::evm::quorum::{self, Answers};
use crate::chain::evm::rpc::Rpc;
use crate::chain::evm::wire::{Block, u64_of};
use crate::telemetry::CHAIN_ENDPOINTS_USABLE;
use crate::units::{Address, BlockNumber, Millis};

/// An endpoint further behind than this, in blocks and in the chain's seconds, rests. Both, since
/// on a fast chain a few blocks are a moment, and on a slow one a minute is a block.
const LAG_BLOCKS_MAX: u64 = 3;
const LAG_SECONDS_MAX: u64 = 10;

/// Pause between two looks at endpoints that nothing was asked of.
const PROBE_EVERY: Millis = Millis::new(10_000);

/// A log query in many pages may take this many request timeouts.
const PAGES_TIMEOUTS: u32 = 6;

/// At which block a read looks.
#[derive(Debug, Clone, Copy)]
pub(in crate::chain::evm) enum At {
    /// The endpoint's newest.
    Latest,
    /// This height.
    Height(u64),
}

impl At {
    /// As JSON-RPC writes it.
    pub(in crate::chain::evm) fn tag(self) -> String {
        match self {
            Self::Latest => "latest".into(),
            Self::Height(height) => format!("{height:#x}"),
        }
    }
}

impl Pool {
    /// A read on one endpoint, the next one where it fails.
    pub(in crate::chain::evm) async fn first<'a, T, F, Fut>(
        &'a self,
        op: F,
    ) -> Result<T, ChainError>
    where
        F: Fn(&'a Rpc) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let plan = self.plan(1);
        self.first_by(plan, op).await
    }

    /// As [`Pool::first`] for a read in many pages, on endpoints that have `head` before others:
    /// one that is behind it would know nothing of the newest blocks and not say so.
    pub(in crate::chain::evm) async fn first_with<'a, T, F, Fut>(
        &'a self,
        head: BlockNumber,
        op: F,
    ) -> Result<T, ChainError>
    where
        F: Fn(&'a Rpc) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let mut plan = self.plan(1);
        let is_behind = |at: &usize| {
            let endpoint = self.endpoints.get(*at);
            endpoint.and_then(|rpc| rpc.health().head()).is_some_and(|own| own < head.get())
        };
        plan.order.sort_by_key(is_behind);
        plan.until = self.after(self.timeout.saturating_mul(PAGES_TIMEOUTS));
        self.first_by(plan, op).await
    }

    async fn first_by<'a, T, F, Fut>(&'a self, plan: Plan, op: F) -> Result<T, ChainError>
    where
        F: Fn(&'a Rpc) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let mut votes = self.ask(plan, op, |answers| !answers.given.is_empty()).await;
        match votes.iter().position(|vote| vote.answer.is_ok()) {
            Some(at) => votes.swap_remove(at).answer,
            None => Err(self.failure(votes)),
        }
    }

    /// A read whose answers `verdict` weighs. `is_contrary` tells which answer contradicts it: its
    /// endpoint rests, and the disagreement is counted.
    ///
    /// # Errors
    /// [`ChainError`]; `Unreachable` where too few answer or no verdict comes of what they say.
    pub(in crate::chain::evm) async fn judge<'a, T, V, F, Fut>(
        &'a self,
        read: &'static str,
        op: F,
        verdict: impl Fn(&Answers<'_, T>) -> Option<V>,
        is_contrary: impl Fn(&V, &T) -> bool,
    ) -> Result<V, ChainError>
    where
        F: Fn(&'a Rpc) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let plan = self.plan(self.wave());
        let votes = self.ask(plan, op, |answers| verdict(answers).is_some()).await;
        self.conclude(read, votes, &verdict, is_contrary)
    }

    /// A read that every endpoint is asked for at once, whatever the others say.
    pub(in crate::chain::evm) async fn judge_all<'a, T, V, F, Fut>(
        &'a self,
        read: &'static str,
        op: F,
        verdict: impl Fn(&Answers<'_, T>) -> Option<V>,
    ) -> Result<V, ChainError>
    where
        F: Fn(&'a Rpc) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let plan = self.plan(usize::MAX);
        let votes = self.ask(plan, op, |answers| verdict(answers).is_some()).await;
        self.conclude(read, votes, &verdict, |_, _| false)
    }

    /// A read of what does not change, on which a quorum has to agree.
    pub(in crate::chain::evm) async fn agree<'a, T, F, Fut>(
        &'a self,
        read: &'static str,
        op: F,
    ) -> Result<T, ChainError>
    where
        T: PartialEq + Clone,
        F: Fn(&'a Rpc) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        self.judge(read, op, quorum::agreed, |verdict, other| verdict != other).await
    }

    /// A read of state on which a quorum has to agree: each at its own newest block first, and
    /// where that differs, as it may for a moment, all at the one block that a quorum has.
    pub(in crate::chain::evm) async fn agree_on_state<'a, T, F, Fut>(
        &'a self,
        read: &'static str,
        op: F,
    ) -> Result<T, ChainError>
    where
        T: PartialEq + Clone,
        F: Fn(&'a Rpc, At) -> Fut,
        Fut: Future<Output = Result<T, ChainError>>,
    {
        let plan = self.plan(self.wave());
        let until = plan.until;
        let enough = |answers: &Answers<'_, T>| {
            !quorum::is_unanimous(answers.given) || quorum::agreed(answers).is_some()
        };
        let votes = self.ask(plan, |rpc| op(rpc, At::Latest), enough).await;
        let is_one = quorum::is_unanimous(&given(&votes));
        let is_contrary = |verdict: &T, other: &T| verdict != other;
        if is_one {
            return self.conclude(read, votes, &quorum::agreed, is_contrary);
        }
        let block = self.head_until(until).await?;
        let height = At::Height(block.height().unwrap_or_default());
        let plan = Plan { until, ..self.plan(usize::MAX) };
        let enough = |answers: &Answers<'_, T>| quorum::agreed(answers).is_some();
        let votes = self.ask(plan, |rpc| op(rpc, height), enough).await;
        self.conclude(read, votes, &quorum::agreed, is_contrary)
    }

    /// The newest block that a quorum has. Now and then every endpoint is asked, so that one which
    /// lags or recovers is noticed before it is needed.
    pub(in crate::chain::evm) async fn head(&self) -> Result<Block, ChainError> {
        self.head_until(self.after(self.timeout)).await
    }

    async fn head_until(&self, until: Millis) -> Result<Block, ChainError> {
        let is_probe = self.is_probe_due();
        let wave = if is_probe { usize::MAX } else { self.wave() };
        let plan = Plan { until, ..self.plan(wave) };
        let enough = |answers: &Answers<'_, Block>| {
            (answers.open == 0 || !is_probe) && quorum::same_block(answers).is_some()
        };
        let votes = self.ask(plan, |rpc| rpc.block(At::Latest), enough).await;
        for vote in &votes {
            if let (Some(rpc), Ok(block)) = (self.endpoints.get(vote.from), &vote.answer) {
                rpc.health().saw(block.height().unwrap_or_default());
            }
        }
        let all = given(&votes);
        let block = match quorum::same_block(&self.answers(&all)) {
            Some(block) => Ok(block),
            None if all.len() < self.quorum || all.is_empty() => Err(None),
            None => self.common_block(&all, until).await.ok_or(Some("head")),
        };
        match block {
            Ok(block) => {
                self.settle("head");
                self.weigh_heads(&votes);
                self.count_usable();
                Ok(block)
            }
            Err(Some(read)) => Err(self.disagreement(read, &votes)),
            Err(None) => {
                self.count_usable();
                Err(self.failure(votes))
            }
        }
    }

    /// The newest block on which a quorum agrees although their newest ones differ.
    async fn common_block(&self, newest: &[&Block], until: Millis) -> Option<Block> {
        for height in quorum::common_heights(&self.answers(newest)) {
            let plan = Plan { until, ..self.plan(usize::MAX) };
            let enough = |answers: &Answers<'_, Block>| quorum::same_block(answers).is_some();
            let votes = self.ask(plan, |rpc| rpc.block(At::Height(height)), enough).await;
            let block = quorum::same_block(&self.answers(&given(&votes)));
            if block.is_some() {
                return block;
            }
        }
        None
    }

    /// Rests the endpoints that are behind the quorum's head, and forgives those that are not.
    fn weigh_heads(&self, votes: &[Vote<Block>]) {
        let Some((height, time)) = quorum::reference(&given(votes), self.quorum) else { return };
        let now = self.clock.now();
        for vote in votes {
            let Ok(block) = &vote.answer else { continue };
            let Some(rpc) = self.endpoints.get(vote.from) else { continue };
            let blocks = height.saturating_sub(block.height().unwrap_or_default());
            let seconds = time.saturating_sub(block.time().unwrap_or_default());
            if blocks > LAG_BLOCKS_MAX && seconds >= LAG_SECONDS_MAX {
                tracing::warn!(endpoint = rpc.shown(), blocks, "RPC endpoint lags and rests");
                rpc.health().lagging(now, blocks);
            } else {
                rpc.health().agreed();
            }
        }
    }

    fn is_probe_due(&self) -> bool {
        let now = self.clock.now();
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = notes.probed_at.is_none_or(|at| now.saturating_sub(at) >= PROBE_EVERY);
        if is_due {
            notes.probed_at = Some(now);
        }
        is_due
    }

    /// A getter's value at the newest block of one endpoint.
    pub(in crate::chain::evm) async fn read<C: SolCall + Sync>(
        &self,
        to: Address,
        call: &C,
    ) -> Result<C::Return, ChainError> {
        self.first(|rpc| rpc.read(to, call)).await
    }

    fn count_usable(&self) {
        gauge!(CHAIN_ENDPOINTS_USABLE).set(f64::from(u32::try_from(self.usable()).unwrap_or(0)));
    }
}

impl Rpc {
    /// The chain it says it serves.
    pub(in crate::chain::evm) async fn chain_id(&self) -> Result<u64, ChainError> {
        let found: U256 = self.call("eth_chainId", json!([])).await?;
        u64_of(found, "chain id")
    }

    /// A block.
    pub(in crate::chain::evm) async fn block(&self, at: At) -> Result<Block, ChainError> {
        let params = json!([at.tag(), false]);
        let block: Option<Block> = self.call("eth_getBlockByNumber", params).await?;
        let none =
            || ChainError::Unreachable(format!("{} has no block {}", self.shown(), at.tag()));
        block.ok_or_else(none)
    }
}
