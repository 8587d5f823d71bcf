//! A real EVM for one test: anvil on a free port, the marketplace deployed, sessions opened.
//!
//! The binary is `TALLY_TEST_ANVIL`, else `anvil` on the path; a test without it fails and says
//! so. Nothing here uses the code under test, except its units and settings.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use alloy::primitives::{Address as EvmAddress, B256, Bytes, U256};
use alloy::sol_types::{SolCall, SolValue};
use secrecy::SecretString;
use serde_json::{Value, json};
use tally::chain::evm::{EvmChain, EvmSettings, EvmWallet, connect};
use tally::clock::SystemClock;
use tally::units::{Address, Hash32, JobId};

use super::variant::{self, Variant};

/// anvil's chain id.
pub const CHAIN_ID: u64 = 31337;

/// Fee of the deployed marketplace, 1/10000.
pub const FEE_BASIS_POINTS: u64 = 1000;

/// Dispute window of the deployed marketplace, seconds.
pub const DISPUTE_WINDOW: u64 = 300;

/// Smallest native deposit, wei.
pub const MIN_DEPOSIT: u128 = 1_000_000;

/// One of anvil's well-known accounts, each with 10 000 of the native currency.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    /// Its address, lower case.
    pub address: &'static str,
    /// Its private key.
    pub key: &'static str,
}

/// Deploys and owns the contracts.
pub const DEPLOYER: Account = Account {
    address: "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266",
    key: "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
};
/// The node's key.
pub const HOST: Account = Account {
    address: "0x70997970c51812dc3a010c7d01b50e0d17dc79c8",
    key: "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
};
/// Deposits and asks.
pub const CLIENT: Account = Account {
    address: "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc",
    key: "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
};
/// Receives fees.
pub const TREASURY: Account = Account {
    address: "0x90f79bf6eb2c4f870365e785982e1f101e93b906",
    key: "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
};
/// Belongs to nobody in the story.
pub const STRANGER: Account = Account {
    address: "0x15d34aaf54267db7d7c367839aaf71a00a2c6a65",
    key: "0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a",
};

impl Account {
    /// Its address as ours.
    pub fn address(self) -> Address {
        Address::parse(self.address).unwrap()
    }

    /// Its key as the node holds it.
    pub fn wallet(self) -> Arc<EvmWallet> {
        Arc::new(EvmWallet::from_key(&SecretString::from(self.key)).unwrap())
    }

    pub(super) fn evm(self) -> EvmAddress {
        self.address.parse().unwrap()
    }
}

mod abi {
    alloy::sol! {
        function createSessionFromDeposit(
            address host, address paymentToken, uint256 deposit, uint256 pricePerToken,
            uint256 maxDuration, uint256 proofInterval
        ) external returns (uint256 sessionId);
        function depositNative() external payable;
        function completeSessionJob(uint256 jobId, string conversationCID) external;
        function triggerSessionTimeout(uint256 jobId) external;
        function setAuthorizedCaller(address caller, bool authorized) external;
        function addAcceptedToken(address token, uint256 minDeposit) external;
        function nextJobId() external view returns (uint256);
        function recordVerifiedProof(bytes32 proofHash) external;
    }
}

/// Where the contracts are.
#[derive(Debug, Clone, Copy)]
pub struct Contracts {
    /// JobMarketplace.
    pub marketplace: Address,
    /// HostEarnings.
    pub host_earnings: Address,
    /// NodeRegistry.
    pub node_registry: Address,
    /// ModelRegistry.
    pub model_registry: Address,
    /// ProofSystem.
    pub proof_system: Address,
    /// An ERC-20: of the stake, and accepted in payment.
    pub token: Address,
}

/// What a client chooses when it opens a session.
#[derive(Debug, Clone, Copy)]
pub struct OpenSession {
    /// Who shall serve.
    pub host: Account,
    /// Wei.
    pub deposit: u128,
    /// Wei per token, whatever the contract's price unit.
    pub price: u128,
    /// Seconds.
    pub duration_max: u64,
    /// Tokens, and a third of the seconds of silence.
    pub proof_interval: u64,
    /// Whether it is paid in [`Contracts::token`] (whose units then stand for wei).
    pub erc20: bool,
    /// Seconds of silence where the contract has them apart (v7); 0 for its default.
    pub silence: u64,
}

impl Default for OpenSession {
    /// 10 000 tokens at 1000 wei for a day, with our host.
    fn default() -> Self {
        Self {
            host: HOST,
            deposit: 10_000_000,
            price: 1000,
            duration_max: 86_400,
            proof_interval: 10_000,
            erc20: false,
            silence: 300,
        }
    }
}

/// A model to register.
#[derive(Debug, Clone, Copy)]
pub struct TrustedModel<'a> {
    /// `owner/name`.
    pub repo: &'a str,
    /// File in it.
    pub file: &'a str,
    /// SHA-256 of its weights.
    pub sha256: Hash32,
}

/// A running chain. Dropping it ends the process.
pub struct Devnet {
    anvil: Anvil,
    http: reqwest::Client,
    /// Its JSON-RPC endpoint.
    pub url: String,
    /// Its port.
    pub port: u16,
    /// The deployed contracts.
    pub contracts: Contracts,
    /// Which contract it is.
    pub variant: Variant,
}

impl Drop for Devnet {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The process group of one anvil.
struct Anvil {
    supervisor: Child,
    /// Reads its log, which names every request, to its end; a full pipe would stop it.
    log: Option<JoinHandle<()>>,
}

impl Devnet {
    /// Starts anvil and deploys the contracts, version v3.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// As [`Self::start`], with further arguments for anvil.
    pub async fn start_with(arguments: &[&str]) -> Self {
        Self::start_variant(Variant::V3, arguments).await
    }

    /// As [`Self::start_with`], with the contracts of a version. From v5 on, where a host has to
    /// be registered before sessions can be opened with it, [`HOST`] and [`STRANGER`] are.
    pub async fn start_variant(variant: Variant, arguments: &[&str]) -> Self {
        let (anvil, port) = spawn(arguments);
        // The ring provider is process-wide; another test may have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let nowhere = Contracts {
            marketplace: Address::ZERO,
            host_earnings: Address::ZERO,
            node_registry: Address::ZERO,
            model_registry: Address::ZERO,
            proof_system: Address::ZERO,
            token: Address::ZERO,
        };
        let url = format!("http://127.0.0.1:{port}");
        let mut devnet = Self { anvil, http, url, port, contracts: nowhere, variant };
        devnet.contracts = devnet.deploy_all().await;
        devnet.admit_hosts().await;
        devnet
    }

    /// Ends the process: from now on nobody answers.
    pub fn stop(&mut self) {
        drop(self.anvil.supervisor.stdin.take());
        let _ = self.anvil.supervisor.wait();
        // The log ends when the last process of the group is gone.
        if let Some(log) = self.anvil.log.take() {
            let _ = log.join();
        }
    }

    /// One JSON-RPC request; the test fails on an error.
    pub async fn rpc(&self, method: &str, params: Value) -> Value {
        self.try_rpc(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// One JSON-RPC request; an error object is returned.
    pub async fn try_rpc(&self, method: &str, params: Value) -> Result<Value, Value> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        let answer = self.http.post(&self.url).json(&request).send().await.unwrap();
        let mut answer: Value = answer.json().await.unwrap();
        match answer.get("error") {
            Some(error) => Err(error.clone()),
            None => Ok(answer["result"].take()),
        }
    }

    /// Sends a transaction of an unlocked account, has it mined and returns its receipt; the test
    /// fails where it reverts.
    pub async fn send(&self, from: Account, to: Address, input: Vec<u8>, wei: u128) -> Value {
        self.transact(json!({
            "from": from.address,
            "to": to.to_string(),
            "data": Bytes::from(input),
            "value": format!("{wei:#x}"),
        }))
        .await
    }

    /// Opens a session as [`CLIENT`].
    pub async fn open_session(&self, open: OpenSession) -> JobId {
        let to = self.contracts.marketplace;
        if open.erc20 {
            self.fund(CLIENT, open.deposit).await;
        }
        let wei = if open.erc20 { 0 } else { open.deposit };
        self.send(CLIENT, to, variant::opening(self, &open), wei).await;
        self.newest_job().await
    }

    /// Opens a session as [`CLIENT`] out of a balance deposited before, which emits another event.
    pub async fn open_session_from_deposit(&self, open: OpenSession) -> JobId {
        let to = self.contracts.marketplace;
        self.send(CLIENT, to, abi::depositNativeCall {}.abi_encode(), open.deposit).await;
        let call = abi::createSessionFromDepositCall {
            host: open.host.evm(),
            paymentToken: EvmAddress::ZERO,
            deposit: U256::from(open.deposit),
            pricePerToken: U256::from(open.price),
            maxDuration: U256::from(open.duration_max),
            proofInterval: U256::from(open.proof_interval),
        };
        self.send(CLIENT, to, call.abi_encode(), 0).await;
        self.newest_job().await
    }

    /// Completes a session.
    pub async fn complete(&self, who: Account, job: JobId) {
        let call = abi::completeSessionJobCall {
            jobId: U256::from(job.get()),
            conversationCID: String::new(),
        };
        self.send(who, self.contracts.marketplace, call.abi_encode(), 0).await;
    }

    /// Ends a session by timeout.
    pub async fn time_out(&self, who: Account, job: JobId) {
        let call = abi::triggerSessionTimeoutCall { jobId: U256::from(job.get()) };
        self.send(who, self.contracts.marketplace, call.abi_encode(), 0).await;
    }

    /// Takes a proof's first word, as any stranger may.
    pub async fn burn_first_word(&self, who: Account, word: [u8; 32]) {
        let call = abi::recordVerifiedProofCall { proofHash: B256::new(word) };
        self.send(who, self.contracts.proof_system, call.abi_encode(), 0).await;
    }

    /// Mines empty blocks.
    pub async fn mine(&self, blocks: u64) {
        self.rpc("anvil_mine", json!([format!("{blocks:#x}")])).await;
    }

    /// Moves the chain's clock and mines a block at the new time.
    pub async fn increase_time(&self, seconds: u64) {
        self.idle(seconds).await;
        self.mine(1).await;
    }

    /// Moves the chain's clock and mines nothing: the newest block stays as old as it is.
    pub async fn idle(&self, seconds: u64) {
        self.rpc("evm_increaseTime", json!([seconds])).await;
    }

    /// Whether every transaction gets its own block, a moment after it was accepted. Without,
    /// blocks come from [`Self::mine`] and from the methods here that send.
    pub async fn set_automine(&self, on: bool) {
        self.rpc("evm_setAutomine", json!([on])).await;
    }

    /// What the node needs to connect here as `who`.
    pub fn settings(&self, who: Account) -> EvmSettings {
        EvmSettings {
            rpc_urls: vec![self.url.clone()],
            quorum: None,
            chain_id: CHAIN_ID,
            marketplace: self.contracts.marketplace,
            contract_version: None,
            node_registry: None,
            model_registry: Some(self.contracts.model_registry),
            host_earnings: None,
            proof_system: None,
            // Never reached by a healthy local chain, however slow the machine.
            request_timeout: Duration::from_secs(60),
            clock: SystemClock::shared(),
            wallet: who.wallet(),
        }
    }

    /// The adapter, connected as [`HOST`].
    pub async fn connect(&self) -> EvmChain {
        connect(self.settings(HOST)).await.unwrap()
    }

    async fn newest_job(&self) -> JobId {
        let data = Bytes::from(abi::nextJobIdCall {}.abi_encode());
        let to = self.contracts.marketplace.to_string();
        let word = self.rpc("eth_call", json!([{"to": to, "data": data}, "latest"])).await;
        let next: U256 = word.as_str().unwrap().parse().unwrap();
        JobId::new(u64::try_from(next).unwrap() - 1).unwrap()
    }

    async fn transact(&self, tx: Value) -> Value {
        let hash = self.rpc("eth_sendTransaction", json!([tx])).await;
        let mut receipt = self.rpc("eth_getTransactionReceipt", json!([hash])).await;
        if receipt.is_null() {
            self.rpc("evm_mine", json!([])).await;
            receipt = self.rpc("eth_getTransactionReceipt", json!([hash])).await;
        }
        assert_eq!(receipt["status"], "0x1", "{tx} reverted");
        receipt
    }

    async fn deploy(&self, contract: &str, arguments: Vec<u8>) -> EvmAddress {
        let root = env!("CARGO_MANIFEST_DIR");
        let path = format!("{root}/contracts/bytecode/{contract}.json");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let file: Value = serde_json::from_str(&text).unwrap();
        let mut code: Vec<u8> = file["bytecode"].as_str().unwrap().parse::<Bytes>().unwrap().into();
        code.extend(arguments);
        let tx = json!({"from": DEPLOYER.address, "data": Bytes::from(code)});
        let receipt = self.transact(tx).await;
        receipt["contractAddress"].as_str().unwrap().parse().unwrap()
    }

    async fn deploy_all(&self) -> Contracts {
        let stake = (String::from("Stake"), String::from("STK")).abi_encode_params();
        let token = self.deploy("TestToken", stake).await;
        let names = self.variant.contracts();
        let models = self.deploy(names.models, vec![]).await;
        let nodes = self.deploy(names.nodes, (token, models).abi_encode_params()).await;
        let earnings = self.deploy("HostEarnings", vec![]).await;
        let proofs = self.deploy(names.proofs, vec![]).await;
        let arguments = (
            nodes,
            earnings,
            proofs,
            TREASURY.evm(),
            U256::from(FEE_BASIS_POINTS),
            U256::from(DISPUTE_WINDOW),
            U256::from(MIN_DEPOSIT),
        );
        let marketplace = self.deploy(names.marketplace, arguments.abi_encode_params()).await;
        let ours = |address: EvmAddress| Address::new(address.into_array());
        let allow = abi::setAuthorizedCallerCall { caller: marketplace, authorized: true };
        self.send(DEPLOYER, ours(earnings), allow.abi_encode(), 0).await;
        let accept = abi::addAcceptedTokenCall { token, minDeposit: U256::from(1) };
        self.send(DEPLOYER, ours(marketplace), accept.abi_encode(), 0).await;
        Contracts {
            marketplace: ours(marketplace),
            host_earnings: ours(earnings),
            node_registry: ours(nodes),
            model_registry: ours(models),
            proof_system: ours(proofs),
            token: ours(token),
        }
    }
}

/// Ends the whole group when its input closes, however the test process ended, and when anvil
/// itself ends. npm's `anvil` is a wrapper: killing it alone would leave the real one behind. Old
/// states, which anvil puts away on disk and leaves there, go too: hundreds of MB to a run.
const SUPERVISOR: &str = r#"
    dir=$(mktemp -d) || exit
    ("$@" --cache-path "$dir"; rm -rf "$dir"; kill -9 0) &
    read -r _
    rm -rf "$dir"; kill -9 0"#;

/// Starts anvil on a port that the system chooses, and waits for the line that names it.
fn spawn(arguments: &[&str]) -> (Anvil, u16) {
    let program = std::env::var("TALLY_TEST_ANVIL").unwrap_or_else(|_| "anvil".into());
    let mut supervisor = Command::new("sh")
        .args(["-c", SUPERVISOR, "sh", &program])
        .args(["--host", "127.0.0.1", "--port", "0", "--slots-in-an-epoch", "1"])
        .args(["--chain-id", &CHAIN_ID.to_string()])
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(supervisor.stdout.take().unwrap()).lines();
    let port = lines.by_ref().find_map(|line| {
        let line = line.ok()?;
        line.strip_prefix("Listening on ")?.rsplit_once(':')?.1.trim().parse().ok()
    });
    let port = port.unwrap_or_else(|| {
        panic!("this test needs anvil: {program} did not start; set TALLY_TEST_ANVIL to its path")
    });
    let log = Some(std::thread::spawn(move || lines.for_each(drop)));
    (Anvil { supervisor, log }, port)
}
