//! The chain adapter against a real EVM and a contract that enforces v3's rules.

use std::time::Duration;

use serde_json::json;
use tally::chain::evm::{ConnectError, ContractVersion, EvmChain, connect};
use tally::chain::registry::{ModelId, Registry, RegistryError};
use tally::chain::{
    Broadcast, Call, Chain, ChainError, ChainEvent, DryRun, Fees, Inclusion, JobStatus, SignedTx,
    TxSpec,
};
use tally::units::{
    Address, Amount, BlockNumber, ChainSeconds, Gas, Hash32, JobId, PriceUnit, TokenCount,
    WalletNonce,
};

use crate::support::anvil::{
    CLIENT, DISPUTE_WINDOW, Devnet, FEE_BASIS_POINTS, HOST, OpenSession, STRANGER, TrustedModel,
};
use crate::support::proxy::{Fault, Proxy};

/// Enough for any call here (contract.md section 2: a first proof takes 184 k).
const GAS: Gas = Gas::new(400_000);

fn claim_with(job: JobId, tokens: u64, word: u8) -> Call {
    Call::Claim { job, tokens: TokenCount::new(tokens), proof: vec![word; 64] }
}

fn claim(job: JobId, tokens: u64) -> Call {
    claim_with(job, tokens, 1)
}

async fn signed(chain: &EvmChain, call: &Call) -> SignedTx {
    let fees = chain.fees().await.unwrap();
    let nonce = chain.wallet().await.unwrap().nonce_pending;
    chain.prepare(call, TxSpec { nonce, fees, gas_limit: GAS }).unwrap()
}

async fn send(devnet: &Devnet, chain: &EvmChain, call: &Call) -> SignedTx {
    let tx = signed(chain, call).await;
    assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted);
    devnet.mine(1).await;
    tx
}

/// A chain on which a block is mined when the test says so: with automatic blocks, anvil accepts
/// a transaction first and mines it a moment later.
async fn start() -> Devnet {
    let devnet = Devnet::start().await;
    devnet.set_automine(false).await;
    devnet
}

async fn head(chain: &EvmChain) -> BlockNumber {
    chain.head().await.unwrap().number
}

fn reverts_with(outcome: Result<DryRun, ChainError>, words: &str) {
    assert_eq!(outcome, Ok(DryRun::Reverts(words.into())));
}

#[tokio::test]
async fn a_mined_claim_counts_the_amount_of_its_event() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let job = devnet.open_session(OpenSession::default()).await;
    devnet.increase_time(10).await;
    assert!(matches!(chain.dry_run(&claim(job, 120)).await, Ok(DryRun::Succeeds(_))));
    let tx = send(&devnet, &chain, &claim(job, 120)).await;

    let Inclusion::Included { block, block_hash, success, proven, fee } =
        chain.inclusion(tx.hash).await.unwrap()
    else {
        panic!("not included");
    };
    let newest = chain.head().await.unwrap();
    assert_eq!((block, block_hash), (newest.number, newest.hash));
    assert!(success && fee > Amount::ZERO);
    assert_eq!(proven, Some(TokenCount::new(120)));
    let state = chain.job(job).await.unwrap().unwrap();
    assert_eq!(state.tokens_used, TokenCount::new(120));
    assert_eq!(state.last_proof_time, newest.time);
}

#[tokio::test]
async fn a_session_is_read_with_the_host_as_host() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let job = devnet.open_session(OpenSession::default()).await;
    let state = chain.job(job).await.unwrap().unwrap();
    let now = chain.head().await.unwrap().time;
    assert_eq!((state.id, state.host, state.depositor), (job, HOST.address(), CLIENT.address()));
    assert_eq!((state.deposit.get(), state.price.get()), (10_000_000, 1000));
    assert_eq!(state.payment_token, Address::ZERO);
    assert_eq!((state.start_time, state.last_proof_time), (now, now));
    assert_eq!(state.duration_max, ChainSeconds::new(86_400));
    assert_eq!(state.silence_max, ChainSeconds::new(30_000));
    assert_eq!(state.status, JobStatus::Active);
    assert_eq!(chain.job(JobId::new(99).unwrap()).await, Ok(None), "unknown job");
}

#[tokio::test]
async fn limits_come_from_the_contract() {
    let devnet = start().await;
    let limits = devnet.connect().await.limits().await.unwrap();
    assert_eq!(limits.claim_min, TokenCount::new(100));
    assert_eq!(limits.price_unit, PriceUnit::ONE);
    assert_eq!(limits.dispute_window, ChainSeconds::new(DISPUTE_WINDOW));
    assert_eq!(limits.fee_basis_points, FEE_BASIS_POINTS);
}

#[tokio::test]
async fn a_dry_run_says_which_rule_a_claim_breaks() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let small = OpenSession { deposit: 1_000_000, proof_interval: 100, ..OpenSession::default() };
    let job = devnet.open_session(small).await; // It buys 1000 tokens.
    devnet.increase_time(100).await;
    reverts_with(chain.dry_run(&claim(job, 99)).await, "Must claim minimum tokens");
    reverts_with(chain.dry_run(&claim(job, 1001)).await, "Exceeds deposit");
    reverts_with(chain.dry_run(&claim(job, 50_000)).await, "Excessive tokens claimed");
    let unknown = JobId::new(99).unwrap();
    reverts_with(chain.dry_run(&claim(unknown, 100)).await, "Only host can submit proof");
    devnet.burn_first_word(STRANGER, [1; 32]).await;
    reverts_with(chain.dry_run(&claim(job, 100)).await, "Invalid proof");
    let other_word = chain.dry_run(&claim_with(job, 100, 2)).await;
    assert!(matches!(other_word, Ok(DryRun::Succeeds(_))), "{other_word:?}");
    devnet.complete(CLIENT, job).await;
    reverts_with(chain.dry_run(&claim_with(job, 100, 2)).await, "Session not active");
}

#[tokio::test]
async fn another_hosts_session_cannot_be_claimed() {
    let devnet = start().await;
    let job = devnet.open_session(OpenSession::default()).await;
    devnet.increase_time(10).await;
    let foreign = connect(devnet.settings(STRANGER)).await.unwrap();
    reverts_with(foreign.dry_run(&claim(job, 100)).await, "Only host can submit proof");
    let tx = send(&devnet, &foreign, &claim(job, 100)).await;
    let Inclusion::Included { success: false, proven: None, .. } =
        foreign.inclusion(tx.hash).await.unwrap()
    else {
        panic!("a foreign claim must revert");
    };
}

#[tokio::test]
async fn an_idle_chain_is_judged_by_its_present_and_not_by_its_last_block() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let job = devnet.open_session(OpenSession::default()).await;
    devnet.idle(60).await; // No block since: the newest one is as old as the session.
    let tx = signed(&chain, &claim(job, 100)).await;
    let call = json!({
        "from": HOST.address,
        "to": chain.marketplace().to_string(),
        "data": claim_input(job),
    });
    let latest = devnet.try_rpc("eth_estimateGas", json!([call, "latest"])).await;
    assert!(latest.unwrap_err().to_string().contains("Excessive tokens claimed"));
    let pending = chain.dry_run(&claim(job, 100)).await;
    assert!(matches!(pending, Ok(DryRun::Succeeds(_))), "{pending:?}");
    assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted);
    devnet.mine(1).await;
    let included = chain.inclusion(tx.hash).await.unwrap();
    assert!(matches!(included, Inclusion::Included { success: true, .. }));
}

/// `submitProofOfWork(job, 100, 64 bytes)`, encoded by hand.
fn claim_input(job: JobId) -> String {
    let word = |value: u64| format!("{value:064x}");
    let proof = "01".repeat(64);
    format!("0xc8c664ee{}{}{}{}{proof}", word(job.get()), word(100), word(0x60), word(64))
}

#[tokio::test]
async fn the_same_bytes_twice_are_known_and_then_used() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let job = devnet.open_session(OpenSession::default()).await;
    devnet.increase_time(10).await;
    let tx = signed(&chain, &claim(job, 100)).await;
    assert_eq!(chain.inclusion(tx.hash).await, Ok(Inclusion::Absent));
    assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted);
    assert_eq!(chain.broadcast(&tx).await, Broadcast::AlreadyKnown);
    assert_eq!(chain.inclusion(tx.hash).await, Ok(Inclusion::Pending));
    let wallet = chain.wallet().await.unwrap();
    assert_eq!((wallet.nonce_mined.get(), wallet.nonce_pending.get()), (0, 1));
    devnet.mine(1).await;
    assert_eq!(chain.broadcast(&tx).await, Broadcast::NonceUsed);
    let used = chain.job(job).await.unwrap().unwrap().tokens_used;
    assert_eq!(used, TokenCount::new(100), "three broadcasts, one claim");
}

#[tokio::test]
async fn a_replacement_has_to_pay_more_and_then_takes_the_place() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let job = devnet.open_session(OpenSession::default()).await;
    devnet.increase_time(10).await;
    let fees = chain.fees().await.unwrap();
    let spec = TxSpec { nonce: WalletNonce::ZERO, fees, gas_limit: GAS };
    let first = chain.prepare(&claim(job, 100), spec).unwrap();
    assert_eq!(chain.broadcast(&first).await, Broadcast::Accepted);
    let same_fee = chain.prepare(&Call::Nothing, spec).unwrap();
    assert_eq!(chain.broadcast(&same_fee).await, Broadcast::Underpriced);
    let twice = |amount: Amount| Amount::new(amount.get() * 2);
    let dearer = Fees { fee_max: twice(fees.fee_max), tip_max: twice(fees.tip_max) };
    let nothing = chain.prepare(&Call::Nothing, TxSpec { fees: dearer, ..spec }).unwrap();
    assert_eq!(chain.broadcast(&nothing).await, Broadcast::Accepted);
    devnet.mine(1).await;
    let included = chain.inclusion(nothing.hash).await.unwrap();
    assert!(matches!(included, Inclusion::Included { success: true, proven: None, .. }));
    assert_eq!(chain.inclusion(first.hash).await, Ok(Inclusion::Absent));
    assert_eq!(chain.job(job).await.unwrap().unwrap().tokens_used, TokenCount::ZERO);
}

#[tokio::test]
async fn a_fee_under_the_base_fee_and_an_empty_wallet_are_told_apart() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let fees = Fees { fee_max: Amount::new(1), tip_max: Amount::new(1) };
    let spec = TxSpec { nonce: WalletNonce::ZERO, fees, gas_limit: GAS };
    let cheap = chain.prepare(&Call::Nothing, spec).unwrap();
    assert_eq!(chain.broadcast(&cheap).await, Broadcast::Underpriced);
    devnet.rpc("anvil_setBalance", json!([HOST.address, "0x0"])).await;
    let tx = signed(&chain, &Call::Nothing).await;
    let outcome = chain.broadcast(&tx).await;
    assert!(matches!(outcome, Broadcast::Rejected(_)), "{outcome:?}");
    let tip_over_fee = Fees { fee_max: Amount::new(1), tip_max: Amount::new(2) };
    assert!(chain.prepare(&Call::Nothing, TxSpec { fees: tip_over_fee, ..spec }).is_err());
}

#[tokio::test]
async fn a_dead_endpoint_is_unreachable_and_a_broadcast_to_it_unknown() {
    let mut devnet = start().await;
    let chain = devnet.connect().await;
    let tx = signed(&chain, &Call::Nothing).await;
    devnet.stop();
    let job = JobId::new(1).unwrap();
    assert!(matches!(chain.head().await, Err(ChainError::Unreachable(_))));
    assert!(matches!(chain.job(job).await, Err(ChainError::Unreachable(_))));
    assert!(matches!(chain.inclusion(tx.hash).await, Err(ChainError::Unreachable(_))));
    assert!(matches!(chain.dry_run(&claim(job, 100)).await, Err(ChainError::Unreachable(_))));
    assert!(matches!(chain.broadcast(&tx).await, Broadcast::Unknown(_)));
    let refused = connect(devnet.settings(HOST)).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Chain(ChainError::Unreachable(_))), "{refused}");
}

#[tokio::test]
async fn an_answer_lost_after_acceptance_is_unknown_and_never_a_failure() {
    let devnet = start().await;
    let proxy = Proxy::start(devnet.port);
    let mut settings = devnet.settings(HOST);
    settings.rpc_urls = vec![proxy.url.clone()];
    // Long enough for a slow machine's answers, short enough to wait for.
    settings.request_timeout = Duration::from_secs(4);
    let chain = connect(settings).await.unwrap();
    for fault in [Fault::Closed, Fault::BadGateway, Fault::Held] {
        let tx = signed(&chain, &Call::Nothing).await;
        proxy.set("eth_sendRawTransaction", fault);
        let outcome = chain.broadcast(&tx).await;
        assert!(matches!(outcome, Broadcast::Unknown(_)), "{fault:?}: {outcome:?}");
        devnet.mine(1).await;
        let included = chain.inclusion(tx.hash).await.unwrap();
        assert!(matches!(included, Inclusion::Included { success: true, .. }), "{fault:?}");
        proxy.set("", Fault::None);
        assert_eq!(chain.broadcast(&tx).await, Broadcast::NonceUsed, "{fault:?}");
    }
}

#[tokio::test]
async fn events_tell_of_our_jobs_in_order_and_once() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let from = head(&chain).await;
    let ours = devnet.open_session(OpenSession::default()).await;
    let theirs = OpenSession { host: STRANGER, ..OpenSession::default() };
    devnet.open_session(theirs).await;
    let silent = OpenSession { proof_interval: 100, ..OpenSession::default() };
    let second = devnet.open_session_from_deposit(silent).await;
    devnet.increase_time(10).await;
    let tx = send(&devnet, &chain, &claim(ours, 150)).await.hash;
    devnet.complete(CLIENT, ours).await;
    devnet.increase_time(1000).await;
    devnet.time_out(STRANGER, second).await;
    let tokens = TokenCount::new(150);
    let expected = vec![
        ChainEvent::Created(ours),
        ChainEvent::Created(second),
        ChainEvent::Proven { job: ours, tokens, tx },
        ChainEvent::Completed { job: ours, tokens },
        ChainEvent::TimedOut(second),
    ];
    let to = head(&chain).await;
    assert_eq!(chain.events(from, to).await, Ok(expected));
    assert_eq!(chain.events(to, from).await, Ok(vec![]), "an empty range");
    let beyond = BlockNumber::new(to.get() + 1000);
    assert!(chain.events(beyond, beyond).await.is_err(), "past the head is no silence");
}

#[tokio::test]
async fn a_completed_session_is_earned_after_the_window() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let job = devnet.open_session(OpenSession::default()).await;
    devnet.increase_time(10).await;
    send(&devnet, &chain, &claim(job, 100)).await;
    let complete = Call::Complete { job };
    reverts_with(chain.dry_run(&complete).await, "Must wait dispute window");
    devnet.increase_time(DISPUTE_WINDOW).await;
    let tx = send(&devnet, &chain, &complete).await;
    let included = chain.inclusion(tx.hash).await.unwrap();
    assert!(matches!(included, Inclusion::Included { success: true, proven: None, .. }));
    assert_eq!(chain.job(job).await.unwrap().unwrap().status, JobStatus::Completed);
    // 100 tokens at 1000 wei, less the tenth for the treasury.
    assert_eq!(chain.earnings(Address::ZERO).await, Ok(Amount::new(90_000)));
}

#[tokio::test]
async fn the_proof_system_in_place_of_the_marketplace_is_refused_by_name() {
    let devnet = start().await;
    let mut settings = devnet.settings(HOST);
    settings.marketplace = devnet.contracts.proof_system;
    let address = settings.marketplace;
    let refused = connect(settings).await.unwrap_err();
    assert_eq!(refused, ConnectError::ProofSystemNotMarketplace { address });
    assert!(refused.to_string().contains("ProofSystem, not the JobMarketplace"));
    let mut settings = devnet.settings(HOST);
    settings.proof_system = Some(settings.marketplace);
    let refused = connect(settings).await.unwrap_err();
    assert!(matches!(refused, ConnectError::ProofSystemNotMarketplace { .. }));
}

#[tokio::test]
async fn a_wrong_chain_or_contract_is_refused_with_what_was_found() {
    let devnet = start().await;
    let mut settings = devnet.settings(HOST);
    settings.chain_id = 1;
    let refused = connect(settings).await.unwrap_err();
    let endpoint = format!("127.0.0.1:{}", devnet.port);
    assert_eq!(refused, ConnectError::WrongChainId { endpoint, want: 1, found: 31337 });

    let mut settings = devnet.settings(HOST);
    settings.marketplace = CLIENT.address();
    let refused = connect(settings).await.unwrap_err();
    assert_eq!(refused, ConnectError::NoCode { address: CLIENT.address() });

    let mut settings = devnet.settings(HOST);
    settings.marketplace = devnet.contracts.host_earnings;
    let refused = connect(settings).await.unwrap_err();
    assert!(
        matches!(&refused, ConnectError::SelectorsMissing { missing, .. } if missing.len() == 3),
        "{refused}"
    );

    let mut settings = devnet.settings(HOST);
    settings.contract_version = Some(ContractVersion::V4);
    let refused = connect(settings).await.unwrap_err();
    assert!(
        matches!(&refused, ConnectError::PinContradicted { found, .. } if found == "v3"),
        "{refused}"
    );

    let mut settings = devnet.settings(HOST);
    settings.rpc_urls = vec!["http://user:SECRET@127.0.0.1:1/APIKEY".into()];
    let shown = format!("{settings:?} {:?}", connect(settings.clone()).await);
    assert!(!shown.contains("SECRET") && !shown.contains("APIKEY"), "{shown}");

    for urls in [vec![], vec!["nonsense".into()], vec!["ws://127.0.0.1".into()]] {
        let mut settings = devnet.settings(HOST);
        settings.rpc_urls = urls;
        assert!(matches!(connect(settings).await, Err(ConnectError::Settings(_))));
    }
}

#[tokio::test]
async fn a_contract_whose_shape_no_version_has_is_refused() {
    let devnet = start().await;
    let address = STRANGER.address();
    // Pushes v3's selectors, then answers everything with the 18 outputs of an unknown session.
    let code = "0x63c8c664ee5063ef39d3725063040138dd506102406101e0526102805ff3";
    devnet.rpc("anvil_setCode", json!([address.to_string(), code])).await;
    let mut settings = devnet.settings(HOST);
    settings.marketplace = address;
    let refused = connect(settings.clone()).await.unwrap_err();
    let ConnectError::UnsupportedVersion { found, spoken, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(spoken, "v3a, v3, v4, v5, v6, v7");
    assert!(found.starts_with("v3a or v3 by its claim function, but"), "{found}");
    settings.contract_version = Some(ContractVersion::V3);
    let refused = connect(settings).await.unwrap_err();
    assert!(matches!(refused, ConnectError::PinContradicted { .. }), "{refused}");
}

#[tokio::test]
async fn a_marketplace_behind_a_proxy_is_recognised() {
    let devnet = start().await;
    let proxy = STRANGER.address().to_string();
    let code = devnet.contracts.marketplace.to_string();
    let bare = code.trim_start_matches("0x");
    let slot = "0x360894a13ba1a3210667c828492db98dca3e2076cc3735a920a3ca505d382bbc";
    let delegate = format!("0x363d3d373d3d3d363d73{bare}5af43d82803e903d91602b57fd5bf3");
    devnet.rpc("anvil_setCode", json!([proxy, delegate])).await;
    devnet.rpc("anvil_setStorageAt", json!([proxy, slot, format!("0x{bare:0>64}")])).await;
    let mut settings = devnet.settings(HOST);
    settings.marketplace = STRANGER.address();
    assert_eq!(connect(settings).await.unwrap().version(), ContractVersion::V3);
}

#[tokio::test]
async fn the_preflight_reads_host_and_model_from_their_registries() {
    let devnet = start().await;
    let chain = devnet.connect().await;
    let model = ModelId::of("owner/repo", "model.gguf");
    let before = chain.host_standing().await.unwrap();
    assert!(!before.active && before.api_url.is_empty());
    let unknown = chain.model_standing(model).await.unwrap();
    assert!(!unknown.approved && unknown.weights_sha256.is_none());

    let sha256 = Hash32::new([5; 32]);
    let trusted = TrustedModel { repo: "owner/repo", file: "model.gguf", sha256 };
    devnet.register_host("http://host.example:8080", trusted).await;
    let host = chain.host_standing().await.unwrap();
    assert!(host.active);
    assert_eq!(host.api_url, "http://host.example:8080");
    assert!(chain.host_supports(model).await.unwrap());
    assert!(!chain.host_supports(ModelId::of("owner/repo", "other")).await.unwrap());
    let known = chain.model_standing(model).await.unwrap();
    assert!(known.approved);
    assert_eq!(known.weights_sha256, Some(sha256));
    assert_eq!(chain.contract_version(), "v3");
    assert!(chain.has_code(chain.marketplace()).await.unwrap());
    assert!(!chain.has_code(STRANGER.address()).await.unwrap());
    assert!(chain.gas_balance().await.unwrap() > Amount::ZERO);

    let mut settings = devnet.settings(HOST);
    settings.model_registry = None;
    let bare = connect(settings).await.unwrap();
    let missing = bare.model_standing(model).await;
    assert_eq!(missing, Err(RegistryError::NotConfigured("model registry")));
}
