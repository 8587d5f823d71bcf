//! `tally register`, `update` and `unregister` on registries of every shape.

use alloy::primitives::{Address as EvmAddress, Bytes};
use alloy::sol_types::{SolCall, SolValue};
use serde_json::{Value, json};
use tally::chain::evm::EvmChain;
use tally::chain::registry::{Listing, ModelId, Registrar, Registry, RegistryWrite};
use tally::chain::{Call, Chain, DryRun};
use tally::units::Address;

use super::earned::{held, read};
use super::site::{Run, Site};
use crate::support::anvil::{DEPLOYER, Devnet, HOST};
use crate::support::variant::{MODEL, Variant};

mod abi {
    alloy::sol! {
        function addTrustedModel(string repo, string fileName, bytes32 sha256Hash) external;
        function mint(address to, uint256 amount) external;
        function approve(address spender, uint256 amount) external;
        function transfer(address to, uint256 amount) external;
        function allowance(address owner, address spender) external view returns (uint256);
    }
}

const STAKE: u128 = 1_000_000_000_000_000_000_000;
const MODELS: [&str; 2] = ["m.gguf", "n.gguf"];
/// Every form that a node registry had.
const SHAPES: [&str; 4] =
    ["NodeRegistry", "NodeRegistryV5", "NodeRegistryV7", "RepriceableNodeRegistry"];

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

/// The adapter on another node registry.
async fn chain_on(devnet: &Devnet, registry: Address) -> EvmChain {
    let mut settings = devnet.settings(HOST);
    settings.node_registry = Some(registry);
    tally::chain::evm::connect(settings).await.unwrap()
}

/// What the contract says to a write: nothing, or why not.
async fn refused(chain: &EvmChain, write: &RegistryWrite) -> Option<String> {
    let call = chain.registry_call(write).unwrap();
    match chain.dry_run(&call).await.unwrap() {
        DryRun::Succeeds(_) => None,
        DryRun::Reverts(words) => Some(words),
    }
}

/// Sends a write as the host.
async fn done(devnet: &Devnet, chain: &EvmChain, write: &RegistryWrite) -> Listing {
    assert_eq!(refused(chain, write).await, None, "{write:?}");
    let Call::Raw { to, value, input } = chain.registry_call(write).unwrap() else { panic!() };
    devnet.send(HOST, to, input, value.get()).await;
    chain.listing().await.unwrap().unwrap_or_default()
}

#[tokio::test]
async fn every_write_is_taken_by_every_registry_and_refused_one_past_its_bound() {
    use RegistryWrite as W;
    let (devnet, mut site) = ground().await;
    let [model, other] = MODELS.map(|file| ModelId::of("owner/repo", file));
    let unknown = ModelId::of("owner/repo", "unknown.gguf");
    for contract in SHAPES {
        let registry = deploy(&devnet, &mut site, contract).await;
        let chain = chain_on(&devnet, registry).await;
        let prices = (contract != "NodeRegistry").then_some((1, 1));
        let (metadata, api_url) = ("{}".to_owned(), "u".to_owned());
        let listing = Listing { metadata, api_url, models: vec![model], prices };
        let is_refused = async |write: W, why: &str| {
            assert_eq!(refused(&chain, &write).await.as_deref(), Some(why), "{contract} {write:?}");
        };
        let outside = "Not registered";
        for write in [
            W::SetApiUrl("u".into()),
            W::SetMetadata("{}".into()),
            W::SetModels(vec![model]),
            W::Unregister,
        ] {
            is_refused(write, outside).await;
        }
        let stake = chain.stake().await.unwrap();
        assert_eq!((stake.token, stake.needed.get()), (devnet.contracts.token, STAKE));
        done(&devnet, &chain, &W::ApproveStake { token: stake.token, amount: stake.needed }).await;
        for bad in [Some((0, 1)), Some((1, 0))].into_iter().filter(|_| prices.is_some()) {
            let free = Listing { prices: bad, ..listing.clone() };
            is_refused(W::Register(free), "Invalid price").await;
        }
        let found = done(&devnet, &chain, &W::Register(listing.clone())).await;
        assert_eq!(found, listing, "{contract}");

        is_refused(W::SetApiUrl(String::new()), "Empty API URL").await;
        is_refused(W::SetMetadata(String::new()), "Empty metadata").await;
        is_refused(W::SetModels(vec![]), "No models").await;
        is_refused(W::SetModels(vec![model, unknown]), "Model not approved").await;
        let found = done(&devnet, &chain, &W::SetApiUrl("v".into())).await;
        assert_eq!(found.api_url, "v", "{contract}");
        let found = done(&devnet, &chain, &W::SetMetadata("[]".into())).await;
        assert_eq!(found.metadata, "[]", "{contract}");
        let found = done(&devnet, &chain, &W::SetModels(vec![other, model])).await;
        assert_eq!(found.models, [other, model], "{contract}");

        done(&devnet, &chain, &W::Unregister).await;
        assert_eq!(chain.listing().await.unwrap(), None, "{contract}");
        is_refused(W::Unregister, outside).await;
    }
}

#[tokio::test]
async fn prices_are_set_from_one_up_to_the_largest_amount_where_a_registry_has_them() {
    use RegistryWrite as W;
    let (devnet, mut site) = ground().await;
    site.set("TALLY_REGISTRATION_PRICE_NATIVE", "3000");
    site.set("TALLY_REGISTRATION_PRICE_STABLE", "40");
    let registry = deploy(&devnet, &mut site, "RepriceableNodeRegistry").await;
    assert_eq!(names(&site.tally(&["register", "--json"]).await), ["approve", "registerNode"]);
    let chain = chain_on(&devnet, registry).await;
    for write in [W::SetPriceNative(0), W::SetPriceStable(0)] {
        assert_eq!(refused(&chain, &write).await.as_deref(), Some("Invalid price"), "{write:?}");
    }
    for price in [1, u128::MAX] {
        done(&devnet, &chain, &W::SetPriceNative(price)).await;
        let listing = done(&devnet, &chain, &W::SetPriceStable(price)).await;
        assert_eq!(listing.prices, Some((price, price)));
    }
    let both = ["updatePricingNative", "updatePricingStable"];
    assert_eq!(names(&site.tally(&["update", "--json"]).await), both);
    site.set("TALLY_REGISTRATION_PRICE_STABLE", "41");
    assert_eq!(names(&site.tally(&["update", "--json"]).await), [both[1]]);
    let prices = chain.listing().await.unwrap().unwrap().prices;
    assert_eq!(prices, Some((3000, 41)));
    assert_eq!(names(&site.tally(&["unregister", "--json"]).await), ["unregisterNode"]);

    let registry = deploy(&devnet, &mut site, "NodeRegistryV7").await;
    assert!(site.tally(&["register"]).await.ok);
    let chain = chain_on(&devnet, registry).await;
    let [model, other] = MODELS.map(|file| ModelId::of("owner/repo", file));
    for (token, price) in [(Address::ZERO, 1), (devnet.contracts.token, u128::MAX)] {
        let set = |model, price| W::SetModelPrice { model, token, price };
        let why = refused(&chain, &set(model, 0)).await;
        assert_eq!(why.as_deref(), Some("Invalid price"));
        let why = refused(&chain, &set(other, price)).await;
        assert_eq!(why.as_deref(), Some("Model not supported"));
        done(&devnet, &chain, &set(model, price)).await;
        assert_eq!(chain.model_price(model, token).await.unwrap(), price);
    }
}

#[tokio::test]
async fn the_stake_is_demanded_and_approved_to_the_unit() {
    let (devnet, mut site) = ground().await;
    let allow = async |registry: Address, amount: alloy::primitives::U256| {
        let call = abi::approveCall { spender: evm(registry), amount };
        devnet.send(HOST, devnet.contracts.token, call.abi_encode(), 0).await;
    };
    let stake = alloy::primitives::U256::from(STAKE);
    let one = alloy::primitives::U256::from(1);
    // Both spellings of the stake's currency.
    for contract in ["NodeRegistry", "RepriceableNodeRegistry"] {
        site.set("TALLY_REGISTRATION_PRICE_NATIVE", "1");
        site.set("TALLY_REGISTRATION_PRICE_STABLE", "1");
        let registry = deploy(&devnet, &mut site, contract).await;
        let both = vec!["approve", "registerNode"];
        for (allowed, calls) in [
            (stake - one, both),
            (stake, vec!["registerNode"]),
            (stake + one, vec!["registerNode"]),
            (alloy::primitives::U256::MAX, vec!["registerNode"]),
        ] {
            allow(registry, allowed).await;
            let run = site.tally(&["register", "--dry-run", "--json"]).await;
            assert_eq!(names(&run), calls, "{contract}, {allowed}");
        }
        // One unit less is not enough, whatever is allowed.
        let call = abi::transferCall { to: evm(DEPLOYER.address()), amount: one };
        devnet.send(HOST, devnet.contracts.token, call.abi_encode(), 0).await;
        let run = site.tally(&["register"]).await;
        assert!(!run.ok && run.err.contains("the stake is"), "{contract}: {}", run.err);
        let mint = abi::mintCall { to: evm(HOST.address()), amount: one };
        devnet.send(HOST, devnet.contracts.token, mint.abi_encode(), 0).await;
        assert!(site.tally(&["register", "--dry-run"]).await.ok, "{contract}");
    }
}

#[tokio::test]
async fn a_registry_behind_a_proxy_is_told_by_its_implementation() {
    let (devnet, mut site) = ground().await;
    let implementation = deploy(&devnet, &mut site, "NodeRegistryV7").await;
    let proxy = deploy(&devnet, &mut site, "NodeRegistry").await;
    let chain = chain_on(&devnet, proxy).await;
    assert!(!chain.registry_shape().await.unwrap().has_prices);
    // EIP-1967.
    let slot = "0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc";
    let word = format!("0x{:0>64}", implementation.to_string().trim_start_matches("0x"));
    devnet.rpc("anvil_setStorageAt", json!([proxy.to_string(), slot, word])).await;
    assert!(chain.registry_shape().await.unwrap().has_model_prices);
    let token = chain_on(&devnet, devnet.contracts.token).await;
    let why = token.registry_shape().await.unwrap_err().to_string();
    assert!(why.contains("no node registry") && why.contains("registerNode"), "{why}");
}

/// What the doctor says of a model's terms.
async fn terms(site: &Site) -> Vec<(String, String)> {
    let run = site.tally(&["doctor", "--json"]).await;
    let found = run.json()["findings"].as_array().unwrap().clone();
    let text = |of: &Value, key: &str| of[key].as_str().unwrap().to_owned();
    let of_terms = |of: &&Value| ["model rate", "model price"].contains(&&*text(of, "check"));
    found.iter().filter(of_terms).map(|of| (text(of, "grade"), text(of, "found"))).collect()
}

#[tokio::test]
async fn the_doctor_names_each_currency_in_which_no_session_can_be_opened() {
    let devnet = Devnet::start_variant(Variant::V7, &[]).await;
    let chain = devnet.connect().await;
    // An address that refuses at once.
    done(&devnet, &chain, &RegistryWrite::SetApiUrl("http://127.0.0.1:1".into())).await;
    let mut site = Site::on(&devnet);
    let weights = site.home.path().join("weights.gguf");
    std::fs::write(&weights, b"weights").unwrap();
    site.set("TALLY_MODEL_PATH", weights.to_str().unwrap());
    site.set("TALLY_MODEL_REPO", MODEL.repo);
    site.set("TALLY_MODEL_FILE", MODEL.file);
    let token = devnet.contracts.token;
    site.set("TALLY_SESSION_PAYMENT_TOKENS", &format!("{token}=1"));
    let grades = async |site: &Site| -> Vec<String> {
        terms(site).await.into_iter().map(|(grade, _)| grade).collect()
    };
    assert_eq!(grades(&site).await, ["ok", "ok", "ok"]);
    site.set("TALLY_SESSION_PAYMENT_TOKENS", &format!("{token}=2"));
    devnet.set_model_rate(0).await;
    assert_eq!(grades(&site).await, ["warning", "ok", "warning"]);
    devnet.set_model_rate(1).await;

    // A model that the host took up later, and has not priced.
    let add = abi::addTrustedModelCall {
        repo: MODEL.repo.into(),
        fileName: "second.gguf".into(),
        sha256Hash: alloy::primitives::B256::new([1; 32]),
    };
    devnet.send(DEPLOYER, devnet.contracts.model_registry, add.abi_encode(), 0).await;
    site.set("TALLY_MODEL_FILE", "second.gguf");
    let model = ModelId::of(MODEL.repo, "second.gguf");
    done(&devnet, &chain, &RegistryWrite::SetModels(vec![model])).await;
    let found = terms(&site).await;
    assert!(found.iter().all(|(grade, _)| grade == "warning"), "{found:?}");
    assert!(found[1].1.contains("native coin") && found[2].1.contains(&token.to_string()));
    site.set("TALLY_REGISTRATION_PRICE_NATIVE", "5");
    site.set("TALLY_REGISTRATION_MODEL_PRICES", &format!("{token}=6"));
    site.set("TALLY_PUBLIC_URL", "http://127.0.0.1:1");
    let run = site.tally(&["update", "--json"]).await;
    let calls = ["updateMetadata", "setModelTokenPricing", "setModelTokenPricing"];
    assert_eq!(names(&run), calls);
    assert_eq!(grades(&site).await, ["warning", "ok", "ok"], "the rate is the owner's to set");
}
