//! Several RPC endpoints in front of one real chain: dead, slow, throttled, stale and lying ones.
//! With three of them, no single one changes what the node decides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tally::chain::evm::{ConnectError, EvmChain, EvmSettings, connect};
use tally::chain::{
    Broadcast, Call, Chain, ChainError, DryRun, Inclusion, Limits, SignedTx, TxSpec,
};
use tally::clock::{Clock, Sleep, SystemClock};
use tally::node::metrics::Metrics;
use tally::units::{BlockNumber, Gas, JobId, Millis, TokenCount, TxHash, WalletNonce};

use crate::support::anvil::{CHAIN_ID, Devnet, HOST, OpenSession};
use crate::support::proxy::{Fault, Lie, Proxy, quantity};

/// Enough for any call here (contract.md section 2: a first proof takes 184 k).
const GAS: Gas = Gas::new(400_000);

/// Never reached by a local chain that answers, however slow the machine.
const UNHURRIED: Duration = Duration::from_secs(100);

/// Short enough to wait a fifth of it for an endpoint that hangs.
const HURRIED: Duration = Duration::from_secs(15);

/// The machine's clock, moved ahead by the test: rests end without waiting for them.
struct Ahead {
    real: Arc<dyn Clock>,
    millis: AtomicU64,
}

impl Ahead {
    fn shared() -> Arc<Self> {
        Arc::new(Self { real: SystemClock::shared(), millis: AtomicU64::new(0) })
    }

    fn skip(&self, span: Duration) {
        self.millis.fetch_add(span.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }
}

impl Clock for Ahead {
    fn now(&self) -> Millis {
        self.real.now().saturating_add(Millis::new(self.millis.load(Ordering::Relaxed)))
    }

    fn unix(&self) -> Millis {
        self.real.unix()
    }

    fn sleep(&self, span: Duration) -> Sleep {
        self.real.sleep(span)
    }
}

/// A chain on which the test says when a block is mined, and endpoints in front of it.
struct Net {
    devnet: Devnet,
    proxies: Vec<Proxy>,
    clock: Arc<Ahead>,
}

impl Net {
    async fn start(count: usize) -> Self {
        let devnet = Devnet::start().await;
        devnet.set_automine(false).await;
        let proxies = (0..count).map(|_| Proxy::start(devnet.port)).collect();
        Self { devnet, proxies, clock: Ahead::shared() }
    }

    fn settings(&self) -> EvmSettings {
        let mut settings = self.devnet.settings(HOST);
        settings.rpc_urls = self.proxies.iter().map(|proxy| proxy.url.clone()).collect();
        settings.request_timeout = UNHURRIED;
        settings.clock = self.clock.clone();
        settings
    }

    async fn connect(&self) -> EvmChain {
        connect(self.settings()).await.unwrap()
    }

    async fn hurried(&self) -> EvmChain {
        connect(EvmSettings { request_timeout: HURRIED, ..self.settings() }).await.unwrap()
    }

    fn heal(&self) {
        self.proxies.iter().for_each(Proxy::heal);
    }

    async fn height(&self) -> u64 {
        let height = self.devnet.rpc("eth_blockNumber", json!([])).await;
        quantity(height.as_str().unwrap())
    }

    /// A session whose first 120 tokens can be claimed.
    async fn open(&self) -> JobId {
        let job = self.devnet.open_session(OpenSession::default()).await;
        self.devnet.increase_time(20).await;
        job
    }
}

fn claim(job: JobId) -> Call {
    let mut proof = vec![1; 64];
    proof[..8].copy_from_slice(&job.get().to_be_bytes());
    Call::Claim { job, tokens: TokenCount::new(120), proof }
}

async fn signed(net: &Net, chain: &EvmChain, call: &Call) -> SignedTx {
    let fees = chain.fees().await.unwrap();
    let params = json!([HOST.address, "pending"]);
    let nonce = net.devnet.rpc("eth_getTransactionCount", params).await;
    let nonce = WalletNonce::new(quantity(nonce.as_str().unwrap()));
    chain.prepare(call, TxSpec { nonce, fees, gas_limit: GAS }).unwrap()
}

fn is_unreachable<T: std::fmt::Debug>(outcome: Result<T, ChainError>) -> String {
    match outcome {
        Err(ChainError::Unreachable(words)) => words,
        other => panic!("not unreachable: {other:?}"),
    }
}

/// Claims once and checks every decision on the way against the chain itself.
async fn claims_as_on_an_honest_chain(net: &Net, chain: &EvmChain, limits: Limits, what: &str) {
    let devnet = &net.devnet;
    let job = net.open().await;
    let head = chain.head().await.unwrap();
    let newest = devnet.rpc("eth_getBlockByNumber", json!(["latest", false])).await;
    assert_eq!(head.number.get(), net.height().await, "{what}: head");
    assert_eq!(json!(head.hash.to_string()), newest["hash"], "{what}: head");
    assert_eq!(head.time.get(), quantity(newest["timestamp"].as_str().unwrap()), "{what}: time");
    assert_eq!(chain.limits().await, Ok(limits), "{what}: limits");
    let state = chain.job(job).await.unwrap().unwrap();
    assert_eq!((state.tokens_used, state.deposit.get()), (TokenCount::ZERO, 10_000_000), "{what}");
    match chain.dry_run(&claim(job)).await {
        Ok(DryRun::Succeeds(gas)) => assert!((100_000..400_000).contains(&gas.get()), "{what}"),
        other => panic!("{what}: dry run {other:?}"),
    }
    let tx = signed(net, chain, &claim(job)).await;
    assert_eq!(chain.inclusion(tx.hash).await, Ok(Inclusion::Absent), "{what}: not sent yet");
    let wallet = chain.wallet().await.unwrap();
    let nonce = wallet.nonce_mined;
    assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted, "{what}");
    devnet.mine(1).await;
    let receipt = devnet.rpc("eth_getTransactionReceipt", json!([tx.hash.to_string()])).await;
    match chain.inclusion(tx.hash).await.unwrap() {
        Inclusion::Included { block, block_hash, success, proven, .. } => {
            assert_eq!(block.get(), net.height().await, "{what}: block");
            assert_eq!(json!(block_hash.to_string()), receipt["blockHash"], "{what}: block");
            assert!(
                success && proven == Some(TokenCount::new(120)),
                "{what}: {success} {proven:?}"
            );
        }
        other => panic!("{what}: {other:?}"),
    }
    let wallet = chain.wallet().await.unwrap();
    assert_eq!(Some(wallet.nonce_mined), nonce.next(), "{what}: one nonce was used");
    let state = chain.job(job).await.unwrap().unwrap();
    assert_eq!(state.tokens_used, TokenCount::new(120), "{what}: counted once");
    assert_eq!(chain.broadcast(&tx).await, Broadcast::NonceUsed, "{what}: the same bytes again");
}

/// Writes `value` over the 32-byte word `nth` of an ABI answer, where it is that long.
fn overwrite(answer: &mut Value, nth: usize, value: u64) {
    let Some(text) = answer.as_str() else { return };
    let at = 2 + nth * 64;
    if text.len() >= at + 64 {
        *answer = json!(format!("{}{value:064x}{}", &text[..at], &text[at + 64..]));
    }
}

fn if_there(answer: &mut Value, change: impl Fn(&mut Value)) {
    if !answer.is_null() {
        change(answer);
    }
}

fn raised(field: &mut Value, by: u64) {
    *field = json!(format!("{:#x}", quantity(field.as_str().unwrap()) + by));
}

/// A receipt for a transaction nobody sent.
fn invented(request: &Value, answer: &mut Value) {
    let word = format!("0x{}", "77".repeat(32));
    answer["result"] = json!({
        "transactionHash": request["params"][0], "blockNumber": "0x1", "blockHash": word,
        "status": "0x1", "gasUsed": "0x5208", "effectiveGasPrice": "0x1", "logs": [],
    });
}

/// How a single endpoint may be wrong, `height` being the chain's when it begins.
fn lies(height: u64) -> Vec<(&'static str, Lie)> {
    let word = || json!(format!("0x{}", "66".repeat(32)));
    let (receipt, block) = ("eth_getTransactionReceipt", "eth_getBlockByNumber");
    let nonce = "eth_getTransactionCount";
    let send = "eth_sendRawTransaction";
    vec![
        ("it is stale", Lie::frozen_at(height)),
        ("claims revert", Lie::about(receipt, |r| if_there(r, |r| r["status"] = json!("0x0")))),
        ("another block", Lie::about(receipt, move |r| if_there(r, |r| r["blockHash"] = word()))),
        ("another amount", Lie::about(receipt, |r| if_there(r, |r| r["logs"] = json!([])))),
        ("no receipts", Lie::about(receipt, |r| *r = Value::Null)),
        ("invented receipts", Lie::telling(receipt, invented)),
        ("a high nonce", Lie::about(nonce, |r| *r = json!("0x63"))),
        ("a low nonce", Lie::about(nonce, |r| *r = json!("0x0"))),
        ("a high head", Lie::about(block, |r| if_there(r, |r| raised(&mut r["number"], 1000)))),
        (
            "another head",
            Lie::about(block, |r| if_there(r, |r| r["hash"] = json!(r["parentHash"]))),
        ),
        (
            "a late clock",
            Lie::about(block, |r| if_there(r, |r| raised(&mut r["timestamp"], 99_999))),
        ),
        ("more tokens used", Lie::about("eth_call", |r| overwrite(r, 7, 5000))),
        ("other getters", Lie::about("eth_call", |r| overwrite(r, 0, 7))),
        ("little gas", Lie::about("eth_estimateGas", |r| *r = json!("0x5208"))),
        ("endless gas", Lie::about("eth_estimateGas", |r| *r = json!("0xffffffffff"))),
        ("all reverts", Lie::refusing("eth_estimateGas", "execution reverted: no")),
        (
            "a huge tip",
            Lie::about("eth_maxPriorityFeePerGas", |r| *r = json!("0xffffffffffffffff")),
        ),
        ("nonces are used", Lie::refusing(send, "nonce too low")),
        ("no funds", Lie::refusing(send, "insufficient funds for gas * price + value")),
        ("another chain", Lie::about("eth_chainId", |r| *r = json!("0x1"))),
    ]
}

#[tokio::test]
async fn of_three_endpoints_no_single_liar_changes_a_decision() {
    let net = Net::start(3).await;
    let limits = net.devnet.connect().await.limits().await.unwrap();
    for liar in 0..2 {
        let count = lies(0).len();
        for nth in 0..count {
            // Connected while all are honest: what counts is how each single read is judged.
            let chain = net.connect().await;
            let (what, lie) = lies(net.height().await).swap_remove(nth);
            net.proxies[liar].lie(lie);
            let what = format!("{what} (endpoint {liar})");
            claims_as_on_an_honest_chain(&net, &chain, limits, &what).await;
            net.heal();
        }
    }
}

#[tokio::test]
async fn of_three_endpoints_one_that_fails_in_any_way_changes_no_decision() {
    let net = Net::start(3).await;
    let limits = net.devnet.connect().await.limits().await.unwrap();
    let faults = [
        Fault::Closed,
        Fault::Lost,
        Fault::BadGateway,
        Fault::ServerError,
        Fault::Throttled,
        Fault::Held,
    ];
    for fault in faults {
        for at in 0..2 {
            let chain = net.hurried().await;
            net.proxies[at].set("", fault);
            let what = format!("{fault:?} (endpoint {at})");
            claims_as_on_an_honest_chain(&net, &chain, limits, &what).await;
            assert_eq!(chain.endpoints_usable(), (2, 3), "{what}");
            net.heal();
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_is_dead_from_the_start_is_used_once_it_lives() {
    let net = Net::start(3).await;
    net.proxies[0].set("", Fault::Lost);
    let chain = net.connect().await;
    assert!(chain.head().await.is_ok());
    assert_eq!(chain.endpoints_usable(), (2, 3));
    net.heal();
    net.clock.skip(Duration::from_secs(61));
    assert!(chain.head().await.is_ok());
    assert_eq!(chain.endpoints_usable(), (3, 3));
    // With another one gone, it is needed.
    net.proxies[1].set("", Fault::Lost);
    assert!(chain.job(JobId::new(1).unwrap()).await.is_ok());
}

#[tokio::test]
async fn two_dead_of_three_stop_decisions_and_one_alone_is_never_believed() {
    let net = Net::start(3).await;
    let chain = net.connect().await;
    let job = net.open().await;
    let tx = signed(&net, &chain, &claim(job)).await;
    for proxy in &net.proxies[1..] {
        proxy.set("", Fault::Lost);
    }
    let why = is_unreachable(chain.head().await);
    assert!(why.contains("1 of 3 answered, 2 needed"), "{why}");
    assert!(why.contains(net.proxies[1].host()), "{why}");
    is_unreachable(chain.wallet().await);
    is_unreachable(chain.job(job).await);
    is_unreachable(chain.inclusion(tx.hash).await);
    is_unreachable(chain.dry_run(&claim(job)).await);
    // What it takes is on its way nevertheless, and what it refuses is unknown.
    assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted);
    net.devnet.mine(1).await;
    assert!(matches!(chain.broadcast(&tx).await, Broadcast::Unknown(_)));
    // Whoever rests is asked all the same where too few are left: no wait for the rest's end.
    net.proxies[2].heal();
    assert!(matches!(chain.inclusion(tx.hash).await, Ok(Inclusion::Included { .. })));
}

#[tokio::test]
async fn of_two_endpoints_both_decide_while_both_answer_and_else_the_one_that_does() {
    let net = Net::start(2).await;
    let chain = net.connect().await;
    let limits = chain.limits().await.unwrap();
    let job = net.open().await;
    let tx = signed(&net, &chain, &claim(job)).await;
    assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted);
    net.devnet.mine(1).await;
    let flipped = |r: &mut Value| if_there(r, |r| r["status"] = json!("0x0"));
    net.proxies[1].lie(Lie::about("eth_getTransactionReceipt", flipped));
    assert_eq!(chain.inclusion(tx.hash).await, Ok(Inclusion::Pending), "no second opinion");
    net.proxies[1].lie(Lie::about("eth_getTransactionCount", |r| *r = json!("0x63")));
    assert_eq!(chain.wallet().await.unwrap().nonce_mined, WalletNonce::new(1), "the lower one");
    net.proxies[1].lie(Lie::about("eth_call", |r| overwrite(r, 7, 5000)));
    assert!(is_unreachable(chain.job(job).await).contains("disagree about job"));
    for dead in 0..2 {
        net.heal();
        net.proxies[dead].set("", Fault::Lost);
        let chain = net.connect().await;
        let what = format!("endpoint {dead} is dead");
        claims_as_on_an_honest_chain(&net, &chain, limits, &what).await;
        assert_eq!(chain.endpoints_usable(), (1, 2), "{what}");
    }
}

#[tokio::test]
async fn a_quorum_of_both_waits_for_both() {
    let net = Net::start(2).await;
    let settings = EvmSettings { quorum: Some(2), ..net.settings() };
    let chain = connect(settings).await.unwrap();
    assert!(chain.head().await.is_ok());
    net.proxies[0].set("", Fault::Lost);
    is_unreachable(chain.head().await);
    is_unreachable(chain.inclusion(TxHash::new([1; 32])).await);
}

#[tokio::test]
async fn a_block_more_or_less_is_no_disagreement_and_the_common_block_is_read() {
    let net = Net::start(2).await;
    let chain = net.connect().await;
    let job = net.open().await;
    let before = net.height().await;
    let tx = signed(&net, &chain, &claim(job)).await;
    chain.broadcast(&tx).await;
    net.devnet.mine(1).await;
    net.proxies[0].lie(Lie::frozen_at(before));
    // One endpoint has the claim's block and the other has not yet: nothing counts before both do.
    assert_eq!(chain.head().await.unwrap().number, BlockNumber::new(before));
    let used = chain.job(job).await.unwrap().unwrap().tokens_used;
    assert_eq!(used, TokenCount::ZERO, "as of the block that both have");
    assert_eq!(chain.inclusion(tx.hash).await, Ok(Inclusion::Pending));
    assert_eq!(chain.endpoints_usable(), (2, 2), "nobody is at fault");
    net.heal();
    assert!(matches!(chain.inclusion(tx.hash).await, Ok(Inclusion::Included { .. })));
}

#[tokio::test]
async fn an_endpoint_that_stopped_following_rests_until_it_has_caught_up() {
    let net = Net::start(2).await;
    let chain = net.connect().await;
    net.proxies[0].lie(Lie::frozen_at(net.height().await));
    for _ in 0..5 {
        net.devnet.increase_time(12).await;
    }
    assert!(chain.head().await.is_ok());
    assert_eq!(chain.endpoints_usable(), (1, 2));
    let newest = net.height().await;
    assert_eq!(chain.head().await.unwrap().number.get(), newest, "the other one goes on");
    let asked = net.proxies[0].count("");
    chain.wallet().await.unwrap();
    chain.fees().await.unwrap();
    assert_eq!(net.proxies[0].count(""), asked, "it is left alone");
    net.clock.skip(Duration::from_secs(61));
    assert_eq!(chain.head().await.unwrap().number.get(), newest - 5, "asked again, still old");
    assert_eq!(chain.endpoints_usable(), (1, 2));
    net.heal();
    net.clock.skip(Duration::from_secs(61));
    assert!(chain.head().await.is_ok());
    assert_eq!(chain.endpoints_usable(), (2, 2));
}

#[tokio::test]
async fn a_throttled_endpoint_is_left_alone_for_as_long_as_it_asked() {
    let net = Net::start(2).await;
    let chain = net.connect().await;
    let before = net.proxies[0].count("");
    net.proxies[0].set("", Fault::Throttled);
    chain.wallet().await.unwrap();
    for _ in 0..5 {
        chain.wallet().await.unwrap();
        chain.head().await.unwrap();
    }
    net.clock.skip(Duration::from_secs(29));
    chain.head().await.unwrap();
    // The three requests of the first reading may all be out before one of them is answered.
    let asked = net.proxies[0].count("");
    assert!(asked <= before + 3, "{} requests in half a minute", asked - before);
    net.heal();
    net.clock.skip(Duration::from_secs(2));
    chain.head().await.unwrap();
    assert!(net.proxies[0].count("") > asked);
    assert_eq!(chain.endpoints_usable(), (2, 2));
    // The only one is left alone as well: what it is not asked, it did not answer.
    let only = EvmSettings { rpc_urls: vec![net.proxies[0].url.clone()], ..net.settings() };
    let alone = connect(only).await.unwrap();
    net.proxies[0].set("", Fault::Throttled);
    is_unreachable(alone.head().await);
    let asked = net.proxies[0].count("");
    assert!(is_unreachable(alone.head().await).contains("429"));
    assert_eq!(net.proxies[0].count(""), asked);
}

#[tokio::test]
async fn a_broadcast_that_one_of_three_takes_counts() {
    let net = Net::start(3).await;
    let chain = net.connect().await;
    for taker in 0..3 {
        let others = || (0..3).filter(|at| *at != taker);
        for (first, second) in [(Fault::Lost, Fault::Lost), (Fault::Throttled, Fault::Lost)] {
            net.clock.skip(Duration::from_secs(61));
            assert!(chain.head().await.is_ok(), "all are well again");
            let tx = signed(&net, &chain, &Call::Nothing).await;
            for (at, fault) in others().zip([first, second]) {
                net.proxies[at].set("eth_sendRawTransaction", fault);
            }
            assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted, "{taker}");
            net.devnet.mine(1).await;
            net.heal();
        }
        net.clock.skip(Duration::from_secs(61));
        assert!(chain.head().await.is_ok());
        let tx = signed(&net, &chain, &Call::Nothing).await;
        for (at, words) in others().zip(["nonce too low", "txpool is full"]) {
            net.proxies[at].lie(Lie::refusing("eth_sendRawTransaction", words));
        }
        assert_eq!(chain.broadcast(&tx).await, Broadcast::Accepted, "{taker}");
        net.devnet.mine(1).await;
        net.heal();
    }
}

#[tokio::test]
async fn a_broadcast_that_nobody_confirms_is_unknown_and_may_be_mined() {
    let net = Net::start(3).await;
    let chain = net.connect().await;
    for fault in [Fault::Closed, Fault::BadGateway, Fault::ServerError] {
        net.clock.skip(Duration::from_secs(61));
        assert!(chain.head().await.is_ok());
        let tx = signed(&net, &chain, &Call::Nothing).await;
        net.proxies.iter().for_each(|proxy| proxy.set("eth_sendRawTransaction", fault));
        let outcome = chain.broadcast(&tx).await;
        assert!(matches!(outcome, Broadcast::Unknown(_)), "{fault:?}: {outcome:?}");
        net.heal();
        net.devnet.mine(1).await;
        let found = chain.inclusion(tx.hash).await;
        assert!(matches!(found, Ok(Inclusion::Included { success: true, .. })), "{fault:?}");
    }
}

#[tokio::test]
async fn an_endpoint_of_another_chain_is_refused_by_its_name_at_the_start_and_barred_later() {
    let net = Net::start(3).await;
    net.proxies[1].lie(Lie::about("eth_chainId", |r| *r = json!("0x1")));
    let refused = connect(net.settings()).await.unwrap_err();
    let endpoint = net.proxies[1].host().to_owned();
    assert_eq!(refused, ConnectError::WrongChainId { endpoint, want: CHAIN_ID, found: 1 });
    // Dead at the start and of another chain when it comes: it is never believed.
    net.proxies[1].set("", Fault::Lost);
    let chain = net.connect().await;
    net.proxies[1].set("", Fault::None);
    net.clock.skip(Duration::from_secs(61));
    assert!(chain.head().await.is_ok());
    assert_eq!(chain.endpoints_usable(), (2, 3));
    let asked = net.proxies[1].count("");
    net.proxies[0].set("", Fault::Lost);
    is_unreachable(chain.wallet().await);
    assert_eq!(net.proxies[1].count(""), asked, "not even where it is needed");
}

#[tokio::test]
async fn an_impossible_list_is_refused_and_secrets_are_never_shown() {
    let net = Net::start(2).await;
    let urls: Vec<String> = net
        .proxies
        .iter()
        .map(|proxy| format!("http://user:SECRET@{}/v3/APIKEY?key=APIKEY", proxy.host()))
        .collect();
    let settings = EvmSettings { rpc_urls: urls.clone(), ..net.settings() };
    let mut shown = format!("{settings:?}");
    let mut refuse = async |change: &dyn Fn(&mut EvmSettings)| {
        let mut settings = settings.clone();
        change(&mut settings);
        let refused = connect(settings).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Settings(_)), "{refused}");
        shown.push_str(&format!("{refused} {refused:?}"));
    };
    refuse(&|settings| settings.quorum = Some(0)).await;
    refuse(&|settings| settings.quorum = Some(3)).await;
    refuse(&|settings| settings.rpc_urls = vec![urls[0].clone(), urls[0].clone()]).await;
    refuse(&|settings| settings.rpc_urls = vec![]).await;
    let twin = format!("{}X", urls[0]);
    let twins = EvmSettings { rpc_urls: vec![urls[0].clone(), twin], ..settings.clone() };
    let told = connect(twins).await.unwrap().endpoints().await;
    assert_eq!(told[1].host, format!("{} (2)", told[0].host), "two keys at one provider");
    let chain = connect(settings.clone()).await.unwrap();
    shown.push_str(&format!("{chain:?} {:?} {told:?}", chain.endpoints().await));
    for fault in [Fault::BadGateway, Fault::Throttled, Fault::Lost] {
        net.proxies.iter().for_each(|proxy| proxy.set("", fault));
        let (head, reports) = (chain.head().await, chain.endpoints().await);
        assert!(head.is_err() && reports.iter().all(|report| report.answer.is_err()));
        shown.push_str(&format!("{head:?} {reports:?}"));
    }
    shown.push_str(&format!("{:?}", connect(settings).await));
    assert!(shown.contains(net.proxies[0].host()), "{shown}");
    assert!(!shown.contains("SECRET") && !shown.contains("APIKEY"), "{shown}");
}

#[tokio::test]
async fn a_contradiction_is_counted_and_its_author_is_asked_last() {
    let net = Net::start(3).await;
    let recorder = Metrics::default();
    // This test runs on one thread.
    let _recording = metrics::set_default_local_recorder(&recorder);
    let counted = |times: u32| {
        let text = recorder.render();
        text.contains(&format!("chain_disagreements_total{{read=\"job\"}} {times}"))
    };
    let chain = net.connect().await;
    let job = net.open().await;
    net.proxies[0].lie(Lie::about("eth_call", |r| overwrite(r, 7, 5000)));
    // Two that agree may be quicker than its lie, which is then not heard.
    while !counted(1) {
        assert_eq!(chain.job(job).await.unwrap().unwrap().tokens_used, TokenCount::ZERO);
    }
    assert_eq!(chain.endpoints_usable(), (2, 3));
    let told = &chain.endpoints().await[0];
    assert!(told.trouble.as_ref().is_some_and(|words| words.contains("job")), "{told:?}");
    let asked = net.proxies[0].count("eth_call");
    for _ in 0..3 {
        assert_eq!(chain.job(job).await.unwrap().unwrap().tokens_used, TokenCount::ZERO);
    }
    assert_eq!(net.proxies[0].count("eth_call"), asked);
    assert!(counted(1));
    // It proves itself by the newest block, is believed as one of three, and lies again.
    net.clock.skip(Duration::from_secs(61));
    chain.head().await.unwrap();
    assert_eq!(chain.endpoints_usable(), (3, 3));
    while !counted(2) {
        assert_eq!(chain.job(job).await.unwrap().unwrap().tokens_used, TokenCount::ZERO);
    }
    assert!(recorder.render().contains("chain_endpoints_usable 3"));
}

#[tokio::test]
async fn the_doctor_is_told_of_each_endpoint() {
    let net = Net::start(3).await;
    let chain = net.connect().await;
    let old = net.height().await;
    for _ in 0..5 {
        net.devnet.increase_time(12).await;
    }
    net.proxies[1].lie(Lie::frozen_at(old));
    net.proxies[2].set("", Fault::Lost);
    let reports = chain.endpoints().await;
    let hosts: Vec<&str> = reports.iter().map(|report| report.host.as_str()).collect();
    assert_eq!(hosts, net.proxies.iter().map(Proxy::host).collect::<Vec<_>>());
    assert_eq!((&reports[0].answer, reports[0].lag), (&Ok((CHAIN_ID, old + 5)), 0));
    assert_eq!((&reports[1].answer, reports[1].lag), (&Ok((CHAIN_ID, old)), 5));
    assert!(reports[2].answer.is_err());
}

#[tokio::test]
async fn a_provider_that_answers_small_ranges_only_is_asked_in_pages_and_once_too_much() {
    let net = Net::start(1).await;
    let chain = net.connect().await;
    let from = net.height().await;
    let first = net.open().await;
    net.devnet.mine(100).await;
    let second = net.open().await;
    let to = net.height().await;
    let width = |filter: &Value| {
        let of = |name: &str| quantity(filter[name].as_str().unwrap());
        of("toBlock") - of("fromBlock") + 1
    };
    let words = "eth_getLogs is limited to a 10 block range";
    net.proxies[0].lie(Lie::refusing_where("eth_getLogs", words, move |query| width(query) > 10));
    let (from, to) = (BlockNumber::new(from), BlockNumber::new(to));
    let expected =
        vec![tally::chain::ChainEvent::Created(first), tally::chain::ChainEvent::Created(second)];
    let before = net.proxies[0].count("eth_getLogs");
    assert_eq!(chain.events(from, to).await, Ok(expected.clone()));
    let learning = net.proxies[0].count("eth_getLogs") - before;
    assert_eq!(chain.events(from, to).await, Ok(expected));
    let knowing = net.proxies[0].count("eth_getLogs") - before - learning;
    assert!(knowing < learning, "{knowing} requests after {learning}");
    // Far too much is refused before anything is asked, and throttling is no call for more.
    let asked = net.proxies[0].count("");
    is_unreachable(chain.events(BlockNumber::ZERO, BlockNumber::new(1_000_000)).await);
    assert_eq!(net.proxies[0].count(""), asked);
    net.proxies[0].lie(Lie::refusing("eth_getLogs", "rate limit exceeded"));
    is_unreachable(chain.events(to, to).await);
    assert_eq!(net.proxies[0].count(""), asked + 1);
}
