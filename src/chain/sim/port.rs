//! The chain as the node's endpoint tells it.
//!
//! Never tells more than a real endpoint could: an answer is true, old, missing or a passing lie,
//! as the faults of the moment have it.

use async_trait::async_trait;

use super::blocks::{Block, Content, number};
use super::contract::{Deed, Reverted, Sender};
use super::faults::{Faults, Wait};
use super::pool::{Offer, SimTx};
use super::wire::{decode, deed_of, encode};
use super::{Refusal, Sent, SimChain, State};
use crate::chain::{
    Broadcast, Call, Chain, ChainError, ChainEvent, ChainJob, DryRun, Fees, Head, Inclusion,
    Limits, PrepareError, SignedTx, TxSpec, WalletState,
};
use crate::units::{
    Address, Amount, BlockNumber, ChainSeconds, ChainTime, Gas, JobId, TokenCount, TxHash,
    WalletNonce,
};

/// How often a call gives way at most.
const WAITS_MAX: u64 = 3;

impl SimChain {
    async fn wait(&self) {
        let times = {
            let mut state = self.lock();
            let percent = state.faults.waits;
            if state.rng.chance(percent) { state.rng.between(1, WAITS_MAX) } else { 0 }
        };
        Wait(times).await;
    }

    /// A question: gives way, is answered from a block that may be old, gives way again.
    async fn ask<T: std::fmt::Debug>(
        &self,
        what: &str,
        answer: impl FnOnce(&mut State, u64) -> T + Send,
    ) -> Result<T, ChainError> {
        self.wait().await;
        let answered = {
            let mut state = self.lock();
            let lag = state.lag();
            let answered = if state.is_unheard() {
                Err(ChainError::Unreachable("switched off by the simulation".to_owned()))
            } else {
                Ok(answer(&mut state, lag))
            };
            let line = format!("{what}: {answered:?}");
            state.trace.note(&line);
            answered
        };
        self.wait().await;
        answered
    }
}

impl State {
    fn is_unheard(&mut self) -> bool {
        let percent = self.faults.errors;
        self.faults.is_down || self.rng.chance(percent)
    }

    fn lag(&mut self) -> u64 {
        let Faults { lag_max, lag_is_steady, .. } = self.faults;
        if lag_is_steady { lag_max } else { self.rng.between(0, lag_max) }
    }

    /// Whether this question gets a lie: never twice in a row.
    fn lies(&mut self, question: &str) -> bool {
        let percent = self.faults.lies;
        if self.lied.remove(question) || !self.rng.chance(percent) {
            return false;
        }
        self.lied.insert(question.to_owned());
        true
    }

    fn tell_head(&mut self, lag: u64) -> Head {
        let (at, block) = self.blocks.back(lag);
        let head = Head { number: number(at), hash: block.hash, time: ChainTime::new(block.time) };
        self.told.head_time = Some(head.time.get());
        head
    }

    fn tell_job(&mut self, job: JobId, lag: u64) -> Option<ChainJob> {
        self.told.jobs.remove(&job);
        if self.lies(&format!("job {job}")) {
            // Unknown, or as it was a long time ago.
            let (is_silent, back) = (self.rng.chance(50), self.rng.between(1, 30));
            let known = self.blocks.back(back).1.contract.jobs.get(&job);
            return known.filter(|_| !is_silent).cloned();
        }
        let told = self.blocks.back(lag).1.contract.jobs.get(&job).cloned();
        self.told.jobs.extend(told.clone().map(|told| (job, told)));
        told
    }

    fn tell_wallet(&mut self, lag: u64) -> WalletState {
        let (_, block) = self.blocks.back(lag);
        let (mut nonce, balance) = (block.nonce, Amount::new(block.balance));
        if self.lies("wallet") {
            nonce += self.rng.between(1, 3);
        }
        let is_shown = lag == 0 && !self.faults.hides_pool;
        let pending = if is_shown { self.blocks.pool.next_free(nonce) } else { nonce };
        WalletState {
            nonce_mined: WalletNonce::new(nonce),
            nonce_pending: WalletNonce::new(pending),
            balance,
        }
    }

    fn tell_events(
        &mut self,
        from: BlockNumber,
        to: BlockNumber,
        lag: u64,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        let (top, _) = self.blocks.back(lag);
        let height = |block: BlockNumber| usize::try_from(block.get()).unwrap_or(usize::MAX);
        if height(to) > top {
            return Err(ChainError::Unreachable("the range ends beyond the head".to_owned()));
        }
        let events = (height(from)..=height(to)).flat_map(|at| self.blocks.events_of(at));
        let events: Vec<_> = events.collect();
        let percent = self.faults.lies;
        Ok(events.into_iter().filter(|_| !self.rng.chance(percent)).collect())
    }

    fn tell_inclusion(&mut self, tx: TxHash, lag: u64) -> Inclusion {
        if self.lies(&format!("tx {tx}")) {
            return Inclusion::Absent;
        }
        let (top, _) = self.blocks.back(lag);
        if let Some(at) = self.blocks.mined_at.get(&tx).copied().filter(|at| *at <= top)
            && let Some(block) = self.blocks.chain.get(at)
        {
            return receipt(block, at, tx);
        }
        let is_pending = self.blocks.pool.contains(tx) && !self.faults.hides_pool;
        if is_pending { Inclusion::Pending } else { Inclusion::Absent }
    }

    fn try_call(&mut self, call: &Call, lag: u64) -> DryRun {
        let deed = deed_of(call);
        let rules = self.blocks.rules;
        let (_, block) = self.blocks.back(lag);
        let time = block.time.saturating_add(rules.block_gap);
        let mut scratch = block.contract.clone();
        match scratch.apply(&deed, Sender::Host, time, &rules) {
            Ok(()) => DryRun::Succeeds(Gas::new(self.blocks.gas(&block.contract, &deed))),
            Err(rule) => {
                if lag == 0 {
                    self.judge(&deed, rule);
                }
                DryRun::Reverts(format!("{rule:?}"))
            }
        }
    }

    /// Notes a refused claim that what the node was told does not excuse.
    fn judge(&mut self, deed: &Deed, rule: Reverted) {
        let Deed::Claim { job, tokens, .. } = deed else { return };
        let newest = self.blocks.newest();
        let knew_time = self.told.head_time.is_some_and(|told| told <= newest.time);
        let knew_job = self.told.jobs.get(job) == newest.contract.jobs.get(job);
        if rule.is_planning() && knew_time && knew_job {
            self.refusals.push(Refusal { job: *job, tokens: *tokens, rule });
        }
    }

    fn send(&mut self, signed: &SignedTx) -> Broadcast {
        let faults = self.faults;
        let Some(tx) = decode(signed) else {
            return Broadcast::Rejected("these bytes are no transaction".to_owned());
        };
        self.sent.push(Sent { hash: tx.hash, nonce: tx.nonce });
        if self.is_unheard() || self.rng.chance(faults.is_silent) {
            return Broadcast::Unknown("no answer".to_owned());
        }
        if self.rng.chance(faults.refuses) {
            return Broadcast::Rejected("refused by the simulation".to_owned());
        }
        if self.rng.chance(faults.loses) {
            return Broadcast::Accepted;
        }
        if self.rng.chance(faults.delays) {
            let blocks = self.rng.between(1, 15);
            self.blocks.delay(tx, blocks);
            return Broadcast::Accepted;
        }
        if self.rng.chance(faults.duplicates) {
            let blocks = self.rng.between(1, 15);
            self.blocks.delay(tx.clone(), blocks);
        }
        let answer = self.offer(tx);
        if self.rng.chance(faults.times_out) {
            return Broadcast::Unknown("the answer was lost".to_owned());
        }
        answer
    }

    fn offer(&mut self, tx: SimTx) -> Broadcast {
        match self.blocks.offer(tx) {
            Offer::Taken => Broadcast::Accepted,
            Offer::Known => Broadcast::AlreadyKnown,
            Offer::NonceUsed => Broadcast::NonceUsed,
            Offer::Underpriced => Broadcast::Underpriced,
            Offer::Unfunded => Broadcast::Rejected("insufficient funds".to_owned()),
        }
    }
}

fn receipt(block: &Block, at: usize, hash: TxHash) -> Inclusion {
    let mined = block.contents.iter().find_map(|content| match content {
        Content::Ours(mined) if mined.tx.hash == hash => Some(mined),
        Content::Ours(_) | Content::Guest(..) => None,
    });
    let Some(mined) = mined else { return Inclusion::Absent };
    let success = mined.outcome.is_ok();
    let proven = match &mined.tx.deed {
        Deed::Claim { tokens, .. } if success => Some(TokenCount::new(*tokens)),
        _ => None,
    };
    Inclusion::Included {
        block: number(at),
        block_hash: block.hash,
        success,
        proven,
        fee: Amount::new(mined.fee),
    }
}

#[async_trait]
impl Chain for SimChain {
    fn chain_id(&self) -> u64 {
        31_337
    }

    fn marketplace(&self) -> Address {
        Address::new([0xcc; 20])
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.ask("head", State::tell_head).await
    }

    async fn limits(&self) -> Result<Limits, ChainError> {
        let rules = self.lock().blocks.rules;
        Ok(Limits {
            claim_min: TokenCount::new(rules.claim_min),
            price_unit: rules.price_unit,
            dispute_window: ChainSeconds::new(rules.dispute_window),
            fee_basis_points: 1_000,
        })
    }

    async fn job(&self, job: JobId) -> Result<Option<ChainJob>, ChainError> {
        self.ask("job", |state, lag| state.tell_job(job, lag)).await
    }

    async fn events(
        &self,
        from: BlockNumber,
        to: BlockNumber,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        self.ask("events", |state, lag| state.tell_events(from, to, lag)).await?
    }

    async fn wallet(&self) -> Result<WalletState, ChainError> {
        self.ask("wallet", State::tell_wallet).await
    }

    async fn fees(&self) -> Result<Fees, ChainError> {
        self.ask("fees", |state, _| {
            let base = state.blocks.base_fee;
            Fees { fee_max: Amount::new(base * 2 + 2), tip_max: Amount::new(2) }
        })
        .await
    }

    async fn dry_run(&self, call: &Call) -> Result<DryRun, ChainError> {
        self.ask("dry run", |state, lag| state.try_call(call, lag)).await
    }

    fn prepare(&self, call: &Call, spec: TxSpec) -> Result<SignedTx, PrepareError> {
        Ok(encode(call, spec))
    }

    async fn broadcast(&self, tx: &SignedTx) -> Broadcast {
        self.wait().await;
        let answer = {
            let mut state = self.lock();
            let answer = state.send(tx);
            state.trace.note(&format!("broadcast {}: {answer:?}", tx.hash));
            answer
        };
        self.wait().await;
        answer
    }

    async fn inclusion(&self, tx: TxHash) -> Result<Inclusion, ChainError> {
        self.ask("inclusion", |state, lag| state.tell_inclusion(tx, lag)).await
    }

    async fn earnings(&self, _token: Address) -> Result<Amount, ChainError> {
        Ok(Amount::ZERO)
    }

    fn withdrawal(&self, token: Address, amount: Amount) -> Call {
        Call::Raw { to: token, value: amount, input: b"withdraw".to_vec() }
    }

    fn transfer(&self, token: Address, to: Address, amount: Amount) -> Call {
        Call::Raw { to, value: amount, input: token.bytes().to_vec() }
    }

    async fn funds(&self, _token: Address) -> Result<Amount, ChainError> {
        Ok(Amount::new(u128::MAX))
    }
}
