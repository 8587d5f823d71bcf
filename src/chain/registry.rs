//! The port to what surrounds the marketplace: who may host, what may be served.
//!
//! Never part of settlement: the preflight and `tally doctor` read it, nothing else decides on
//! it. Relies on docs/spec/contract.md section 4.

use async_trait::async_trait;
use sha3::{Digest, Keccak256};

use super::ChainError;
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

    /// The host's native balance, which pays for gas.
    async fn gas_balance(&self) -> Result<Amount, ChainError>;
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
