//! The port to what surrounds the marketplace: who may host, what may be served.
//!
//! Never part of settlement: the preflight, `tally doctor` and the commands that register read it,
//! nothing else decides on it, and what is written goes out through settlement. Relies on
//! docs/spec/contract.md section 4.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sha3::{Digest, Keccak256};

use super::{Call, ChainError};
use crate::units::{Address, Amount, Hash32};

/// How the registries name a model: keccak256 of `repo/file`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(Hash32);

impl ModelId {
    /// The name of `file` in the hub's repository `repo` (`owner/name`), bytes as they are.
    #[must_use]
    pub fn of(repo: &str, file: &str) -> Self {
        let mut hasher = Keccak256::new();
        hasher.update(repo);
        hasher.update("/");
        hasher.update(file);
        Self(Hash32::new(hasher.finalize().into()))
    }

    /// A name that the registry told.
    #[must_use]
    pub const fn from_hash(hash: Hash32) -> Self {
        Self(hash)
    }

    /// The digest.
    #[must_use]
    pub const fn hash(self) -> Hash32 {
        self.0
    }
}

/// Why a registry has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Its address is unknown: neither configured nor told by the marketplace.
    #[error("the address of the {0} is not configured")]
    NotConfigured(&'static str),
    /// The contract there lacks what every node registry has.
    #[error("the contract at {address} is no node registry: it lacks {missing}")]
    NoRegistry {
        /// Its address.
        address: Address,
        /// What it lacks.
        missing: &'static str,
    },
    /// The chain did not answer as hoped.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// A host as the node registry holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStanding {
    /// Registered, staked and active.
    pub active: bool,
    /// Where clients are told to reach it; empty where it is not registered.
    pub api_url: String,
}

/// A model as the model registry holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelStanding {
    /// Whether hosts may offer it.
    pub approved: bool,
    /// SHA-256 of the weight file; `None` for a model the registry does not know.
    pub weights_sha256: Option<Hash32>,
}

/// What sessions for one model come under, where the contract binds sessions to models.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelTerms {
    /// Tokens a second that may be claimed; 0 where the model registry sets no rate, and then no
    /// claim passes.
    pub rate_per_second: u64,
    /// The host's lowest price for each payment token (zero: native), price units per LLM token;
    /// 0 where it set none, and then no session can be opened in that token.
    pub prices: BTreeMap<Address, u128>,
}

/// Reads for the preflight. All of them are network reads.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Name of the contract version that was found, such as `v3`.
    fn contract_version(&self) -> &'static str;

    /// The host whose standing is read.
    fn host(&self) -> Address;

    /// Whether a contract is at the address.
    async fn has_code(&self, address: Address) -> Result<bool, ChainError>;

    /// How the host is registered.
    async fn host_standing(&self) -> Result<HostStanding, RegistryError>;

    /// Whether the host registered the model.
    async fn host_supports(&self, model: ModelId) -> Result<bool, RegistryError>;

    /// How the model is registered.
    async fn model_standing(&self, model: ModelId) -> Result<ModelStanding, RegistryError>;

    /// Whether the contract binds each session to a model (v7). No network.
    fn binds_models(&self) -> bool;

    /// What sessions for the model come under, with a price for each of these payment tokens (zero:
    /// native). Only where [`Self::binds_models`].
    async fn model_terms(
        &self,
        model: ModelId,
        tokens: &[Address],
    ) -> Result<ModelTerms, RegistryError>;

    /// The host's native balance, which pays for gas.
    async fn gas_balance(&self) -> Result<Amount, ChainError>;
}

/// What a deployed node registry can do, found by looking at its code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegistryShape {
    /// `registerNode` takes two lowest prices.
    pub has_prices: bool,
    /// They can be changed later.
    pub can_change_prices: bool,
    /// There is a lowest price for each model and payment token.
    pub has_model_prices: bool,
}

/// What clients read of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// JSON.
    pub metadata: String,
    /// Where clients reach it.
    pub api_url: String,
    /// Models it offers.
    pub models: Vec<ModelId>,
    /// Lowest prices, native and in payment tokens, where the registry has them.
    pub prices: Option<(u128, u128)>,
}

/// What registering costs, and what of it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stake {
    /// The ERC-20 it is paid in.
    pub token: Address,
    /// How much is locked.
    pub needed: Amount,
    /// How much the registry may take from the host's wallet now.
    pub allowed: Amount,
    /// How much the host's wallet holds.
    pub held: Amount,
}

/// A write to the registry, or one that it needs first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryWrite {
    /// The stake's ERC-20 lets the registry take this much, and no more.
    ApproveStake {
        /// The ERC-20.
        token: Address,
        /// How much.
        amount: Amount,
    },
    /// The host is entered.
    Register(Listing),
    /// Another address for clients.
    SetApiUrl(String),
    /// Other metadata.
    SetMetadata(String),
    /// Other models.
    SetModels(Vec<ModelId>),
    /// Another lowest price in native coin.
    SetPriceNative(u128),
    /// Another lowest price in payment tokens.
    SetPriceStable(u128),
    /// Another lowest price of a model.
    SetModelPrice {
        /// The model.
        model: ModelId,
        /// The payment token; zero is native.
        token: Address,
        /// Price units per LLM token.
        price: u128,
    },
    /// The host is removed; the stake comes back.
    Unregister,
}

impl RegistryWrite {
    /// Name of the function, for reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::ApproveStake { .. } => "approve",
            Self::Register(_) => "registerNode",
            Self::SetApiUrl(_) => "updateApiUrl",
            Self::SetMetadata(_) => "updateMetadata",
            Self::SetModels(_) => "updateSupportedModels",
            Self::SetPriceNative(_) => "updatePricingNative",
            Self::SetPriceStable(_) => "updatePricingStable",
            Self::SetModelPrice { .. } => "setModelTokenPricing",
            Self::Unregister => "unregisterNode",
        }
    }
}

/// What registering needs. Reads are network reads; calls are only made, never sent.
#[async_trait]
pub trait Registrar: Send + Sync {
    /// What the registry can do.
    async fn registry_shape(&self) -> Result<RegistryShape, RegistryError>;

    /// The host's entry; `None` where it is not registered.
    async fn listing(&self) -> Result<Option<Listing>, RegistryError>;

    /// What registering costs.
    async fn stake(&self) -> Result<Stake, RegistryError>;

    /// The host's lowest price of a model in a payment token (zero: native); 0 for none.
    async fn model_price(&self, model: ModelId, token: Address) -> Result<u128, RegistryError>;

    /// The call that a write is.
    ///
    /// # Errors
    /// [`RegistryError::NotConfigured`] without a registry.
    fn registry_call(&self, write: &RegistryWrite) -> Result<Call, RegistryError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_name_is_the_hash_of_repository_slash_file() {
        let id = ModelId::of("owner/repo", "model.gguf");
        let whole: [u8; 32] = Keccak256::digest("owner/repo/model.gguf").into();
        assert_eq!(id.hash(), Hash32::new(whole));
        assert_ne!(id, ModelId::of("owner/repo", "other.gguf"));
    }
}
