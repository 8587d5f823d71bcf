//! Every contract version on a real EVM: found by looking, claimed, settled.
//!
//! One chain for each version and test; what a test says holds for all versions that it names.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use alloy::primitives::keccak256;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use tally::chain::evm::{ConnectError, ContractVersion, EvmChain, SentClaim, connect};
use tally::chain::{
    Broadcast, Call, Chain, ChainError, ChainEvent, ChainJob, DryRun, Inclusion, JobStatus,
    SignedTx, TxSpec,
};
use tally::proof::ProofBytes;
use tally::units::{
    Address, Amount, BlockNumber, ChainSeconds, ClaimSeq, Gas, Hash32, JobId, Signature, TokenCount,
};

use crate::support::anvil::{
    CLIENT, DISPUTE_WINDOW, Devnet, FEE_BASIS_POINTS, HOST, OpenSession, STRANGER,
};
use crate::support::proxy::{Fault, Proxy};
use crate::support::variant::{MODEL, MODEL_RATE, Variant, model_id};

/// Enough for a first claim, which stores its content id, in every version.
const GAS: Gas = Gas::new(600_000);

/// A proof as a node makes them: one root, and of each salt a first word of its own.
fn proof(salt: u16) -> ProofBytes {
    ProofBytes {
        flags: 0,
        tokens_cumulative: TokenCount::new(220),
        seq: ClaimSeq::new(1),
        salt,
        root: Hash32::new([0xab; 32]),
        signature: Signature::new([0xcd; 65]),
    }
}

fn claim(job: JobId, tokens: u64, salt: u16) -> Call {
    Call::Claim { job, tokens: TokenCount::new(tokens), proof: proof(salt).encode().to_vec() }
}

async fn start(variant: Variant) -> Devnet {
    let devnet = Devnet::start_variant(variant, &[]).await;
    devnet.set_automine(false).await;
    devnet
}

async fn signed(chain: &EvmChain, call: &Call) -> SignedTx {
    let fees = chain.fees().await.unwrap();
    let nonce = chain.wallet().await.unwrap().nonce_pending;
    chain.prepare(call, TxSpec { nonce, fees, gas_limit: GAS }).unwrap()
}

/// Sends and mines; what became of it.
async fn send(devnet: &Devnet, chain: &EvmChain, call: &Call) -> (SignedTx, Inclusion) {
    let tx = signed(chain, call).await;
    assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted);
    devnet.mine(1).await;
    let inclusion = chain.inclusion(tx.hash).await.unwrap();
    (tx, inclusion)
}

async fn claimed(devnet: &Devnet, chain: &EvmChain, call: &Call) -> SignedTx {
    let dry = chain.dry_run(call).await;
    assert!(matches!(dry, Ok(DryRun::Succeeds(gas)) if gas < GAS), "{dry:?}");
    let Call::Claim { tokens, .. } = call else { panic!("no claim") };
    let (tx, inclusion) = send(devnet, chain, call).await;
    let Inclusion::Included { success: true, proven, .. } = inclusion else {
        panic!("{:?}: {inclusion:?}", devnet.variant);
    };
    assert_eq!(proven, Some(*tokens), "{:?}", devnet.variant);
    tx
}

async fn state(chain: &EvmChain, job: JobId) -> ChainJob {
    chain.job(job).await.unwrap().unwrap()
}

fn refused(outcome: Result<DryRun, ChainError>) -> String {
    match outcome {
        Ok(DryRun::Reverts(words)) => words,
        other => panic!("should revert: {other:?}"),
    }
}

#[tokio::test]
async fn a_version_is_found_by_looking_and_no_other_can_be_pinned() {
    for variant in Variant::ALL {
        let devnet = start(variant).await;
        assert_eq!(devnet.connect().await.version(), variant.version(), "empty, {variant:?}");
        devnet.open_session(OpenSession::default()).await;
        for pin in ContractVersion::ALL {
            let mut settings = devnet.settings(HOST);
            settings.contract_version = Some(pin);
            match connect(settings).await {
                Ok(chain) => {
                    assert_eq!((pin, chain.version()), (variant.version(), variant.version()));
                }
                Err(ConnectError::PinContradicted { pinned, found, .. }) => {
                    assert_ne!(pin, variant.version(), "{variant:?}");
                    assert_eq!(pinned, pin);
                    assert_eq!(found, variant.version().name());
                }
                Err(other) => panic!("{variant:?} pinned as {pin}: {other}"),
            }
        }
    }
}

#[tokio::test]
async fn what_was_claimed_is_read_off_the_chain_byte_for_byte_in_every_version() {
    for variant in Variant::ALL {
        let devnet = start(variant).await;
        let chain = devnet.connect().await;
        let (job, other) = (
            devnet.open_session(OpenSession::default()).await,
            devnet.open_session(OpenSession::default()).await,
        );
        devnet.idle(1_000).await;
        let first = claimed(&devnet, &chain, &claim(job, 120, 0)).await;
        claimed(&devnet, &chain, &claim(other, 100, 2)).await;
        devnet.idle(1_000).await;
        let second = claimed(&devnet, &chain, &claim(job, 100, 1)).await;
        // Who looks has no key of the host's.
        let reader = connect(devnet.settings(STRANGER)).await.unwrap();
        let head = reader.head().await.unwrap().number;
        let found = reader.sent_claims(job, BlockNumber::ZERO, head).await.unwrap();
        let wanted = |tx: SignedTx, tokens, salt| SentClaim {
            tx: tx.hash,
            host: HOST.address(),
            tokens: TokenCount::new(tokens),
            proof: Some(proof(salt).encode().to_vec()),
        };
        assert_eq!(found, [wanted(first, 120, 0), wanted(second, 100, 1)], "{variant:?}");
    }
}

#[tokio::test]
async fn a_session_is_read_with_its_own_words_in_every_version() {
    for variant in Variant::ALL {
        let devnet = start(variant).await;
        let chain = devnet.connect().await;
        let open = OpenSession { silence: 90, ..OpenSession::default() };
        let job = devnet.open_session(open).await;
        let now = chain.head().await.unwrap().time;
        let is_v7 = variant == Variant::V7;
        let mut expected = ChainJob {
            id: job,
            depositor: CLIENT.address(),
            host: HOST.address(),
            payment_token: Address::ZERO,
            deposit: Amount::new(10_000_000),
            price: tally::units::PricePerToken::new(1000 * u128::from(variant.price_unit())),
            tokens_used: TokenCount::ZERO,
            duration_max: ChainSeconds::new(86_400),
            start_time: now,
            last_proof_time: now,
            silence_max: ChainSeconds::new(if is_v7 { 90 } else { 30_000 }),
            rate_per_second: variant.rate(),
            model: is_v7.then(|| model_id(MODEL)),
            status: JobStatus::Active,
        };
        assert_eq!(state(&chain, job).await, expected, "{variant:?}");
        expected.id = devnet.open_session(OpenSession { erc20: true, ..open }).await;
        expected.payment_token = devnet.contracts.token;
        let now = chain.head().await.unwrap().time;
        (expected.start_time, expected.last_proof_time) = (now, now);
        assert_eq!(state(&chain, expected.id).await, expected, "{variant:?}");
        assert_eq!(chain.job(JobId::new(99).unwrap()).await, Ok(None), "unknown, {variant:?}");

        let limits = chain.limits().await.unwrap();
        assert_eq!(limits.claim_min, TokenCount::new(100), "{variant:?}");
        assert_eq!(limits.dispute_window, ChainSeconds::new(DISPUTE_WINDOW), "{variant:?}");
        assert_eq!(limits.fee_basis_points, FEE_BASIS_POINTS, "{variant:?}");
        assert_eq!(limits.price_unit.get(), variant.price_unit(), "{variant:?}");
        let bought = limits.price_unit.affordable(expected.deposit, expected.price);
        assert_eq!(bought, TokenCount::new(10_000), "{variant:?}");
    }
}

/// Opens, claims twice, completes: what a host lives on.
async fn earn(variant: Variant, erc20: bool) {
    let devnet = start(variant).await;
    let chain = devnet.connect().await;
    let from = chain.head().await.unwrap().number;
    let job = devnet.open_session(OpenSession { erc20, ..OpenSession::default() }).await;
    let token = if erc20 { devnet.contracts.token } else { Address::ZERO };
    let other = if erc20 { Address::ZERO } else { devnet.contracts.token };
    assert_eq!(chain.funds(token).await, Ok(Amount::new(10_000_000)), "{variant:?}");
    devnet.increase_time(10).await;
    let first = claimed(&devnet, &chain, &claim(job, 120, 1)).await;
    let read = ProofBytes::decode(&recovered(&devnet, &first).await);
    assert_eq!(read, Ok(proof(1)), "{variant:?}");
    devnet.increase_time(10).await;
    let second = claimed(&devnet, &chain, &claim(job, 100, 2)).await;
    let read = ProofBytes::decode(&recovered(&devnet, &second).await);
    assert_eq!(read, Ok(proof(2)), "{variant:?}");
    let used = TokenCount::new(220);
    assert_eq!(state(&chain, job).await.tokens_used, used, "{variant:?}");

    let complete = Call::Complete { job };
    assert_eq!(refused(chain.dry_run(&complete).await), "Must wait dispute window");
    devnet.increase_time(DISPUTE_WINDOW).await;
    let (_, inclusion) = send(&devnet, &chain, &complete).await;
    assert!(matches!(inclusion, Inclusion::Included { success: true, proven: None, .. }));
    assert_eq!(state(&chain, job).await.status, JobStatus::Completed);
    // 220 tokens at 1000, less the tenth for the treasury.
    assert_eq!(chain.earnings(token).await, Ok(Amount::new(198_000)), "{variant:?}");
    assert_eq!(chain.earnings(other).await, Ok(Amount::ZERO), "{variant:?}");
    // The fee stays until the treasury fetches it.
    assert_eq!(chain.funds(token).await, Ok(Amount::new(22_000)), "{variant:?}");
    let to = chain.head().await.unwrap().number;
    let expected = vec![
        ChainEvent::Created(job),
        ChainEvent::Proven { job, tokens: TokenCount::new(120), tx: first.hash },
        ChainEvent::Proven { job, tokens: TokenCount::new(100), tx: second.hash },
        ChainEvent::Completed { job, tokens: used },
    ];
    let events = chain.events(BlockNumber::new(from.get() + 1), to).await;
    assert_eq!(events, Ok(expected), "{variant:?}");

    let withdrawal = chain.withdrawal(token, Amount::new(198_000));
    let (_, inclusion) = send(&devnet, &chain, &withdrawal).await;
    assert!(matches!(inclusion, Inclusion::Included { success: true, .. }), "{variant:?}");
    assert_eq!(chain.earnings(token).await, Ok(Amount::ZERO), "{variant:?}");
    if erc20 {
        assert_eq!(devnet.token_balance(HOST).await.to_string(), "198000");
    }
}

#[tokio::test]
async fn a_native_session_is_claimed_completed_and_paid_in_every_version() {
    for variant in Variant::ALL {
        earn(variant, false).await;
    }
}

#[tokio::test]
async fn an_erc20_session_is_claimed_completed_and_paid_in_its_token_in_every_version() {
    for variant in Variant::ALL {
        earn(variant, true).await;
    }
}

/// The proof's bytes from the chain alone, as docs/spec/proof.md tells an auditor to read them: of
/// v3a and v3 from the claim's input, later from `ProofSubmitted`.
async fn recovered(devnet: &Devnet, tx: &SignedTx) -> Vec<u8> {
    let bytes = |value: &Value| hex::decode(&value.as_str().unwrap()[2..]).unwrap();
    let number = |word: &[u8]| usize::from(u16::from_be_bytes([word[30], word[31]]));
    let text = |data: &[u8], at: usize| {
        let offset = number(&data[at * 32..][..32]);
        let length = number(&data[offset..][..32]);
        data[offset + 32..][..length].to_vec()
    };
    let hash = tx.hash.to_string();
    if matches!(devnet.variant, Variant::V3a | Variant::V3) {
        let sent = devnet.rpc("eth_getTransactionByHash", json!([hash])).await;
        return text(&bytes(&sent["input"])[4..], 2);
    }
    let receipt = devnet.rpc("eth_getTransactionReceipt", json!([hash])).await;
    let marketplace = json!(devnet.contracts.marketplace.to_string());
    let logs = receipt["logs"].as_array().unwrap();
    let log = logs.iter().find(|log| log["address"] == marketplace).unwrap();
    let data = bytes(&log["data"]);
    let id = String::from_utf8(text(&data, 2)).unwrap();
    if matches!(devnet.variant, Variant::V6 | Variant::V7) {
        assert_eq!(text(&data, 3), [0; 0], "no second document");
    }
    let binary = from_base64url(id.strip_prefix('u').unwrap());
    assert_eq!(binary[..4], [1, 0x55, 0, 113], "CIDv1, raw, identity, length");
    [&data[32..64], &binary[4..]].concat()
}

fn from_base64url(text: &str) -> Vec<u8> {
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits = Vec::new();
    for digit in text.chars() {
        let value = digits.find(digit).unwrap();
        bits.extend((0..6).rev().map(|bit| value >> bit & 1));
    }
    let whole = bits.chunks_exact(8);
    whole
        .map(|byte| byte.iter().fold(0, |value, bit| value << 1 | u8::try_from(*bit).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_used_proof_is_refused_and_another_salt_is_the_remedy() {
    for variant in Variant::ALL {
        let devnet = start(variant).await;
        let chain = devnet.connect().await;
        let job = devnet.open_session(OpenSession::default()).await;
        devnet.increase_time(10).await;
        claimed(&devnet, &chain, &claim(job, 100, 1)).await;
        devnet.increase_time(10).await;
        let again = claim(job, 100, 1);
        if matches!(variant, Variant::V4 | Variant::V4Late) {
            // v4 takes a replay and charges it: only our own books stand in its way.
            claimed(&devnet, &chain, &again).await;
            assert_eq!(state(&chain, job).await.tokens_used, TokenCount::new(200));
            continue;
        }
        refused(chain.dry_run(&again).await);
        let (_, inclusion) = send(&devnet, &chain, &again).await;
        assert!(matches!(inclusion, Inclusion::Included { success: false, proven: None, .. }));
        claimed(&devnet, &chain, &claim(job, 100, 2)).await;

        devnet.burn_first_word(STRANGER, *proof(3).claim().bytes()).await;
        devnet.increase_time(10).await;
        refused(chain.dry_run(&claim(job, 100, 3)).await);
        claimed(&devnet, &chain, &claim(job, 100, 4)).await;
        let used = state(&chain, job).await.tokens_used;
        assert_eq!(used, TokenCount::new(300), "{variant:?}");
    }
}

#[tokio::test]
async fn a_strangers_timeout_pays_what_was_proven() {
    for variant in Variant::ALL {
        let devnet = start(variant).await;
        let chain = devnet.connect().await;
        let open = OpenSession { proof_interval: 100, ..OpenSession::default() };
        let job = devnet.open_session(open).await;
        let from = chain.head().await.unwrap().number;
        devnet.increase_time(10).await;
        let tx = claimed(&devnet, &chain, &claim(job, 150, 1)).await;
        let known = state(&chain, job).await;
        assert_eq!(known.silence_max, ChainSeconds::new(300), "{variant:?}");
        // The timeout is allowed when the silence is longer than that, by the chain's clock.
        devnet.increase_time(known.silence_max.get() + 1).await;
        devnet.time_out(STRANGER, job).await;
        assert_eq!(state(&chain, job).await.status, JobStatus::TimedOut, "{variant:?}");
        assert_eq!(chain.earnings(Address::ZERO).await, Ok(Amount::new(135_000)));
        refused(chain.dry_run(&claim(job, 100, 2)).await);
        let to = chain.head().await.unwrap().number;
        let tokens = TokenCount::new(150);
        let expected = vec![
            ChainEvent::Created(job),
            ChainEvent::Proven { job, tokens, tx: tx.hash },
            ChainEvent::TimedOut(job),
        ];
        assert_eq!(chain.events(from, to).await, Ok(expected), "{variant:?}");
    }
}

#[tokio::test]
async fn another_hosts_session_cannot_be_claimed_in_any_version() {
    for variant in Variant::ALL {
        let devnet = start(variant).await;
        let job = devnet.open_session(OpenSession::default()).await;
        devnet.increase_time(10).await;
        let foreign = connect(devnet.settings(STRANGER)).await.unwrap();
        let words = refused(foreign.dry_run(&claim(job, 100, 1)).await);
        let expected =
            if variant == Variant::V7 { "Not host" } else { "Only host can submit proof" };
        assert_eq!(words, expected, "{variant:?}");
        let (_, inclusion) = send(&devnet, &foreign, &claim(job, 100, 1)).await;
        assert!(matches!(inclusion, Inclusion::Included { success: false, proven: None, .. }));
        assert_eq!(state(&foreign, job).await.tokens_used, TokenCount::ZERO, "{variant:?}");
    }
}

#[tokio::test]
async fn a_claim_at_the_rate_passes_and_one_past_rate_or_deposit_does_not() {
    for variant in Variant::ALL {
        let devnet = start(variant).await;
        let chain = devnet.connect().await;
        let job = devnet.open_session(OpenSession::default()).await; // It buys 10 000 tokens.
        let opened = state(&chain, job).await;
        assert!(opened.rate_per_second <= variant.contract_rate(), "{variant:?}");
        // At 20 tokens a second, the least claim takes 5 s; at 2000, 10 000 are spent in 5.
        let slow = if variant.contract_rate() == 20 { 5 } else { 0 };
        for (seconds, more, passes) in [(3 + slow, 1, false), (4 + slow, 0, true)] {
            let tokens = variant.contract_rate() * seconds + more;
            let tx = signed(&chain, &claim(job, tokens, 1)).await;
            assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted);
            let at = opened.last_proof_time.get() + seconds;
            devnet.rpc("evm_setNextBlockTimestamp", json!([at])).await;
            devnet.mine(1).await;
            let inclusion = chain.inclusion(tx.hash).await.unwrap();
            let is_included =
                matches!(inclusion, Inclusion::Included { success, .. } if success == passes);
            assert!(is_included, "{variant:?}, {tokens} after {seconds} s: {inclusion:?}");
        }
        devnet.increase_time(600).await;
        let left = 10_000 - state(&chain, job).await.tokens_used.get();
        assert_eq!(refused(chain.dry_run(&claim(job, left + 1, 2)).await), "Exceeds deposit");
        claimed(&devnet, &chain, &claim(job, left, 3)).await;
    }
}

#[tokio::test]
async fn a_paused_contract_refuses_claims_until_it_goes_on() {
    for variant in Variant::ALL.into_iter().filter(|variant| variant.is_later()) {
        let devnet = start(variant).await;
        let chain = devnet.connect().await;
        let job = devnet.open_session(OpenSession::default()).await;
        devnet.increase_time(10).await;
        devnet.set_paused(true).await;
        assert_eq!(refused(chain.dry_run(&claim(job, 100, 1)).await), "EnforcedPause()");
        devnet.set_paused(false).await;
        claimed(&devnet, &chain, &claim(job, 100, 1)).await;
    }
}

#[tokio::test]
async fn a_models_rate_is_kept_for_a_while_and_read_again_after_a_refusal() {
    let devnet = start(Variant::V7).await;
    let chain = devnet.connect().await;
    let job = devnet.open_session(OpenSession { silence: 0, ..OpenSession::default() }).await;
    let known = state(&chain, job).await;
    assert_eq!(known.rate_per_second, MODEL_RATE);
    assert_eq!(known.model, Some(model_id(MODEL)));
    assert_eq!(known.silence_max, ChainSeconds::new(300), "0 stands for the default");
    devnet.set_model_rate(1).await;
    assert_eq!(state(&chain, job).await.rate_per_second, MODEL_RATE, "kept");
    devnet.increase_time(10).await;
    let words = refused(chain.dry_run(&claim(job, 200, 1)).await);
    assert_eq!(words, "Excessive tokens claimed");
    assert_eq!(state(&chain, job).await.rate_per_second, 1, "read again after a refusal");
    devnet.set_model_rate(30).await;
    devnet.increase_time(60).await;
    assert_eq!(state(&chain, job).await.rate_per_second, 30, "read again after a minute");
}

#[tokio::test]
async fn endpoints_that_remember_different_rates_are_asked_again_and_agree() {
    let devnet = start(Variant::V7).await;
    let job = devnet.open_session(OpenSession::default()).await;
    let proxy = Proxy::start(devnet.port);
    let mut settings = devnet.settings(HOST);
    settings.rpc_urls = vec![devnet.url.clone(), proxy.url.clone()];
    settings.quorum = Some(2);
    let chain = connect(settings).await.unwrap();
    // Only the first endpoint gets as far as the rate, and remembers it.
    let model_getter = hex::encode(&keccak256("sessionModel(uint256)")[..4]);
    proxy.set(&model_getter, Fault::BadGateway);
    let alone = chain.job(job).await;
    assert!(matches!(alone, Err(ChainError::Unreachable(_))), "{alone:?}");
    proxy.set("", Fault::None);
    devnet.set_model_rate(30).await;
    assert_eq!(state(&chain, job).await.rate_per_second, 30);
}

/// What goes through to the chain, but for the first answers about a block, which name one that
/// a reorganisation took away.
struct Reorganised {
    upstream: String,
    http: reqwest::Client,
    lies_left: AtomicUsize,
}

async fn pass_on(State(shared): State<Arc<Reorganised>>, Json(asked): Json<Value>) -> Json<Value> {
    let answer = shared.http.post(&shared.upstream).json(&asked).send().await.unwrap();
    let mut answer: Value = answer.json().await.unwrap();
    let take = |left: usize| left.checked_sub(1);
    if asked["method"] == "eth_getBlockByNumber"
        && shared.lies_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    {
        answer["result"]["hash"] = json!(Hash32::new([7; 32]).to_string());
    }
    Json(answer)
}

#[tokio::test]
async fn session_and_model_are_read_again_where_their_block_is_gone() {
    let devnet = start(Variant::V7).await;
    let job = devnet.open_session(OpenSession::default()).await;
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let lies_left = AtomicUsize::new(0);
    let shared = Arc::new(Reorganised { upstream: devnet.url.clone(), http, lies_left });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = devnet.settings(HOST);
    settings.rpc_urls = vec![format!("http://{}", listener.local_addr().unwrap())];
    let app = Router::new().route("/", post(pass_on)).with_state(shared.clone());
    let served = tokio::spawn(async move { axum::serve(listener, app).await });
    let chain = connect(settings).await.unwrap();

    shared.lies_left.store(2, Ordering::SeqCst);
    assert_eq!(state(&chain, job).await.model, Some(model_id(MODEL)));
    assert_eq!(shared.lies_left.load(Ordering::SeqCst), 0, "read three times");
    shared.lies_left.store(100, Ordering::SeqCst);
    let never = chain.job(job).await;
    assert!(matches!(never, Err(ChainError::Unreachable(_))), "{never:?}");
    served.abort();
}
