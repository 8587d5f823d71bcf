//! The port [`Registry`], implemented.
//!
//! Never writes: registering is the operator's act (`registrar`). Relies on reads that are the
//! same in every version (docs/spec/contract.md section 4).

use std::collections::BTreeMap;

use alloy::primitives::B256;
use async_trait::async_trait;

use super::bindings::registries::{
    getModelHashCall, getNodeApiUrlCall, isActiveNodeCall, isModelApprovedCall,
    nodeSupportsModelCall,
};
use super::bindings::v7::getModelRateLimitCall;
use super::wire::{evm, hash_of, u128_of};
use super::{EvmChain, models};
use crate::chain::registry::{
    HostStanding, ModelId, ModelStanding, ModelTerms, Registrar, Registry, RegistryError,
};
use crate::chain::{ChainError, Wallet};
use crate::units::{Address, Amount};

#[async_trait]
impl Registry for EvmChain {
    fn contract_version(&self) -> &'static str {
        self.version().name()
    }

    fn host(&self) -> Address {
        self.wallet.address()
    }

    async fn has_code(&self, address: Address) -> Result<bool, ChainError> {
        self.rpc.first(|rpc| rpc.code(address)).await.map(|code| !code.is_empty())
    }

    async fn host_standing(&self) -> Result<HostStanding, RegistryError> {
        let nodes = self.nodes()?;
        let operator = evm(self.wallet.address());
        let active = self.rpc.read(nodes, &isActiveNodeCall { operator }).await?;
        let api_url = self.rpc.read(nodes, &getNodeApiUrlCall { operator }).await?;
        Ok(HostStanding { active, api_url })
    }

    async fn host_supports(&self, model: ModelId) -> Result<bool, RegistryError> {
        let operator = evm(self.wallet.address());
        let call = nodeSupportsModelCall { operator, modelId: word(model) };
        Ok(self.rpc.read(self.nodes()?, &call).await?)
    }

    async fn model_standing(&self, model: ModelId) -> Result<ModelStanding, RegistryError> {
        let missing = RegistryError::NotConfigured("model registry");
        let models = self.model_registry.ok_or(missing)?;
        let id = word(model);
        let approved = self.rpc.read(models, &isModelApprovedCall { modelId: id }).await?;
        let hash = self.rpc.read(models, &getModelHashCall { modelId: id }).await?;
        let weights_sha256 = (!hash.is_zero()).then(|| hash_of(hash));
        Ok(ModelStanding { approved, weights_sha256 })
    }

    fn binds_models(&self) -> bool {
        self.models.is_some()
    }

    async fn model_terms(
        &self,
        model: ModelId,
        tokens: &[Address],
    ) -> Result<ModelTerms, RegistryError> {
        let missing = RegistryError::NotConfigured("model registry");
        let models = self.models.as_ref().ok_or(missing)?;
        let call = getModelRateLimitCall { modelId: word(model) };
        let rate = self.rpc.read(models.registry(), &call).await?;
        let mut prices = BTreeMap::new();
        for token in tokens {
            prices.insert(*token, self.model_price(model, *token).await?);
        }
        Ok(ModelTerms { rate_per_second: models::rate(rate), prices })
    }

    async fn gas_balance(&self) -> Result<Amount, ChainError> {
        let own = self.wallet.address();
        u128_of(self.rpc.first(|rpc| rpc.balance(own)).await?, "balance").map(Amount::new)
    }
}

impl EvmChain {
    pub(super) fn nodes(&self) -> Result<Address, RegistryError> {
        self.node_registry.ok_or(RegistryError::NotConfigured("node registry"))
    }
}

pub(super) fn word(model: ModelId) -> B256 {
    B256::new(*model.hash().bytes())
}
