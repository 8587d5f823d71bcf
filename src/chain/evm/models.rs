//! Sessions that are bound to a model: which model, and how fast its tokens may be claimed (v7).
//!
//! Never puts two states of the chain together: session and model are read at one block, by its
//! hash, and read again where that block is gone meanwhile. Relies on docs/spec/contract.md
//! sections 1 to 3; v7's source was not seen, so a claim's dry run has the last word.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloy::primitives::{B256, Bytes, U256};
use alloy::sol_types::SolCall;
use serde_json::{Value, json};

use super::bindings::v7::{getModelRateLimitCall, modelRegistryCall, sessionModelCall};
use super::bindings::{nodeRegistryCall, sessionJobsCall};
use super::dialect::{Dialect, Rate};
use super::pool::At;
use super::rpc::{Rpc, RpcFailure};
use super::wire::{Block, address_of, hash_of, u64_of};
use super::{ConnectError, EvmSettings, revert};
use crate::chain::{ChainError, ChainJob};
use crate::units::{Address, ChainSeconds, ChainTime, Hash32, JobId};

/// Readings of a session before giving up, each at another block: a reorg takes one at most.
const READINGS_MAX: usize = 3;

/// How long a model's rate is taken for unchanged, by the chain's clock. Its owner may change it at
/// any time; a claim that is planned too high fails its dry run, which forgets all rates.
const RATE_AGE_MAX: ChainSeconds = ChainSeconds::new(60);

/// A rate as it was read.
#[derive(Debug, Clone, Copy)]
struct Known {
    tokens_per_second: u64,
    read_at: ChainTime,
}

/// The models of one marketplace's sessions.
pub(super) struct Models {
    dialect: Dialect,
    marketplace: Address,
    registry: Address,
    /// By endpoint and model: what one endpoint said is never told as another's word. As many as
    /// there are models that sessions were opened for.
    rates: Mutex<BTreeMap<(String, Hash32), Known>>,
}

/// A rate as the registry tells it. What is larger than any real rate stands for "no limit".
pub(super) fn rate(told: U256) -> u64 {
    u64::try_from(told).unwrap_or(u64::MAX)
}

/// Why a reading at one block came to nothing.
enum Missed {
    /// The endpoint does not know the block (any more).
    Gone(ChainError),
    /// Asking again at another block would not help.
    Failed(ChainError),
}

/// Finds the model registry that the marketplace goes by: the one that it names itself, else the
/// configured one, else the one of the registry of hosts. `None` where sessions name no model.
///
/// # Errors
/// [`ConnectError::Settings`] where there is none; [`ConnectError::Chain`].
pub(super) async fn find(
    rpc: &Rpc,
    settings: &EvmSettings,
    dialect: Dialect,
) -> Result<Option<Address>, ConnectError> {
    if dialect.rate() != Rate::OfModel {
        return Ok(None);
    }
    let marketplace = settings.marketplace;
    let mut registry = named_by(rpc, marketplace).await?.or(settings.model_registry);
    if registry.is_none() {
        let nodes = match settings.node_registry {
            Some(nodes) => nodes,
            None => rpc.read(marketplace, &nodeRegistryCall {}).await.map(address_of)?,
        };
        registry = named_by(rpc, nodes).await?;
    }
    let Some(registry) = registry else {
        let version = dialect.version();
        let words = format!("a {version} marketplace needs the model registry's address");
        return Err(ConnectError::Settings(words));
    };
    Ok(Some(registry))
}

/// `modelRegistry()` of a contract that may not have it: a missing getter reverts, or answers
/// nothing through the payable fallback.
async fn named_by(rpc: &Rpc, contract: Address) -> Result<Option<Address>, ChainError> {
    let data = Bytes::from(modelRegistryCall {}.abi_encode());
    let params = json!([{"to": contract.to_string(), "data": data}, "latest"]);
    let returned = match rpc.call::<Bytes>("eth_call", params).await {
        Ok(returned) => returned,
        Err(RpcFailure::Refused(refusal)) if revert::words(&refusal).is_some() => return Ok(None),
        Err(failure) => return Err(failure.into()),
    };
    let named = modelRegistryCall::abi_decode_returns(&returned).ok().map(address_of);
    Ok(named.filter(|address| *address != Address::ZERO))
}

impl Models {
    /// Those of `marketplace`, whose rates stand in `registry`.
    pub(super) fn new(dialect: Dialect, marketplace: Address, registry: Address) -> Self {
        Self { dialect, marketplace, registry, rates: Mutex::default() }
    }

    /// Where their rates stand.
    pub(super) fn registry(&self) -> Address {
        self.registry
    }

    /// The session with its model and rate, all at one block, or `None` where the contract knows no
    /// such job. At a height, where endpoints are compared, no rate is taken from memory.
    ///
    /// # Errors
    /// [`ChainError`].
    pub(super) async fn session(
        &self,
        rpc: &Rpc,
        job: JobId,
        at: At,
    ) -> Result<Option<ChainJob>, ChainError> {
        let mut gone = None;
        for _ in 0..READINGS_MAX {
            let block = rpc.block(at).await?;
            if let At::Height(_) = at {
                self.rates().retain(|(endpoint, _), _| endpoint != rpc.shown());
            }
            match self.session_at(rpc, job, &block).await {
                Ok(session) => return Ok(session),
                Err(Missed::Gone(error)) => gone = Some(error),
                Err(Missed::Failed(error)) => return Err(error),
            }
        }
        let lost = || ChainError::Unreachable(format!("job {job}: no block stayed"));
        Err(gone.unwrap_or_else(lost))
    }

    /// Has every rate read anew.
    pub(super) fn forget_rates(&self) {
        self.rates().clear();
    }

    async fn session_at(
        &self,
        rpc: &Rpc,
        job: JobId,
        block: &Block,
    ) -> Result<Option<ChainJob>, Missed> {
        let id = U256::from(job.get());
        let (session_call, model_call) =
            (sessionJobsCall { jobId: id }, sessionModelCall { jobId: id });
        let (session, model) = tokio::try_join!(
            call_at(rpc, self.marketplace, &session_call, block),
            call_at(rpc, self.marketplace, &model_call, block),
        )?;
        let Some(session) = self.dialect.session(job, &session).map_err(Missed::Failed)? else {
            return Ok(None);
        };
        let model = sessionModelCall::abi_decode_returns(&model).map_err(|error| {
            Missed::Failed(ChainError::Unexpected(format!("job {job}: sessionModel: {error}")))
        })?;
        let rate_per_second = self.rate(rpc, hash_of(model), block).await?;
        let model = (!model.is_zero()).then(|| hash_of(model));
        Ok(Some(ChainJob { rate_per_second, model, ..session }))
    }

    async fn rate(&self, rpc: &Rpc, model: Hash32, block: &Block) -> Result<u64, Missed> {
        let now = u64_of(block.timestamp, "block time").map_err(Missed::Failed)?;
        let now = ChainTime::new(now);
        let key = (rpc.shown().to_owned(), model);
        let is_young =
            |known: &&Known| known.read_at <= now && now < known.read_at.after(RATE_AGE_MAX);
        if let Some(known) = self.rates().get(&key).filter(is_young) {
            return Ok(known.tokens_per_second);
        }
        let call = getModelRateLimitCall { modelId: B256::new(*model.bytes()) };
        let returned = call_at(rpc, self.registry, &call, block).await?;
        let rate = getModelRateLimitCall::abi_decode_returns(&returned).map_err(|error| {
            let words = format!("getModelRateLimit of {}: {error}", self.registry);
            Missed::Failed(ChainError::Unexpected(words))
        })?;
        let tokens_per_second = self::rate(rate);
        self.rates().insert(key, Known { tokens_per_second, read_at: now });
        Ok(tokens_per_second)
    }

    fn rates(&self) -> MutexGuard<'_, BTreeMap<(String, Hash32), Known>> {
        // Plain numbers: nothing half-changed can be seen.
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `eth_call` at a block by its hash (EIP-1898).
async fn call_at<C: SolCall>(
    rpc: &Rpc,
    to: Address,
    call: &C,
    block: &Block,
) -> Result<Bytes, Missed> {
    let data = Bytes::from(call.abi_encode());
    let at = json!({"blockHash": block.hash, "requireCanonical": true});
    let params: Value = json!([{"to": to.to_string(), "data": data}, at]);
    rpc.call("eth_call", params).await.map_err(|failure| match failure {
        RpcFailure::Refused(refusal) => match revert::words(&refusal) {
            Some(words) => {
                let words = format!("{} of {to} reverts: {words}", C::SIGNATURE);
                Missed::Failed(ChainError::Unexpected(words))
            }
            None => Missed::Gone(RpcFailure::Refused(refusal).into()),
        },
        failure => Missed::Failed(failure.into()),
    })
}
