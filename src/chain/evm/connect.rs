//! Finding out, before anything is served, that this is the right chain and the right contract.
//!
//! Never sends a transaction and never falls back to a default version: a payable fallback makes a
//! wrong selector succeed and do nothing (docs/spec/contract.md section 1).

use alloy::primitives::{B256, Bytes, U256, b256};
use alloy::sol_types::SolCall;
use serde_json::json;

use super::bindings::{hostEarningsCall, nextJobIdCall, nodeRegistryCall, sessionJobsCall};
use super::dialect::{self, Dialect};
use super::pool::Pool;
use super::rpc::Rpc;
use super::version::{ContractVersion, Look, look};
use super::wire::{address_of, job_of};
use super::{ConnectError, EvmChain, EvmSettings, models};
use crate::chain::ChainError;
use crate::units::Address;

/// EIP-1967: where a proxy keeps the address of its code.
const IMPLEMENTATION_SLOT: B256 =
    b256!("360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc");

/// What is found out before anything is served.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    version: ContractVersion,
    /// Where the rates of models stand, of a version that binds sessions to models.
    rates: Option<Address>,
    host_earnings: Address,
    node_registry: Option<Address>,
}

/// Connects and checks chain id, code, selectors and the session getter's shape. Endpoints that do
/// not answer are left for later, as long as the quorum is there; one of another chain is refused.
///
/// # Errors
/// [`ConnectError`]: what was wanted and what was found. [`ConnectError::Chain`] with
/// `Unreachable` may pass by itself; all others need the operator.
pub async fn connect(settings: EvmSettings) -> Result<EvmChain, ConnectError> {
    let pool = Pool::new(&settings)?;
    pool.check_chain_ids().await?;
    if settings.proof_system == Some(settings.marketplace) {
        return Err(ConnectError::ProofSystemNotMarketplace { address: settings.marketplace });
    }
    // Agreed upon as it was found, faults included: one endpoint's word neither passes off another
    // contract as the marketplace nor keeps the node from starting.
    let explored = |rpc| explore_or_fail(rpc, &settings);
    let found = pool.agree("contract", explored).await??;
    let dialect = Dialect::of(found.version);
    let bind = |registry| models::Models::new(dialect, settings.marketplace, registry);
    Ok(EvmChain {
        rpc: pool,
        dialect,
        models: found.rates.map(bind),
        chain_id: settings.chain_id,
        marketplace: settings.marketplace,
        host_earnings: found.host_earnings,
        node_registry: found.node_registry,
        model_registry: settings.model_registry,
        wallet: settings.wallet,
    })
}

/// A silence apart from what was found: another endpoint may answer.
async fn explore_or_fail(
    rpc: &Rpc,
    settings: &EvmSettings,
) -> Result<Result<Found, ConnectError>, ChainError> {
    match explore(rpc, settings).await {
        Err(ConnectError::Chain(error)) => Err(error),
        explored => Ok(explored),
    }
}

/// Looks at the contract through one endpoint.
async fn explore(rpc: &Rpc, settings: &EvmSettings) -> Result<Found, ConnectError> {
    let dialect = find_dialect(rpc, settings).await?;
    let marketplace = settings.marketplace;
    let host_earnings = match settings.host_earnings {
        Some(address) => address,
        None => rpc.read(marketplace, &hostEarningsCall {}).await.map(address_of)?,
    };
    let node_registry = match settings.node_registry {
        Some(address) => Some(address),
        // Only the preflight needs it: its absence is told there.
        None => rpc.read(marketplace, &nodeRegistryCall {}).await.ok().map(address_of),
    };
    Ok(Found {
        version: dialect.version(),
        rates: models::find(rpc, settings, dialect).await?,
        host_earnings,
        node_registry: node_registry.filter(|address| *address != Address::ZERO),
    })
}

/// The version by selectors and shape, then a decode of the newest session where there is one.
async fn find_dialect(rpc: &Rpc, settings: &EvmSettings) -> Result<Dialect, ConnectError> {
    let address = settings.marketplace;
    let by_selector = versions_in_code(rpc, settings).await?;
    // Job 0 never exists, so this is a session of zeros, whose width is certain.
    let zeros = rpc.eth_call(address, &sessionJobsCall { jobId: U256::ZERO }, "latest").await?;
    let fitting = |version: &ContractVersion| dialect::fits_session(*version, &zeros);
    let fitting: Vec<_> = by_selector.iter().copied().filter(fitting).collect();
    let chosen = match settings.contract_version {
        Some(pinned) if fitting.contains(&pinned) => pinned,
        Some(pinned) => {
            let found = found(&by_selector, &fitting, zeros.len());
            return Err(ConnectError::PinContradicted { address, pinned, found });
        }
        None => match fitting[..] {
            [only] => only,
            _ => return Err(unsupported(address, found(&by_selector, &fitting, zeros.len()))),
        },
    };
    let dialect = Dialect::of(chosen);
    trial_decode(rpc, address, dialect).await?;
    Ok(dialect)
}

async fn versions_in_code(
    rpc: &Rpc,
    settings: &EvmSettings,
) -> Result<Vec<ContractVersion>, ConnectError> {
    let address = settings.marketplace;
    let mut code = rpc.code(address).await?;
    if code.is_empty() {
        return Err(ConnectError::NoCode { address });
    }
    if let Some(implementation) = rpc.implementation(address).await? {
        code = rpc.code(implementation).await?;
    }
    match look(&code) {
        Look::Marketplace(versions) => Ok(versions),
        Look::ProofSystem => Err(ConnectError::ProofSystemNotMarketplace { address }),
        Look::Other(missing) => {
            let missing = missing.into_iter().map(str::to_owned).collect();
            Err(ConnectError::SelectorsMissing { address, missing })
        }
    }
}

/// Decodes the newest session: the width may fit and the order still be another.
async fn trial_decode(rpc: &Rpc, address: Address, dialect: Dialect) -> Result<(), ConnectError> {
    let next: U256 = rpc.read(address, &nextJobIdCall {}).await?;
    let newest = next.saturating_sub(U256::from(1));
    if newest.is_zero() {
        return Ok(());
    }
    let returned = rpc.eth_call(address, &sessionJobsCall { jobId: newest }, "latest").await?;
    dialect.session(job_of(newest)?, &returned)?;
    Ok(())
}

fn unsupported(address: Address, found: String) -> ConnectError {
    ConnectError::UnsupportedVersion { address, found, spoken: dialect::spoken() }
}

/// What was found, in words: versions that fit, or why none does.
fn found(by_selector: &[ContractVersion], fitting: &[ContractVersion], bytes: usize) -> String {
    let names = |list: &[ContractVersion]| {
        list.iter().map(|version| version.name()).collect::<Vec<_>>().join(" or ")
    };
    if fitting.is_empty() {
        let claim = names(by_selector);
        return format!("{claim} by its claim function, but its sessions have {bytes} bytes");
    }
    names(fitting)
}

impl Rpc {
    /// The code at an address; empty where there is none.
    pub(super) async fn code(&self, address: Address) -> Result<Bytes, ChainError> {
        Ok(self.call("eth_getCode", json!([address.to_string(), "latest"])).await?)
    }

    /// Native balance at the newest block, wei.
    pub(super) async fn balance(&self, address: Address) -> Result<U256, ChainError> {
        Ok(self.call("eth_getBalance", json!([address.to_string(), "latest"])).await?)
    }

    /// Where an EIP-1967 proxy keeps its code; `None` for any other contract.
    pub(super) async fn implementation(
        &self,
        address: Address,
    ) -> Result<Option<Address>, ChainError> {
        let params = json!([address.to_string(), IMPLEMENTATION_SLOT, "latest"]);
        let word: U256 = self.call("eth_getStorageAt", params).await?;
        let bytes = word.to_be_bytes::<32>();
        let address = bytes.last_chunk::<20>().map(|bytes| Address::new(*bytes));
        Ok(address.filter(|address| *address != Address::ZERO))
    }

    /// `eth_call`: the returned bytes.
    pub(super) async fn eth_call<C: SolCall>(
        &self,
        to: Address,
        call: &C,
        block: &str,
    ) -> Result<Bytes, ChainError> {
        let data = Bytes::from(call.abi_encode());
        let params = json!([{"to": to.to_string(), "data": data}, block]);
        Ok(self.call("eth_call", params).await?)
    }

    /// A getter's value at the newest block.
    pub(super) async fn read<C: SolCall>(
        &self,
        to: Address,
        call: &C,
    ) -> Result<C::Return, ChainError> {
        let returned = self.eth_call(to, call, "latest").await?;
        C::abi_decode_returns(&returned)
            .map_err(|error| ChainError::Unexpected(format!("{} of {to}: {error}", C::SIGNATURE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::keccak256;

    #[test]
    fn the_proxy_slot_is_the_one_that_the_standard_derives() {
        let slot = U256::from_be_bytes(keccak256("eip1967.proxy.implementation").0);
        assert_eq!(B256::from(slot - U256::from(1)), IMPLEMENTATION_SLOT);
    }
}
