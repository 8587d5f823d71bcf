//! The port [`Registrar`], implemented: the node registry's writes in every shape it had.
//!
//! Never sends: calls are made here and go out through settlement, on the wallet's one line of
//! nonces. What a deployment can do is found by its code's selectors, never assumed. Relies on
//! docs/spec/contract.md section 4.
#![allow(missing_docs)] // The macro's output has no documentation of its own.

use alloy::primitives::{B256, U256};
use alloy::sol_types::SolCall;
use async_trait::async_trait;

use super::EvmChain;
use super::bindings::erc20::balanceOfCall;
use super::bindings::registries::isActiveNodeCall;
use super::registry::word;
use super::version::selectors;
use super::wire::{address_of, evm, hash_of, u128_of};
use crate::chain::registry::{
    Listing, ModelId, Registrar, RegistryError, RegistryShape, RegistryWrite, Stake,
};
use crate::chain::{Call, Wallet};
use crate::units::{Address, Amount};

alloy::sol! {
    function updateApiUrl(string apiUrl) external;
    function updateMetadata(string metadata) external;
    function updateSupportedModels(bytes32[] modelIds) external;
    function unregisterNode() external;
    function MIN_STAKE() external view returns (uint256);
    // Two spellings of the stake's currency.
    function stakeToken() external view returns (address);
    function fabToken() external view returns (address);
    function approve(address spender, uint256 amount) external returns (bool);
    function allowance(address owner, address spender) external view returns (uint256);
}

/// Without prices.
mod plain {
    alloy::sol! {
        function registerNode(string metadata, string apiUrl, bytes32[] modelIds) external;
        function getNodeFullInfo(address operator) external view returns (
            address, uint256, bool, string metadata, string apiUrl, bytes32[] modelIds
        );
    }
}

/// With two prices.
mod priced {
    alloy::sol! {
        function registerNode(
            string metadata, string apiUrl, bytes32[] modelIds,
            uint256 minPricePerTokenNative, uint256 minPricePerTokenStable
        ) external;
        function getNodeFullInfo(address operator) external view returns (
            address, uint256, bool, string metadata, string apiUrl, bytes32[] modelIds,
            uint256 minPricePerTokenNative, uint256 minPricePerTokenStable
        );
        function updatePricingNative(uint256 newMinPrice) external;
        function updatePricingStable(uint256 newMinPrice) external;
    }
}

/// With a price for each model and payment token.
mod by_model {
    alloy::sol! {
        function setModelTokenPricing(bytes32 modelId, address token, uint256 price) external;
        function getModelPricing(address operator, bytes32 modelId, address token)
            external view returns (uint256);
    }
}

#[async_trait]
impl Registrar for EvmChain {
    async fn registry_shape(&self) -> Result<RegistryShape, RegistryError> {
        let address = self.nodes()?;
        let mut code = self.rpc.first(|rpc| rpc.code(address)).await?;
        if let Some(implementation) = self.rpc.first(|rpc| rpc.implementation(address)).await? {
            code = self.rpc.first(|rpc| rpc.code(implementation)).await?;
        }
        shape_of(&code).ok_or(RegistryError::NoRegistry { address, missing: "registerNode" })
    }

    async fn listing(&self) -> Result<Option<Listing>, RegistryError> {
        let nodes = self.nodes()?;
        let operator = evm(self.wallet.address());
        if !self.rpc.read(nodes, &isActiveNodeCall { operator }).await? {
            return Ok(None);
        }
        let models = |ids: Vec<B256>| ids.into_iter().map(hash_of).map(ModelId::from_hash);
        if self.registry_shape().await?.has_prices {
            let info = self.rpc.read(nodes, &priced::getNodeFullInfoCall { operator }).await?;
            let native = u128_of(info.minPricePerTokenNative, "native price")?;
            let stable = u128_of(info.minPricePerTokenStable, "stable price")?;
            return Ok(Some(Listing {
                metadata: info.metadata,
                api_url: info.apiUrl,
                models: models(info.modelIds).collect(),
                prices: Some((native, stable)),
            }));
        }
        let info = self.rpc.read(nodes, &plain::getNodeFullInfoCall { operator }).await?;
        Ok(Some(Listing {
            metadata: info.metadata,
            api_url: info.apiUrl,
            models: models(info.modelIds).collect(),
            prices: None,
        }))
    }

    async fn stake(&self) -> Result<Stake, RegistryError> {
        let nodes = self.nodes()?;
        let needed = self.rpc.read(nodes, &MIN_STAKECall {}).await?;
        let token = match self.rpc.read(nodes, &stakeTokenCall {}).await {
            Ok(token) => token,
            Err(_) => self.rpc.read(nodes, &fabTokenCall {}).await?,
        };
        let token = address_of(token);
        let (owner, spender) = (evm(self.wallet.address()), evm(nodes));
        let allowed = self.rpc.read(token, &allowanceCall { owner, spender }).await?;
        let held = self.rpc.read(token, &balanceOfCall { owner }).await?;
        // An unlimited allowance is more than our amounts hold.
        let at_most = |value: U256| Amount::new(u128::try_from(value).unwrap_or(u128::MAX));
        let needed = Amount::new(u128_of(needed, "MIN_STAKE")?);
        Ok(Stake { token, needed, allowed: at_most(allowed), held: at_most(held) })
    }

    async fn model_price(&self, model: ModelId, token: Address) -> Result<u128, RegistryError> {
        let (operator, token) = (evm(self.wallet.address()), evm(token));
        let call = by_model::getModelPricingCall { operator, modelId: word(model), token };
        let price = self.rpc.read(self.nodes()?, &call).await?;
        Ok(u128_of(price, "model price")?)
    }

    fn registry_call(&self, write: &RegistryWrite) -> Result<Call, RegistryError> {
        let nodes = self.nodes()?;
        let to = match write {
            RegistryWrite::ApproveStake { token, .. } => *token,
            RegistryWrite::Register(_)
            | RegistryWrite::SetApiUrl(_)
            | RegistryWrite::SetMetadata(_)
            | RegistryWrite::SetModels(_)
            | RegistryWrite::SetPriceNative(_)
            | RegistryWrite::SetPriceStable(_)
            | RegistryWrite::SetModelPrice { .. }
            | RegistryWrite::Unregister => nodes,
        };
        Ok(Call::Raw { to, value: Amount::ZERO, input: encode(write, nodes) })
    }
}

/// What code can do by its selectors; `None` for no node registry.
fn shape_of(code: &[u8]) -> Option<RegistryShape> {
    let found = selectors(code);
    let has_prices = found.contains(&priced::registerNodeCall::SELECTOR);
    if !has_prices && !found.contains(&plain::registerNodeCall::SELECTOR) {
        return None;
    }
    let can_change_prices = found.contains(&priced::updatePricingNativeCall::SELECTOR)
        && found.contains(&priced::updatePricingStableCall::SELECTOR);
    let has_model_prices = found.contains(&by_model::setModelTokenPricingCall::SELECTOR);
    Some(RegistryShape { has_prices, can_change_prices, has_model_prices })
}

fn encode(write: &RegistryWrite, nodes: Address) -> Vec<u8> {
    match write {
        RegistryWrite::ApproveStake { amount, .. } => {
            approveCall { spender: evm(nodes), amount: U256::from(amount.get()) }.abi_encode()
        }
        RegistryWrite::Register(listing) => register(listing),
        RegistryWrite::SetApiUrl(url) => updateApiUrlCall { apiUrl: url.clone() }.abi_encode(),
        RegistryWrite::SetMetadata(text) => {
            updateMetadataCall { metadata: text.clone() }.abi_encode()
        }
        RegistryWrite::SetModels(models) => {
            updateSupportedModelsCall { modelIds: words(models) }.abi_encode()
        }
        RegistryWrite::SetPriceNative(price) => {
            priced::updatePricingNativeCall { newMinPrice: U256::from(*price) }.abi_encode()
        }
        RegistryWrite::SetPriceStable(price) => {
            priced::updatePricingStableCall { newMinPrice: U256::from(*price) }.abi_encode()
        }
        RegistryWrite::SetModelPrice { model, token, price } => {
            let (model, token) = (word(*model), evm(*token));
            let price = U256::from(*price);
            by_model::setModelTokenPricingCall { modelId: model, token, price }.abi_encode()
        }
        RegistryWrite::Unregister => unregisterNodeCall {}.abi_encode(),
    }
}

fn register(listing: &Listing) -> Vec<u8> {
    let Listing { metadata, api_url, models, prices } = listing.clone();
    match prices {
        Some((native, stable)) => priced::registerNodeCall {
            metadata,
            apiUrl: api_url,
            modelIds: words(&models),
            minPricePerTokenNative: U256::from(native),
            minPricePerTokenStable: U256::from(stable),
        }
        .abi_encode(),
        None => plain::registerNodeCall { metadata, apiUrl: api_url, modelIds: words(&models) }
            .abi_encode(),
    }
}

fn words(models: &[ModelId]) -> Vec<B256> {
    models.iter().copied().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(selectors: &[[u8; 4]]) -> Vec<u8> {
        selectors.iter().flat_map(|selector| [&[0x63][..], &selector[..]].concat()).collect()
    }

    #[test]
    fn a_registry_is_told_by_the_functions_in_its_code() {
        let plain = plain::registerNodeCall::SELECTOR;
        let priced = priced::registerNodeCall::SELECTOR;
        let changes =
            [priced::updatePricingNativeCall::SELECTOR, priced::updatePricingStableCall::SELECTOR];
        let by_model = by_model::setModelTokenPricingCall::SELECTOR;
        let shape = |has_prices, can_change_prices, has_model_prices| {
            Some(RegistryShape { has_prices, can_change_prices, has_model_prices })
        };
        let table = [
            (vec![], None),
            (vec![by_model], None),
            (vec![plain], shape(false, false, false)),
            (vec![priced], shape(true, false, false)),
            (vec![priced, changes[0]], shape(true, false, false)),
            (vec![priced, changes[0], changes[1]], shape(true, true, false)),
            (vec![priced, by_model], shape(true, false, true)),
        ];
        for (selectors, expected) in table {
            assert_eq!(shape_of(&code(&selectors)), expected, "{selectors:?}");
        }
    }

    #[test]
    fn writes_carry_the_selector_of_their_name() {
        let nodes = Address::new([1; 20]);
        let listing = Listing::default();
        let table = [
            (RegistryWrite::Register(listing.clone()), "registerNode(string,string,bytes32[])"),
            (
                RegistryWrite::Register(Listing { prices: Some((1, 2)), ..listing }),
                "registerNode(string,string,bytes32[],uint256,uint256)",
            ),
            (RegistryWrite::SetApiUrl(String::new()), "updateApiUrl(string)"),
            (RegistryWrite::SetMetadata(String::new()), "updateMetadata(string)"),
            (RegistryWrite::SetModels(vec![]), "updateSupportedModels(bytes32[])"),
            (RegistryWrite::SetPriceNative(1), "updatePricingNative(uint256)"),
            (RegistryWrite::SetPriceStable(1), "updatePricingStable(uint256)"),
            (RegistryWrite::Unregister, "unregisterNode()"),
        ];
        for (write, signature) in table {
            let selector = &alloy::primitives::keccak256(signature)[..4];
            assert_eq!(&encode(&write, nodes)[..4], selector, "{signature}");
            assert!(signature.starts_with(write.name()), "{signature}");
        }
    }
}
