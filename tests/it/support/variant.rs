//! The contract versions to run against, and what a client or host does differently in each.
//!
//! Written from docs/spec/contract.md; nothing here uses the code under test.

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U256, keccak256};
use alloy::sol_types::SolCall;
use serde_json::json;
use tally::chain::evm::ContractVersion;
use tally::units::{Address, Hash32};

use super::anvil::{Account, DEPLOYER, Devnet, HOST, OpenSession, STRANGER, TrustedModel};

/// A stand-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    V3a,
    V3,
    V4,
    /// v4 as it ended: 2000 tokens a second, prices in thousandths.
    V4Late,
    V5,
    V6,
    V7,
}

/// Names of a stand-in's contracts.
pub struct Names {
    pub marketplace: &'static str,
    pub nodes: &'static str,
    pub models: &'static str,
    pub proofs: &'static str,
}

/// Tokens per second of [`MODEL`] (v7), unlike any other version's.
pub const MODEL_RATE: u64 = 50;

/// The model that hosts are registered with before any test begins (v5 and later).
pub const MODEL: TrustedModel<'static> =
    TrustedModel { repo: "owner/repo", file: "first.gguf", sha256: Hash32::new([9; 32]) };

mod abi {
    alloy::sol! {
        function createSessionJob(
            address host, uint256 pricePerToken, uint256 maxDuration, uint256 proofInterval
        ) external payable returns (uint256 jobId);
        function createSessionJobWithToken(
            address host, address token, uint256 deposit, uint256 pricePerToken,
            uint256 maxDuration, uint256 proofInterval
        ) external returns (uint256 jobId);
        function createSessionJobForModel(
            address host, bytes32 modelId, uint256 pricePerToken, uint256 maxDuration,
            uint256 proofInterval, uint256 proofTimeoutWindow
        ) external payable returns (uint256 jobId);
        function createSessionJobForModelWithToken(
            address host, bytes32 modelId, address token, uint256 deposit, uint256 pricePerToken,
            uint256 maxDuration, uint256 proofInterval, uint256 proofTimeoutWindow
        ) external returns (uint256 jobId);
        function mint(address to, uint256 amount) external;
        function approve(address spender, uint256 amount) external;
        function addTrustedModel(string repo, string fileName, bytes32 sha256Hash) external;
        function setModelRateLimit(bytes32 modelId, uint256 tokensPerSecond) external;
        function setModelTokenPricing(bytes32 modelId, address token, uint256 price) external;
        function pause() external;
        function unpause() external;
    }
}

/// `registerNode` until v4.
mod early {
    alloy::sol! {
        function registerNode(string metadata, string apiUrl, bytes32[] modelIds) external;
    }
}

/// `registerNode` from v5 on.
mod priced {
    alloy::sol! {
        function registerNode(
            string metadata, string apiUrl, bytes32[] modelIds, uint256 minPricePerTokenNative,
            uint256 minPricePerTokenStable
        ) external;
    }
}

impl Variant {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V3a, Self::V3, Self::V4, Self::V4Late, Self::V5, Self::V6, Self::V7];

    /// The version that a node has to find.
    pub fn version(self) -> ContractVersion {
        match self {
            Self::V3a => ContractVersion::V3a,
            Self::V3 => ContractVersion::V3,
            Self::V4 | Self::V4Late => ContractVersion::V4,
            Self::V5 => ContractVersion::V5,
            Self::V6 => ContractVersion::V6,
            Self::V7 => ContractVersion::V7,
        }
    }

    /// Parts of a payment unit in which prices are given.
    pub fn price_unit(self) -> u64 {
        match self {
            Self::V3a | Self::V3 | Self::V4 => 1,
            Self::V4Late | Self::V5 | Self::V6 | Self::V7 => 1000,
        }
    }

    /// Whether hosts are registered with prices, the contract can be paused, and only depositor
    /// and host complete.
    pub fn is_later(self) -> bool {
        matches!(self, Self::V5 | Self::V6 | Self::V7)
    }

    /// Tokens per second that may be claimed.
    pub fn contract_rate(self) -> u64 {
        match self {
            Self::V3a | Self::V3 | Self::V4 => 20,
            Self::V4Late | Self::V5 | Self::V6 => 2000,
            Self::V7 => MODEL_RATE,
        }
    }

    /// Tokens per second that a node claims: what late v4 allows, nothing in the contract says.
    pub fn rate(self) -> u64 {
        if self == Self::V4Late { 20 } else { self.contract_rate() }
    }

    /// Files in `contracts/bytecode`.
    pub fn contracts(self) -> Names {
        let marketplace = match self {
            Self::V3a => "JobMarketplaceV3a",
            Self::V3 => "JobMarketplace",
            Self::V4 => "JobMarketplaceV4",
            Self::V4Late => "JobMarketplaceV4Late",
            Self::V5 => "JobMarketplaceV5",
            Self::V6 => "JobMarketplaceV6",
            Self::V7 => "JobMarketplaceV7",
        };
        let (nodes, models, proofs) = match self {
            Self::V3a | Self::V3 | Self::V4 | Self::V4Late => {
                ("NodeRegistry", "ModelRegistry", "ProofSystem")
            }
            Self::V5 | Self::V6 => ("NodeRegistryV5", "ModelRegistry", "ProofSystem"),
            Self::V7 => ("NodeRegistryV7", "ModelRegistryV7", "ProofSystemV7"),
        };
        Names { marketplace, nodes, models, proofs }
    }
}

/// The registry's id of a model.
pub fn model_id(model: TrustedModel<'_>) -> Hash32 {
    Hash32::new(keccak256(format!("{}/{}", model.repo, model.file)).0)
}

fn word(hash: Hash32) -> B256 {
    B256::new(*hash.bytes())
}

fn evm(address: Address) -> EvmAddress {
    EvmAddress::new(*address.bytes())
}

/// The input that opens a session.
pub fn opening(devnet: &Devnet, open: &OpenSession) -> Vec<u8> {
    let host = open.host.evm();
    let token = evm(devnet.contracts.token);
    let deposit = U256::from(open.deposit);
    let price = U256::from(open.price) * U256::from(devnet.variant.price_unit());
    let duration = U256::from(open.duration_max);
    let interval = U256::from(open.proof_interval);
    let silence = U256::from(open.silence);
    let model = word(model_id(MODEL));
    match (devnet.variant == Variant::V7, open.erc20) {
        (false, false) => {
            abi::createSessionJobCall::new((host, price, duration, interval)).abi_encode()
        }
        (false, true) => {
            let terms = (host, token, deposit, price, duration, interval);
            abi::createSessionJobWithTokenCall::new(terms).abi_encode()
        }
        (true, false) => {
            let terms = (host, model, price, duration, interval, silence);
            abi::createSessionJobForModelCall::new(terms).abi_encode()
        }
        (true, true) => {
            let terms = (host, model, token, deposit, price, duration, interval, silence);
            abi::createSessionJobForModelWithTokenCall::new(terms).abi_encode()
        }
    }
}

impl Devnet {
    /// Registers those without whom no session can be opened.
    pub(super) async fn admit_hosts(&self) {
        if self.variant.is_later() {
            self.approve_model(MODEL).await;
            self.register("http://host.example", HOST, MODEL).await;
            self.register("http://stranger.example", STRANGER, MODEL).await;
        }
    }

    /// Gives an account payment tokens and lets the marketplace take them.
    pub async fn fund(&self, who: Account, amount: u128) {
        let (token, marketplace) = (self.contracts.token, self.contracts.marketplace);
        let mint = abi::mintCall { to: who.evm(), amount: U256::from(amount) };
        self.send(who, token, mint.abi_encode(), 0).await;
        let approve = abi::approveCall { spender: evm(marketplace), amount: U256::from(amount) };
        self.send(who, token, approve.abi_encode(), 0).await;
    }

    /// Approves a model and registers [`HOST`] with it.
    pub async fn register_host(&self, api_url: &str, model: TrustedModel<'_>) {
        self.approve_model(model).await;
        self.register(api_url, HOST, model).await;
    }

    /// Sets how fast the tokens of [`MODEL`] may be claimed (v7).
    pub async fn set_model_rate(&self, tokens_per_second: u64) {
        let rate = abi::setModelRateLimitCall {
            modelId: word(model_id(MODEL)),
            tokensPerSecond: U256::from(tokens_per_second),
        };
        self.send(DEPLOYER, self.contracts.model_registry, rate.abi_encode(), 0).await;
    }

    /// Halts or continues the marketplace (v5 and later).
    pub async fn set_paused(&self, paused: bool) {
        let call =
            if paused { abi::pauseCall {}.abi_encode() } else { abi::unpauseCall {}.abi_encode() };
        self.send(DEPLOYER, self.contracts.marketplace, call, 0).await;
    }

    /// What an account holds of the payment token.
    pub async fn token_balance(&self, who: Account) -> U256 {
        let data = format!("0x70a08231{:0>64}", who.address.trim_start_matches("0x"));
        let call = json!({"to": self.contracts.token.to_string(), "data": data});
        let word = self.rpc("eth_call", json!([call, "latest"])).await;
        U256::from_be_slice(&word.as_str().unwrap().parse::<Bytes>().unwrap())
    }

    async fn approve_model(&self, model: TrustedModel<'_>) {
        let add = abi::addTrustedModelCall {
            repo: model.repo.into(),
            fileName: model.file.into(),
            sha256Hash: B256::new(*model.sha256.bytes()),
        };
        let models = self.contracts.model_registry;
        self.send(DEPLOYER, models, add.abi_encode(), 0).await;
        if self.variant == Variant::V7 {
            let rate = U256::from(MODEL_RATE);
            let call = abi::setModelRateLimitCall {
                modelId: word(model_id(model)),
                tokensPerSecond: rate,
            };
            self.send(DEPLOYER, models, call.abi_encode(), 0).await;
        }
    }

    async fn register(&self, api_url: &str, who: Account, model: TrustedModel<'_>) {
        let contracts = self.contracts;
        let stake = U256::from(10).pow(U256::from(21));
        let mint = abi::mintCall { to: who.evm(), amount: stake };
        self.send(who, contracts.token, mint.abi_encode(), 0).await;
        let spender = evm(contracts.node_registry);
        let approve = abi::approveCall { spender, amount: stake };
        self.send(who, contracts.token, approve.abi_encode(), 0).await;
        let (metadata, url) = (String::from("{}"), String::from(api_url));
        let (models, least) = (vec![word(model_id(model))], U256::from(1));
        let register = if self.variant.is_later() {
            let terms = (metadata, url, models.clone(), least, least);
            priced::registerNodeCall::new(terms).abi_encode()
        } else {
            early::registerNodeCall::new((metadata, url, models.clone())).abi_encode()
        };
        self.send(who, contracts.node_registry, register, 0).await;
        if self.variant == Variant::V7 {
            for token in [EvmAddress::ZERO, evm(contracts.token)] {
                let call =
                    abi::setModelTokenPricingCall { modelId: models[0], token, price: least };
                self.send(who, contracts.node_registry, call.abi_encode(), 0).await;
            }
        }
    }
}
