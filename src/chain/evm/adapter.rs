//! The port [`Chain`], implemented.
//!
//! Never caches: settlement decides on what the chain says now. Relies on `connect` for having
//! checked the contract, on `dialect` for shapes, on `broadcast` for the meaning of refusals, on
//! `pool` for whom to ask and on `quorum` for what several answers mean.

use alloy::consensus::{SignableTransaction, TxEip1559};
use alloy::eips::eip2718::Encodable2718;
use alloy::primitives::{B256, Bytes, TxKind, U256};
use alloy::sol_types::SolCall;
use async_trait::async_trait;
use serde_json::{Value, json};

use super::bindings::{
    DISPUTE_WINDOWCall, FEE_BASIS_POINTSCall, MIN_PROVEN_TOKENSCall, PRICE_PRECISIONCall,
    completeSessionJobCall, disputeWindowCall, earnings, erc20, feeBasisPointsCall,
    sessionJobsCall,
};
use super::dialect::Claim;
use super::pool::At;
use super::rpc::{Rpc, RpcFailure};
use super::wire::{Receipt, Transaction, evm, u64_of, u128_of};
use super::{EvmChain, broadcast, events, fees, quorum, revert};
use crate::chain::{
    Broadcast, Call, Chain, ChainError, ChainEvent, ChainJob, DryRun, Fees, Head, Inclusion,
    Limits, PrepareError, SignedTx, TxSpec, Wallet, WalletState,
};
use crate::units::{
    Address, Amount, BlockHash, BlockNumber, ChainSeconds, ChainTime, Gas, JobId, PriceUnit,
    TokenCount, TxHash, WalletNonce,
};

#[async_trait]
impl Chain for EvmChain {
    fn chain_id(&self) -> u64 {
        self.chain_id
    }

    fn marketplace(&self) -> Address {
        self.marketplace
    }

    async fn head(&self) -> Result<Head, ChainError> {
        let block = self.rpc.head().await?;
        Ok(Head {
            number: BlockNumber::new(u64_of(block.number, "block number")?),
            hash: BlockHash::new(block.hash.0),
            time: ChainTime::new(u64_of(block.timestamp, "block time")?),
        })
    }

    async fn limits(&self) -> Result<Limits, ChainError> {
        self.rpc.agree("limits", |rpc| self.limits_on(rpc)).await
    }

    async fn job(&self, job: JobId) -> Result<Option<ChainJob>, ChainError> {
        self.rpc.agree_on_state("job", |rpc, at| self.job_on(rpc, job, at)).await
    }

    async fn events(
        &self,
        from: BlockNumber,
        to: BlockNumber,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        let filter = events::filter(self.marketplace, self.dialect);
        let fetch = |rpc| events::fetch(rpc, &filter, from, to);
        let logs = self.rpc.first_with(to, fetch).await?;
        events::read(logs, self.marketplace, self.wallet.address(), self.dialect)
    }

    async fn wallet(&self) -> Result<WalletState, ChainError> {
        let on = |rpc| self.wallet_on(rpc);
        self.rpc.judge("wallet", on, quorum::wallet, |_, _| false).await
    }

    async fn fees(&self) -> Result<Fees, ChainError> {
        self.rpc.judge("fees", fees::on, quorum::fees, |_, _| false).await
    }

    async fn dry_run(&self, call: &Call) -> Result<DryRun, ChainError> {
        let on = |rpc| self.dry_run_on(rpc, call);
        self.rpc.judge("dry_run", on, quorum::dry_run, |_, _| false).await
    }

    fn prepare(&self, call: &Call, spec: TxSpec) -> Result<SignedTx, PrepareError> {
        let Target { to, value, input } = self.target(call)?;
        if spec.fees.tip_max > spec.fees.fee_max {
            return Err(PrepareError(format!(
                "nonce {}: tip {} above the whole fee {}",
                spec.nonce, spec.fees.tip_max, spec.fees.fee_max
            )));
        }
        let tx = TxEip1559 {
            chain_id: self.chain_id,
            nonce: spec.nonce.get(),
            gas_limit: spec.gas_limit.get(),
            max_fee_per_gas: spec.fees.fee_max.get(),
            max_priority_fee_per_gas: spec.fees.tip_max.get(),
            to: TxKind::Call(evm(to)),
            value: U256::from(value.get()),
            access_list: Default::default(),
            input,
        };
        let signature = self.wallet.sign(tx.signature_hash())?;
        let signed = tx.into_signed(signature);
        Ok(SignedTx { hash: TxHash::new(signed.hash().0), raw: signed.encoded_2718() })
    }

    async fn broadcast(&self, tx: &SignedTx) -> Broadcast {
        let on = |rpc| self.broadcast_on(rpc, tx);
        match self.rpc.judge_all("broadcast", on, quorum::broadcast).await {
            Ok(outcome) => outcome,
            Err(ChainError::Unreachable(words) | ChainError::Unexpected(words)) => {
                Broadcast::Unknown(words)
            }
        }
    }

    async fn inclusion(&self, tx: TxHash) -> Result<Inclusion, ChainError> {
        let on = |rpc| self.inclusion_on(rpc, tx);
        self.rpc.judge("inclusion", on, quorum::inclusion, quorum::is_contrary_sight).await
    }

    async fn earnings(&self, token: Address) -> Result<Amount, ChainError> {
        let host = evm(self.wallet.address());
        let call = earnings::getBalanceCall { host, token: evm(token) };
        let balance: U256 = self.rpc.read(self.host_earnings, &call).await?;
        u128_of(balance, "earnings").map(Amount::new)
    }

    fn withdrawal(&self, token: Address, amount: Amount) -> Call {
        let amount = U256::from(amount.get());
        let call = earnings::withdrawCall { amount, token: evm(token) };
        let input = call.abi_encode();
        Call::Raw { to: self.host_earnings, value: Amount::ZERO, input }
    }

    fn transfer(&self, token: Address, to: Address, amount: Amount) -> Call {
        if token == Address::ZERO {
            return Call::Raw { to, value: amount, input: Vec::new() };
        }
        let amount = U256::from(amount.get());
        let input = erc20::transferCall { to: evm(to), amount }.abi_encode();
        Call::Raw { to: token, value: Amount::ZERO, input }
    }

    async fn funds(&self, token: Address) -> Result<Amount, ChainError> {
        let owner = self.marketplace;
        let held: U256 = if token == Address::ZERO {
            self.rpc.first(|rpc| rpc.balance(owner)).await?
        } else {
            self.rpc.read(token, &erc20::balanceOfCall { owner: evm(owner) }).await?
        };
        u128_of(held, "marketplace's funds").map(Amount::new)
    }
}

/// What a call is on the wire.
struct Target {
    to: Address,
    value: Amount,
    input: Bytes,
}

/// Reads on one endpoint, from the first request to the last.
impl EvmChain {
    async fn limits_on(&self, rpc: &Rpc) -> Result<Limits, ChainError> {
        let claim_min: U256 = rpc.read(self.marketplace, &MIN_PROVEN_TOKENSCall {}).await?;
        let window = self.dispute_window_on(rpc).await?;
        let fee = self.either(rpc, &FEE_BASIS_POINTSCall {}, &feeBasisPointsCall {}).await?;
        let unit = match self.optional(rpc, &PRICE_PRECISIONCall {}).await? {
            Some(unit) => PriceUnit::new(u64_of(unit, "PRICE_PRECISION")?)
                .ok_or_else(|| ChainError::Unexpected("PRICE_PRECISION is 0".into()))?,
            None => PriceUnit::ONE,
        };
        Ok(Limits {
            claim_min: TokenCount::new(u64_of(claim_min, "MIN_PROVEN_TOKENS")?),
            price_unit: unit,
            dispute_window: window,
            fee_basis_points: u64_of(fee, "fee basis points")?,
        })
    }

    /// Read from the contract, in either spelling; a version that may have no getter has a window
    /// of its own.
    async fn dispute_window_on(&self, rpc: &Rpc) -> Result<ChainSeconds, ChainError> {
        let window = match self.dialect.dispute_window() {
            Some(window) => match self.optional(rpc, &DISPUTE_WINDOWCall {}).await? {
                Some(read) => read,
                None => return Ok(window),
            },
            None => self.either(rpc, &DISPUTE_WINDOWCall {}, &disputeWindowCall {}).await?,
        };
        u64_of(window, "dispute window").map(ChainSeconds::new)
    }

    async fn job_on(&self, rpc: &Rpc, job: JobId, at: At) -> Result<Option<ChainJob>, ChainError> {
        if let Some(models) = &self.models {
            return models.session(rpc, job, at).await;
        }
        let call = sessionJobsCall { jobId: U256::from(job.get()) };
        let returned = rpc.eth_call(self.marketplace, &call, &at.tag()).await?;
        self.dialect.session(job, &returned)
    }

    async fn wallet_on(&self, rpc: &Rpc) -> Result<WalletState, ChainError> {
        let host = self.wallet.address().to_string();
        let (mined, pending, balance): (U256, U256, U256) = tokio::try_join!(
            rpc.call("eth_getTransactionCount", json!([host, "latest"])),
            rpc.call("eth_getTransactionCount", json!([host, "pending"])),
            rpc.call("eth_getBalance", json!([host, "latest"])),
        )?;
        let mined = u64_of(mined, "nonce")?;
        // A block may come between the two answers; the pool is never behind the chain.
        let pending = u64_of(pending, "nonce")?.max(mined);
        Ok(WalletState {
            nonce_mined: WalletNonce::new(mined),
            nonce_pending: WalletNonce::new(pending),
            balance: Amount::new(u128_of(balance, "balance")?),
        })
    }

    async fn dry_run_on(&self, rpc: &Rpc, call: &Call) -> Result<DryRun, ChainError> {
        let unsigned = |error: PrepareError| ChainError::Unexpected(error.to_string());
        let Target { to, value, input } = self.target(call).map_err(unsigned)?;
        let host = self.wallet.address().to_string();
        let value = format!("{:#x}", value.get());
        let tx = json!({"from": host, "to": to.to_string(), "data": input, "value": value});
        // Without a gas price, so that a poor wallet is not told as a revert.
        match rpc.call::<U256>("eth_estimateGas", json!([tx, "pending"])).await {
            Ok(gas) => Ok(DryRun::Succeeds(Gas::new(u64_of(gas, "gas estimate")?))),
            Err(RpcFailure::Refused(refusal)) => match revert::words(&refusal) {
                Some(words) => {
                    if let Some(models) = &self.models {
                        // A model's rate may have been lowered since it was read.
                        models.forget_rates();
                    }
                    Ok(DryRun::Reverts(words))
                }
                None => Err(RpcFailure::Refused(refusal).into()),
            },
            Err(failure) => Err(failure.into()),
        }
    }

    /// An answer that says nothing for sure is none: the others' count instead.
    async fn broadcast_on(&self, rpc: &Rpc, tx: &SignedTx) -> Result<Broadcast, ChainError> {
        let raw = Bytes::copy_from_slice(&tx.raw);
        let answer = rpc.call::<B256>("eth_sendRawTransaction", json!([raw])).await;
        match broadcast::classify(tx.hash, answer.map(|hash| TxHash::new(hash.0))) {
            Broadcast::Unknown(words) => Err(ChainError::Unreachable(words)),
            said => Ok(said),
        }
    }

    async fn inclusion_on(&self, rpc: &Rpc, tx: TxHash) -> Result<Inclusion, ChainError> {
        let params = json!([tx.to_string()]);
        let receipt: Option<Receipt> =
            rpc.call("eth_getTransactionReceipt", params.clone()).await?;
        if let Some(receipt) = receipt {
            return self.included(tx, receipt);
        }
        let pooled: Option<Transaction> = rpc.call("eth_getTransactionByHash", params).await?;
        match pooled {
            None => Ok(Inclusion::Absent),
            // In a block whose receipt is not served yet, or in the pool: ask again.
            Some(found) if found.hash.0 == *tx.bytes() => Ok(Inclusion::Pending),
            Some(found) => Err(ChainError::Unexpected(format!("{tx}: got {}", found.hash))),
        }
    }

    /// Signs where the version wants the host's signature in a claim.
    fn target(&self, call: &Call) -> Result<Target, PrepareError> {
        let of = |to, input| Target { to, value: Amount::ZERO, input };
        Ok(match call {
            Call::Claim { job, tokens, proof } => {
                let claim = Claim { job: *job, tokens: *tokens, proof };
                let input = self.dialect.claim(&claim, self.wallet.as_ref())?;
                of(self.marketplace, input.into())
            }
            Call::Complete { job } => {
                // The text names a stored conversation; nothing is stored, so it is empty.
                let complete = completeSessionJobCall {
                    jobId: U256::from(job.get()),
                    conversationCID: String::new(),
                };
                of(self.marketplace, complete.abi_encode().into())
            }
            Call::Nothing => of(self.wallet.address(), Bytes::new()),
            Call::Raw { to, value, input } => {
                Target { to: *to, value: *value, input: input.clone().into() }
            }
        })
    }

    /// A getter that may not exist. A missing one reverts, or answers nothing through the payable
    /// fallback.
    async fn optional<C: SolCall<Return = U256>>(
        &self,
        rpc: &Rpc,
        call: &C,
    ) -> Result<Option<U256>, ChainError> {
        let data = Bytes::from(call.abi_encode());
        let params: Value = json!([{"to": self.marketplace.to_string(), "data": data}, "latest"]);
        match rpc.call::<Bytes>("eth_call", params).await {
            Ok(returned) => Ok(C::abi_decode_returns(&returned).ok()),
            Err(RpcFailure::Refused(refusal)) if revert::words(&refusal).is_some() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// The first of two spellings of a getter that exists.
    async fn either<A, B>(&self, rpc: &Rpc, older: &A, newer: &B) -> Result<U256, ChainError>
    where
        A: SolCall<Return = U256>,
        B: SolCall<Return = U256>,
    {
        if let Some(value) = self.optional(rpc, older).await? {
            return Ok(value);
        }
        let missing = || {
            let names = format!("neither {} nor {}", A::SIGNATURE, B::SIGNATURE);
            ChainError::Unexpected(format!("marketplace has {names}"))
        };
        self.optional(rpc, newer).await?.ok_or_else(missing)
    }

    fn included(&self, tx: TxHash, receipt: Receipt) -> Result<Inclusion, ChainError> {
        let odd = |what: &str| ChainError::Unexpected(format!("receipt of {tx}: {what}"));
        if receipt.transaction_hash.0 != *tx.bytes() {
            return Err(odd("is another transaction's"));
        }
        let (Some(number), Some(hash)) = (receipt.block_number, receipt.block_hash) else {
            return Ok(Inclusion::Pending);
        };
        let success = match receipt.status {
            Some(status) if status == U256::from(1) => true,
            Some(status) if status.is_zero() => false,
            _ => return Err(odd("has no status")),
        };
        let host = self.wallet.address();
        let proven = events::proven_in(&receipt.logs, self.marketplace, host, self.dialect)?;
        Ok(Inclusion::Included {
            block: BlockNumber::new(u64_of(number, "block number")?),
            block_hash: BlockHash::new(hash.0),
            success,
            proven: proven.filter(|_| success).map(|proven| proven.tokens),
            fee: fees::paid(&receipt).ok_or_else(|| odd("has no price or an absurd one"))?,
        })
    }
}
