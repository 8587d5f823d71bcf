//! `tally register`, `update` and `unregister` on registries of every shape.

use alloy::primitives::{Address as EvmAddress, Bytes};
use alloy::sol_types::{SolCall, SolValue};
use serde_json::{Value, json};
use tally::chain::registry::{ModelId, Registrar, Registry};
use tally::units::Address;

use super::earned::{held, read};
use super::site::{Run, Site};
use crate::support::anvil::{DEPLOYER, Devnet, HOST};

mod abi {
    alloy::sol! {
        function addTrustedModel(string repo, string fileName, bytes32 sha256Hash) external;
        function mint(address to, uint256 amount) external;
        function allowance(address owner, address spender) external view returns (uint256);
    }
}

const STAKE: u128 = 1_000_000_000_000_000_000_000;
const MODELS: [&str; 2] = ["m.gguf", "n.gguf"];

fn evm(address: Address) -> EvmAddress {
    EvmAddress::new(*address.bytes())
}

/// A chain with approved models, a host that holds the stake, and settings to register with.
async fn ground() -> (Devnet, Site) {
    let devnet = Devnet::start().await;
    for file in MODELS {
        let add = abi::addTrustedModelCall {
            repo: "owner/repo".into(),
            fileName: file.into(),
            sha256Hash: alloy::primitives::B256::new([1; 32]),
        };
        devnet.send(DEPLOYER, devnet.contracts.model_registry, add.abi_encode(), 0).await;
    }
    let (to, amount) = (evm(HOST.address()), alloy::primitives::U256::from(STAKE));
    let mint = abi::mintCall { to, amount };
    devnet.send(HOST, devnet.contracts.token, mint.abi_encode(), 0).await;
    let mut site = Site::on(&devnet);
    site.set("TALLY_MODEL_REPO", "owner/repo");
    site.set("TALLY_MODEL_FILE", MODELS[0]);
    site.set("TALLY_PUBLIC_URL", "https://host.example");
    site.set("TALLY_REGISTRATION_RAM_GIGABYTES", "64");
    site.set("TALLY_REGISTRATION_CAPABILITIES", "streaming, proofs");
    (devnet, site)
}

/// Deploys another shape of the node registry and points the settings at it.
async fn deploy(devnet: &Devnet, site: &mut Site, contract: &str) -> Address {
    let root = env!("CARGO_MANIFEST_DIR");
    let path = format!("{root}/contracts/bytecode/{contract}.json");
    let file: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut code: Vec<u8> = file["bytecode"].as_str().unwrap().parse::<Bytes>().unwrap().into();
    let contracts = devnet.contracts;
    let arguments = (evm(contracts.token), evm(contracts.model_registry));
    code.extend(arguments.abi_encode_params());
    let tx = json!([{"from": DEPLOYER.address, "data": Bytes::from(code)}]);
    let hash = devnet.rpc("eth_sendTransaction", tx).await;
    let mut receipt = devnet.rpc("eth_getTransactionReceipt", json!([hash])).await;
    if receipt.is_null() {
        devnet.mine(1).await;
        receipt = devnet.rpc("eth_getTransactionReceipt", json!([hash])).await;
    }
    let address = Address::parse(receipt["contractAddress"].as_str().unwrap()).unwrap();
    site.set("TALLY_CHAIN_NODE_REGISTRY", &address.to_string());
    address
}

fn names(run: &Run) -> Vec<String> {
    assert!(run.ok, "{}", run.err);
    let calls = run.json()["calls"].as_array().unwrap().clone();
    calls.iter().map(|call| call["name"].as_str().unwrap().to_owned()).collect()
}

async fn stake_allowed(devnet: &Devnet, registry: Address) -> u128 {
    let (owner, spender) = (evm(HOST.address()), evm(registry));
    let call = abi::allowanceCall { owner, spender };
    read(devnet, devnet.contracts.token, call.abi_encode()).await
}

#[tokio::test]
async fn a_host_enters_changes_what_differs_and_leaves_with_its_stake() {
    let (devnet, mut site) = ground().await;
    let registry = devnet.contracts.node_registry;
    let run = site.tally(&["register", "--dry-run", "--json"]).await;
    assert_eq!(names(&run), ["approve", "registerNode"]);
    assert!(!site.data_dir().exists(), "a dry run leaves nothing behind");
    let chain = devnet.connect().await;
    assert!(!chain.host_standing().await.unwrap().active);

    let run = site.tally(&["update"]).await;
    assert!(!run.ok && run.err.contains("not registered"), "{}", run.err);
    let run = site.tally(&["register", "--json"]).await;
    assert_eq!(names(&run), ["approve", "registerNode"]);
    let listing = chain.listing().await.unwrap().unwrap();
    assert_eq!(listing.api_url, "https://host.example");
    assert_eq!(listing.models, [ModelId::of("owner/repo", MODELS[0])]);
    let metadata: Value = serde_json::from_str(&listing.metadata).unwrap();
    let key = metadata["publicKey"].as_str().unwrap();
    assert!(key.len() == 66 && (key.starts_with("02") || key.starts_with("03")), "{key}");
    assert_eq!(metadata["hardware"]["ram"], 64);
    assert_eq!(metadata["capabilities"], json!(["streaming", "proofs"]));
    assert_eq!(stake_allowed(&devnet, registry).await, 0, "exactly the stake was approved");
    assert_eq!(held(&devnet, HOST.address(), devnet.contracts.token).await, 0);

    for command in ["register", "update"] {
        assert_eq!(names(&site.tally(&[command, "--json"]).await), Vec::<String>::new());
    }
    site.set("TALLY_PUBLIC_URL", "https://other.example");
    site.set("TALLY_MODEL_FILE", MODELS[1]);
    let run = site.tally(&["update", "--json"]).await;
    assert_eq!(names(&run), ["updateApiUrl", "updateSupportedModels"]);
    let listing = chain.listing().await.unwrap().unwrap();
    assert_eq!(listing.api_url, "https://other.example");
    assert_eq!(listing.models, [ModelId::of("owner/repo", MODELS[1])]);

    assert_eq!(names(&site.tally(&["unregister", "--json"]).await), ["unregisterNode"]);
    assert_eq!(chain.listing().await.unwrap(), None);
    assert_eq!(held(&devnet, HOST.address(), devnet.contracts.token).await, STAKE);
    assert_eq!(names(&site.tally(&["unregister", "--json"]).await), Vec::<String>::new());
}

#[tokio::test]
async fn registries_with_prices_get_them_and_models_theirs() {
    let (devnet, mut site) = ground().await;
    for contract in ["NodeRegistryV5", "NodeRegistryV7"] {
        let registry = deploy(&devnet, &mut site, contract).await;
        site.env.remove("TALLY_REGISTRATION_PRICE_NATIVE");
        let run = site.tally(&["register"]).await;
        assert!(!run.ok && run.err.contains("registration.price_stable"), "{}", run.err);
        site.set("TALLY_REGISTRATION_PRICE_NATIVE", "3000");
        site.set("TALLY_REGISTRATION_PRICE_STABLE", "40");
        let token = devnet.contracts.token;
        site.set("TALLY_REGISTRATION_MODEL_PRICES", &format!("{token}=41"));
        let run = site.tally(&["register", "--json"]).await;
        let by_model = ["setModelTokenPricing"; 2];
        let mut expected = vec!["approve", "registerNode"];
        expected.extend(by_model.iter().filter(|_| contract == "NodeRegistryV7"));
        assert_eq!(names(&run), expected, "{contract}");
        assert_eq!(names(&site.tally(&["register", "--json"]).await), Vec::<String>::new());

        let mut settings = devnet.settings(HOST);
        settings.node_registry = Some(registry);
        let chain = tally::chain::evm::connect(settings).await.unwrap();
        let listing = chain.listing().await.unwrap().unwrap();
        assert_eq!(listing.prices, Some((3000, 40)), "{contract}");
        let model = ModelId::of("owner/repo", MODELS[0]);
        if contract == "NodeRegistryV7" {
            assert_eq!(chain.model_price(model, Address::ZERO).await.unwrap(), 3000);
            assert_eq!(chain.model_price(model, token).await.unwrap(), 41);
            site.set("TALLY_REGISTRATION_MODEL_PRICES", &format!("{token}=42"));
            let run = site.tally(&["update", "--json"]).await;
            assert_eq!(names(&run), ["setModelTokenPricing"]);
        }
        site.set("TALLY_REGISTRATION_PRICE_STABLE", "50");
        let run = site.tally(&["update", "--json"]).await;
        assert!(run.json()["notes"][0].as_str().unwrap().contains("prices stay 3000 and 40"));
        site.env.remove("TALLY_REGISTRATION_PRICE_STABLE");
        assert_eq!(names(&site.tally(&["unregister", "--json"]).await), ["unregisterNode"]);
    }
}

#[tokio::test]
async fn what_is_missing_for_a_registration_is_said_and_nothing_is_sent() {
    let (devnet, mut site) = ground().await;
    site.env.remove("TALLY_PUBLIC_URL");
    site.env.remove("TALLY_MODEL_REPO");
    let run = site.tally(&["register"]).await;
    assert!(!run.ok && run.err.contains("public_url, model.repo"), "{}", run.err);
    let (devnet_poor, mut poor) = (Devnet::start().await, Site::on(&devnet));
    poor.env = Site::on(&devnet_poor).env;
    poor.set("TALLY_MODEL_REPO", "owner/repo");
    poor.set("TALLY_MODEL_FILE", MODELS[0]);
    poor.set("TALLY_PUBLIC_URL", "https://host.example");
    let run = poor.tally(&["register"]).await;
    assert!(!run.ok && run.err.contains("the stake is 1000000000000000000000"), "{}", run.err);
    let chain = devnet_poor.connect().await;
    assert_eq!(chain.stake().await.unwrap().allowed.get(), 0);
}
