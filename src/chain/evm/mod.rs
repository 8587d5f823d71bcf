//! The marketplace on an EVM chain.
//!
//! Never picks a nonce, never retries, never sends what it was not handed: it reads, signs and
//! passes bytes on. No type of the chain library leaves this folder. Relies on
//! docs/spec/contract.md; what differs between versions is in `dialect`.

mod adapter;
mod bindings;
mod broadcast;
mod connect;
mod dialect;
mod events;
mod fees;
mod health;
mod models;
mod pool;
mod proofs;
mod quorum;
mod registrar;
mod registry;
mod revert;
mod rpc;
mod version;
mod wallet;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use crate::chain::ChainError;
use crate::clock::Clock;
use crate::units::Address;

pub use connect::connect;
pub use pool::EndpointReport;
pub use proofs::SentClaim;
pub use version::ContractVersion;
pub use wallet::{
    ChallengeSignature, EvmWallet, KeyError, keystore_change_password, keystore_import,
    keystore_new, recover_digest,
};

/// Where the marketplace is and who we are there.
#[derive(Clone)]
pub struct EvmSettings {
    /// JSON-RPC endpoints, http or https, first choice first. They may carry API keys: never shown.
    pub rpc_urls: Vec<String>,
    /// Endpoints that have to agree on what frees or finalises money, 1 to their number. `None`:
    /// two of three or more, else one. Where two answer, two have to agree whatever stands here.
    pub quorum: Option<usize>,
    /// `eip155` chain id that every endpoint has to answer.
    pub chain_id: u64,
    /// The marketplace's address.
    pub marketplace: Address,
    /// The operator's pin; else the version is found.
    pub contract_version: Option<ContractVersion>,
    /// Registry of hosts; read from the marketplace when absent.
    pub node_registry: Option<Address>,
    /// Registry of models; without it no model can be checked.
    pub model_registry: Option<Address>,
    /// Where earnings are kept; read from the marketplace when absent.
    pub host_earnings: Option<Address>,
    /// The proof system, only to refuse it where it is configured as the marketplace.
    pub proof_system: Option<Address>,
    /// Longest wait for one answer, connection included, and for one read of several endpoints.
    pub request_timeout: Duration,
    /// Time, for rests of endpoints that fail.
    pub clock: Arc<dyn Clock>,
    /// The host's key.
    pub wallet: Arc<EvmWallet>,
}

impl std::fmt::Debug for EvmSettings {
    /// Without the URLs, which may carry keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EvmSettings")
            .field("rpc_url_count", &self.rpc_urls.len())
            .field("quorum", &self.quorum)
            .field("chain_id", &self.chain_id)
            .field("marketplace", &self.marketplace)
            .field("contract_version", &self.contract_version)
            .field("wallet", &self.wallet)
            .finish_non_exhaustive()
    }
}

/// Why the node must not start on this chain. Says what was wanted and what was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// A setting that cannot work.
    #[error("chain settings: {0}")]
    Settings(String),
    /// An endpoint serves another chain.
    #[error("the RPC endpoint {endpoint} serves chain {found}, configured is chain {want}")]
    WrongChainId {
        /// Its host and port.
        endpoint: String,
        /// Configured.
        want: u64,
        /// Answered.
        found: u64,
    },
    /// Nothing is deployed there.
    #[error("no contract at {address}: wrong address, or wrong chain")]
    NoCode {
        /// The configured address.
        address: Address,
    },
    /// The well-known mix-up.
    #[error(
        "{address} is the ProofSystem, not the JobMarketplace: claims sent there would be lost; \
         configure the JobMarketplace's address"
    )]
    ProofSystemNotMarketplace {
        /// The configured address.
        address: Address,
    },
    /// A contract, but no marketplace.
    #[error("the contract at {address} is no marketplace: it lacks {}", missing.join(", "))]
    SelectorsMissing {
        /// The configured address.
        address: Address,
        /// Signatures of what it lacks.
        missing: Vec<String>,
    },
    /// A marketplace that this node does not speak.
    #[error("the marketplace at {address} is {found}; this node speaks {spoken}")]
    UnsupportedVersion {
        /// The configured address.
        address: Address,
        /// Names of the versions that fit, or what was found instead.
        found: String,
        /// Names of the versions spoken here.
        spoken: String,
    },
    /// The pin says one version and the contract another.
    #[error("contract version {pinned} is pinned, but the marketplace at {address} is {found}")]
    PinContradicted {
        /// The configured address.
        address: Address,
        /// The operator's pin.
        pinned: ContractVersion,
        /// Names of the versions that fit.
        found: String,
    },
    /// The chain did not answer, or nonsense.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// The marketplace on one chain, through one or more endpoints. Made by [`connect`].
pub struct EvmChain {
    rpc: pool::Pool,
    dialect: dialect::Dialect,
    /// Where sessions are bound to models (v7).
    models: Option<models::Models>,
    chain_id: u64,
    marketplace: Address,
    host_earnings: Address,
    node_registry: Option<Address>,
    model_registry: Option<Address>,
    wallet: Arc<EvmWallet>,
}

impl std::fmt::Debug for EvmChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EvmChain")
            .field("chain_id", &self.chain_id)
            .field("marketplace", &self.marketplace)
            .field("version", &self.dialect.version())
            .field("wallet", &self.wallet)
            .finish_non_exhaustive()
    }
}

impl EvmChain {
    /// The version that was found.
    #[must_use]
    pub fn version(&self) -> ContractVersion {
        self.dialect.version()
    }

    /// Looks at each endpoint, for the operator. Reads only; waits for one request timeout.
    pub async fn endpoints(&self) -> Vec<EndpointReport> {
        self.rpc.report().await
    }

    /// Endpoints with which nothing is wrong, and all of them. No network.
    #[must_use]
    pub fn endpoints_usable(&self) -> (usize, usize) {
        (self.rpc.usable(), self.rpc.count())
    }
}
