//! The node's settings, typed and complete before any port opens.
//!
//! Precedence: flag, environment, `.env`, file, default. `settings/table.rs` lists every setting
//! once and `docs/config.md` repeats it, which a test checks. Never shows a secret: neither in
//! `Debug` nor in an error. Relies on being called once, at start.

mod build;
mod build_host;
pub mod catalog;
mod error;
mod host_table;
mod kind;
mod read;
mod sources;
mod table;
mod table_paid;
mod wallet;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tally_engine::{KvType, SharePrefixes};

use crate::chain::evm::ContractVersion;
use crate::session::ExposureRule;
use crate::units::{Address, Amount, ChainSeconds, PricePerToken, TokenCount};

pub use error::{Origin, Problem, SettingsError};
pub use kind::Kind;
pub use sources::Inputs;
pub use wallet::{KeyError, KeySource, PasswordSource, RpcUrl, secret_line};

/// The eip155 id of a local development chain.
pub const DEV_CHAIN_ID: u64 = 31337;

/// All settings of a node that serves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address and port of the server; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The model.
    pub model: ModelSettings,
    /// The engine.
    pub engine: EngineSettings,
    /// The chain; `None` exactly when `free`.
    pub chain: Option<ChainSettings>,
    /// The host's key; always there when `chain` is.
    pub key: Option<KeySource>,
    /// Serve without pay.
    pub free: bool,
    /// Folder of the ledger and of the node's lock.
    pub data_dir: PathBuf,
    /// When and how work is claimed.
    pub settlement: SettlementSettings,
    /// Who is served.
    pub session: SessionSettings,
    /// What the host's key may do besides claiming.
    pub wallet: WalletSettings,
    /// The front-ends.
    pub api: ApiSettings,
    /// Where clients reach the node, to compare with the registered address.
    pub public_url: Option<String>,
    /// The log.
    pub log: LogSettings,
    /// Time running streams get after a stop signal.
    pub shutdown_grace: Duration,
    /// Print `Fabstir LLM Node is running` on stdout once healthy.
    pub launcher_compat: bool,
    /// What an operator should read once in the log: accepted settings without effect.
    pub notes: Vec<String>,
}

impl Settings {
    /// Reads, checks and completes the settings of a serving node. Blocks on two small files.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that is wrong.
    pub fn load(inputs: &Inputs) -> Result<Self, SettingsError> {
        build::settings(inputs)
    }

    /// What settlement goes by.
    #[must_use]
    pub fn money(&self) -> MoneySettings<'_> {
        MoneySettings {
            settlement: &self.settlement,
            payment_tokens: &self.session.payment_tokens,
            wallet: &self.wallet,
        }
    }

    /// The ledger of this chain and marketplace. One file each: job numbers count from 1 in every
    /// deployment, so two deployments in one ledger would mix two jobs' money.
    #[must_use]
    pub fn ledger_path(&self) -> PathBuf {
        ledger_path(&self.data_dir, self.chain.as_ref())
    }
}

/// What the wallet's settlement goes by, of either kind of settings.
#[derive(Debug, Clone, Copy)]
pub struct MoneySettings<'a> {
    /// When and how work is claimed.
    pub settlement: &'a SettlementSettings,
    /// Currencies besides the native one.
    pub payment_tokens: &'a [PaymentToken],
    /// What the host's key may do besides.
    pub wallet: &'a WalletSettings,
}

/// What commands need that look at a node's data without serving: no model, and no chain either
/// where it is not set up.
#[derive(Debug, Clone)]
pub struct InspectSettings {
    /// Folder of the ledger.
    pub data_dir: PathBuf,
    /// The chain, where it is set completely.
    pub chain: Option<ChainSettings>,
    /// The host's key, where it is set.
    pub key: Option<KeySource>,
    /// When and how work is claimed.
    pub settlement: SettlementSettings,
    /// Currencies that are accepted besides the native one.
    pub payment_tokens: Vec<PaymentToken>,
    /// What the host's key may do besides claiming.
    pub wallet: WalletSettings,
    /// What the node registry shows of the host.
    pub registration: RegistrationSettings,
    /// The log.
    pub log: LogSettings,
}

/// What the host's key may do besides claiming.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WalletSettings {
    /// Where withdrawn earnings move on to.
    pub cold_address: Option<Address>,
    /// Earnings from which the node withdraws by itself, by currency (zero is native), in its
    /// smallest unit.
    pub withdraw_above: BTreeMap<Address, Amount>,
    /// What is signed at all.
    pub duties: Duties,
}

/// What the host's key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Duties {
    /// Everything that is ordered.
    #[default]
    All,
    /// Claims, completions, what frees the wallet's nonces, and withdrawals to the cold address.
    Claims,
}

/// What the node registry shows of the host. Prices are in the contract's price unit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrationSettings {
    /// Where clients reach the host.
    pub public_url: Option<String>,
    /// Names of its model in the model registry, `(repository, file)`.
    pub model: Option<(String, String)>,
    /// The same of the models that it serves besides.
    pub models_more: Vec<(String, String)>,
    /// Lowest price in native coin.
    pub price_native: Option<u128>,
    /// Lowest price in payment tokens.
    pub price_stable: Option<u128>,
    /// Lowest price of the model, by payment token.
    pub model_prices: BTreeMap<Address, u128>,
    /// Accelerator.
    pub gpu: String,
    /// Its memory, GB.
    pub vram_gigabytes: u64,
    /// The machine's memory, GB.
    pub ram_gigabytes: u64,
    /// What the host can do.
    pub capabilities: Vec<String>,
    /// Where it stands.
    pub location: String,
    /// Requests served at once.
    pub concurrent_max: u32,
}

impl InspectSettings {
    /// As [`Settings::load`], without what only serving needs.
    ///
    /// # Errors
    /// [`SettingsError`]; settings that are merely missing are none.
    pub fn load(inputs: &Inputs) -> Result<Self, SettingsError> {
        build::inspect_settings(inputs)
    }

    /// As [`Settings::money`].
    #[must_use]
    pub fn money(&self) -> MoneySettings<'_> {
        MoneySettings {
            settlement: &self.settlement,
            payment_tokens: &self.payment_tokens,
            wallet: &self.wallet,
        }
    }

    /// As [`Settings::ledger_path`].
    #[must_use]
    pub fn ledger_path(&self) -> PathBuf {
        ledger_path(&self.data_dir, self.chain.as_ref())
    }
}

fn ledger_path(data_dir: &std::path::Path, chain: Option<&ChainSettings>) -> PathBuf {
    let folder = chain.map_or_else(
        || "free".to_owned(),
        |chain| format!("chain-{}-{}", chain.chain_id, chain.marketplace),
    );
    data_dir.join(folder).join("ledger.sqlite3")
}

/// The models to serve: the first one, and more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSettings {
    /// The weight file. Whether it exists is the loader's to say.
    pub path: PathBuf,
    /// The name clients send; `None`: the file's without its ending.
    pub name: Option<String>,
    /// Hub repository: first half of the registry's model id.
    pub repo: Option<String>,
    /// Hub file name: second half of it. By default the file name of `path`.
    pub file: Option<String>,
    /// Other names, each for a served model's name.
    pub aliases: BTreeMap<String, String>,
    /// Models that are served beside the first one.
    pub more: Vec<ModelFile>,
}

/// A model to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its weights: a GGUF file or a folder of safetensors.
    pub path: PathBuf,
    /// The name clients send; `None`: the file's without its ending, or the folder's.
    pub name: Option<String>,
    /// Its repository and file in the model registry, where they are known.
    pub registered: Option<(String, String)>,
}

impl ModelSettings {
    /// All models, the first one first.
    #[must_use]
    pub fn all(&self) -> Vec<ModelFile> {
        let first = ModelFile {
            path: self.path.clone(),
            name: self.name.clone(),
            registered: self.repo.clone().zip(self.file.clone()),
        };
        std::iter::once(first).chain(self.more.iter().cloned()).collect()
    }
}

impl ModelFile {
    /// The name it is served under: `SmolLM2-135M-Instruct.Q4_1` for a file of that name with an
    /// ending, which clients can read off a hub, where the name inside the file is often a
    /// training run's. A folder's name is whole.
    #[must_use]
    pub fn served_name(&self) -> String {
        let own = if self.path.is_dir() { self.path.file_name() } else { self.path.file_stem() };
        let own = || own.map(|name| name.to_string_lossy().into_owned());
        self.name.clone().or_else(own).unwrap_or_default()
    }
}

/// The engine's room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSettings {
    /// Threads of the forward pass; by default all cores, as far as the engine takes them.
    pub threads: usize,
    /// Whether each of them is kept on a processor of its own.
    pub pin_threads: bool,
    /// Bytes of the KV cache of all models together.
    pub kv_memory_bytes: u64,
    /// What keys and values are stored as.
    pub kv_type: KvType,
    /// Bytes that weights and KV caches of all models may take; `None`: as many as they need.
    pub memory_bytes: Option<u64>,
    /// Sequences that make progress at once.
    pub running_max: u32,
    /// Sequences that may wait.
    pub queue_max: u32,
    /// Prompt tokens read in one step.
    pub prefill_chunk: u32,
    /// Whose prompts are not read again where they begin alike.
    pub share_prefixes: SharePrefixes,
    /// Whether tokens are guessed where texts repeat themselves, and checked.
    pub speculation: bool,
}

/// The chain and its contracts. A registry or ledger of earnings that is `None` is the one the
/// marketplace names; without a model registry, models are not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainSettings {
    /// Endpoints, first choice first; never empty.
    pub rpc_urls: Vec<RpcUrl>,
    /// How many of them have to agree, 1 to their number; `None` leaves it to the chain's adapter.
    pub quorum: Option<usize>,
    /// eip155 id the endpoints must report.
    pub chain_id: u64,
    /// JobMarketplace.
    pub marketplace: Address,
    /// NodeRegistry.
    pub node_registry: Option<Address>,
    /// ModelRegistry.
    pub model_registry: Option<Address>,
    /// ProofSystem; known only to be refused where the marketplace is meant.
    pub proof_system: Option<Address>,
    /// HostEarnings.
    pub host_earnings: Option<Address>,
    /// The only version that the contract may be; `None`: whichever is found at start.
    pub contract_version: Option<ContractVersion>,
}

/// When and how work is claimed.
#[derive(Debug, Clone, PartialEq)]
pub struct SettlementSettings {
    /// Unclaimed tokens of a job that make a claim due; at least 100.
    pub claim_at: TokenCount,
    /// Blocks, its own included, after which a transaction is final.
    pub confirmations: u64,
    /// How deep a reorg may reach, blocks.
    pub reorg_depth: u64,
    /// Whether a session is completed also where that costs more than it pays out.
    pub complete_at_a_loss: bool,
    /// How long before the chain's deadline a claim is made whatever it costs.
    pub claim_margin: ChainSeconds,
    /// Largest share of a claim's value its fee may take while it can wait, 0 … 1.
    pub fee_share_max: f64,
    /// Ceiling of the fee per gas, wei.
    pub fee_max: Option<Amount>,
    /// Pause between two looks at the chain.
    pub poll: Duration,
    /// Age at which a transaction that is not mined is offered a higher fee.
    pub reprice_after: Duration,
    /// Time between a job's last connection and its completion.
    pub grace: Duration,
    /// The same after a close with code 1000.
    pub grace_clean: Duration,
    /// The same for jobs used over HTTP only.
    pub idle: Duration,
}

/// A currency that is accepted besides the native one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaymentToken {
    /// The ERC-20's address.
    pub address: Address,
    /// Smallest price of a session, in the contract's price unit of this currency.
    pub price_min: u128,
    /// What its smallest unit is worth, wei. Without it a claim's fee is not compared with its
    /// value.
    pub wei_per_unit: Option<f64>,
}

/// Who is served, and on which terms.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionSettings {
    /// Smallest price of a session in native currency, in the contract's price unit.
    pub price_min: PricePerToken,
    /// Other currencies that are accepted.
    pub payment_tokens: Vec<PaymentToken>,
    /// How much of a job may be unclaimed.
    pub exposure: ExposureRule,
    /// Whether clients that prove nothing are served.
    pub legacy: LegacyMode,
    /// Age of the chain's last answer past which no new work is admitted.
    pub chain_stale_max: Duration,
    /// Life of a challenge.
    pub challenge_life: Duration,
    /// Life of a session token.
    pub token_life: Duration,
}

/// Clients that only name a job number (docs/spec/marketplace-api.md section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyMode {
    /// Refused.
    Off,
    /// Served, up to `cap` tokens a session where there is one.
    On {
        /// Tokens a session. Always there when the node is reachable from outside.
        cap: Option<TokenCount>,
    },
}

/// The front-ends' bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSettings {
    /// Web pages that may call.
    pub cors: Cors,
    /// Largest body and WebSocket message, bytes.
    pub body_max_bytes: usize,
    /// Pause between WebSocket pings.
    pub ping: Duration,
}

/// Origins of web pages that may call the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cors {
    /// Any.
    Any,
    /// These; none when empty.
    Listed(Vec<String>),
}

/// The log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Which lines appear, as `tracing_subscriber::EnvFilter` reads it.
    pub filter: String,
    /// Their form.
    pub format: LogFormat,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One JSON object a line.
    Json,
}
