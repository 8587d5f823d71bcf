//! Puts the typed settings together and checks what must hold between them.
//!
//! Never opens a port nor a file of its own: it reads through [`Reader`], which collects problems.

use std::path::PathBuf;

use tally_engine::{KvType, SharePrefixes};

use super::error::{Problem, SettingsError};
use super::read::Reader;
use super::table::THREADS_MAX;
use super::wallet::is_private_key;
use super::{
    ApiSettings, ChainSettings, Cors, DEV_CHAIN_ID, EngineSettings, InspectSettings, KeySource,
    LegacyMode, LogFormat, LogSettings, ModelSettings, PasswordSource, PaymentToken, RpcUrl,
    SessionSettings, Settings, SettlementSettings, build_host, sources,
};
use crate::chain::evm::ContractVersion;
use crate::session::{Beyond, ExposureRule};
use crate::units::{Address, Amount, ChainSeconds, PricePerToken, TokenCount};

pub(super) fn settings(inputs: &sources::Inputs) -> Result<Settings, SettingsError> {
    let (reader, notes) = open(inputs);
    build(inputs, reader, notes).0
}

/// The settings and the reader, whose record tells which settings were looked at.
fn build(
    inputs: &sources::Inputs,
    mut reader: Reader,
    mut notes: Vec<String>,
) -> (Result<Settings, SettingsError>, Reader) {
    let r = &mut reader;
    let free = r.switch("free").unwrap_or_default();
    let chain = chain(r, free);
    let key = key(r);
    if key.is_none() && !free {
        require_key(r);
    }
    let is_dev_chain = chain.as_ref().is_some_and(|chain| chain.chain_id == DEV_CHAIN_ID);
    let listen = r.listen("listen").unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
    let is_dev_local = is_dev_chain && listen.ip().is_loopback();
    let engine = engine(r);
    notes.extend(crowd(engine.threads, processors()));
    let settings = Settings {
        listen,
        model: model(r),
        engine,
        chain,
        key,
        free,
        data_dir: data_dir(r),
        settlement: settlement(r),
        wallet: build_host::wallet(r),
        session: session(r, Reach { is_dev_local, is_local: listen.ip().is_loopback() }),
        api: api(r, is_dev_chain),
        public_url: r.url("public_url"),
        log: log(r),
        shutdown_grace: r.seconds("shutdown_grace_seconds"),
        launcher_compat: r.switch("launcher_compat").unwrap_or(inputs.is_launcher()),
        notes,
    };
    // Read by the commands that register; a typing error in it stops the node all the same.
    build_host::registration(&mut reader);
    let problems = std::mem::take(&mut reader.problems);
    let result = if problems.is_empty() { Ok(settings) } else { Err(SettingsError(problems)) };
    (result, reader)
}

pub(super) fn inspect_settings(inputs: &sources::Inputs) -> Result<InspectSettings, SettingsError> {
    let (mut reader, _) = open(inputs);
    let free = reader.switch("free").unwrap_or_default();
    let settings = InspectSettings {
        chain: chain(&mut reader, free),
        key: key(&mut reader),
        data_dir: data_dir(&mut reader),
        settlement: settlement(&mut reader),
        payment_tokens: payment_tokens(&mut reader),
        wallet: build_host::wallet(&mut reader),
        registration: build_host::registration(&mut reader),
        log: log(&mut reader),
    };
    // What is missing only matters to a node that serves; a needed folder does matter here.
    let is_minor = |problem: &Problem| match problem {
        Problem::Missing { key, .. } => *key != "data_dir",
        _ => false,
    };
    reader.problems.retain(|problem| !is_minor(problem));
    if reader.problems.is_empty() { Ok(settings) } else { Err(SettingsError(reader.problems)) }
}

fn open(inputs: &sources::Inputs) -> (Reader, Vec<String>) {
    let mut gathered = sources::gather(inputs);
    let notes = std::mem::take(&mut gathered.notes);
    let home = inputs.env.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    (Reader::new(gathered, home), notes)
}

/// The chain; `None` when free or when something it needs is missing, which is then recorded.
fn chain(reader: &mut Reader, free: bool) -> Option<ChainSettings> {
    const NEEDED: [&str; 3] = ["chain.rpc_urls", "chain.id", "chain.marketplace"];
    let urls = reader.urls("chain.rpc_urls");
    let chain_id = reader.integer("chain.id");
    let marketplace = reader.address("chain.marketplace");
    let chain = ChainSettings {
        rpc_urls: urls.into_iter().map(RpcUrl::new).collect(),
        quorum: reader.integer("chain.quorum"),
        chain_id: chain_id.unwrap_or_default(),
        marketplace: marketplace.unwrap_or(Address::ZERO),
        node_registry: reader.address("chain.node_registry"),
        model_registry: reader.address("chain.model_registry"),
        proof_system: reader.address("chain.proof_system"),
        host_earnings: reader.address("chain.host_earnings"),
        contract_version: reader.choice("chain.contract_version").and_then(ContractVersion::parse),
    };
    if free {
        refuse_chain(reader);
        return None;
    }
    if Some(chain.marketplace) == chain.proof_system {
        let why = "this is the proof system's address; name the JobMarketplace contract";
        reader.clash("chain.marketplace", why);
    }
    let count = chain.rpc_urls.len();
    if let Some(quorum) = chain.quorum
        && count > 0
        && quorum > count
    {
        let why = format!("{quorum} cannot agree: chain.rpc_urls names {count} endpoints");
        reader.clash("chain.quorum", why);
    }
    for key in NEEDED {
        if reader.origin(key).is_none() {
            reader.require(key);
        }
    }
    let is_whole = !chain.rpc_urls.is_empty() && chain_id.is_some() && marketplace.is_some();
    is_whole.then_some(chain)
}

/// A free node with a chain set up would give away what somebody meant to sell.
fn refuse_chain(reader: &mut Reader) {
    let keys = super::catalog::SETTINGS.iter().map(|setting| setting.key);
    let named = |key: &str| reader.origin(key).map(|origin| format!("{key} ({origin})"));
    let names: Vec<_> = keys.filter(|key| key.starts_with("chain.")).filter_map(named).collect();
    if !names.is_empty() {
        reader.problems.push(Problem::FreeWithChain { names });
    }
}

fn key(reader: &mut Reader) -> Option<KeySource> {
    let keystore = reader.path("host.keystore");
    let password_file = reader.path("host.password_file");
    let password = reader.secret("host.password");
    let private_key = reader.secret("host.private_key");
    if let Some(key) = &private_key
        && !is_private_key(key)
    {
        reader.clash("host.private_key", "it is not a key of 64 hex digits (not shown here)");
    }
    if keystore.is_some() && private_key.is_some() {
        let why = "a private key is set as well; set one of them";
        reader.clash("host.keystore", why);
    }
    let has_password = password.is_some() || password_file.is_some();
    if keystore.is_none() && has_password {
        reader.clash("host.keystore", "a password is set, but no keystore that it opens");
    }
    if password.is_some() && password_file.is_some() {
        reader.clash("host.password_file", "a password is set as well; set one of them");
    }
    let password = password.map(PasswordSource::Env);
    let password = password.or(password_file.map(PasswordSource::File));
    match (keystore, password, private_key) {
        (Some(path), Some(password), _) => Some(KeySource::Keystore { path, password }),
        (Some(_), None, _) => {
            reader.require("host.password_file");
            None
        }
        (None, _, key) => key.map(KeySource::Env),
    }
}

/// Asks for a keystore, unless some other key setting is there and at fault already.
fn require_key(reader: &mut Reader) {
    let keys = ["host.keystore", "host.private_key"];
    if keys.iter().all(|key| reader.origin(key).is_none()) {
        reader.require("host.keystore");
    }
}

fn model(reader: &mut Reader) -> ModelSettings {
    let path = reader.path("model.path");
    if path.is_none() {
        reader.require("model.path");
    }
    let path = path.unwrap_or_default();
    let file_name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    ModelSettings {
        name: reader.text("model.name"),
        repo: reader.text("model.repo"),
        file: reader.text("model.file").or(file_name),
        aliases: reader.map("model.aliases"),
        more: build_host::models_more(reader),
        path,
    }
}

fn engine(reader: &mut Reader) -> EngineSettings {
    let most = usize::try_from(THREADS_MAX).unwrap_or(usize::MAX);
    let threads = reader.integer("engine.threads").unwrap_or_else(|| processors().min(most));
    let pin_threads = reader.switch("engine.pin_threads").unwrap_or_default();
    if pin_threads && threads > processors() {
        let found = processors();
        let why = format!("{threads} threads cannot have one each of {found} processors");
        reader.clash("engine.pin_threads", why);
    }
    EngineSettings {
        threads,
        pin_threads,
        kv_memory_bytes: reader.integer("engine.kv_memory_bytes").unwrap_or_default(),
        kv_type: match reader.choice("engine.kv_type") {
            Some("f32") => KvType::F32,
            _ => KvType::F16,
        },
        running_max: reader.integer("engine.running_max").unwrap_or_default(),
        queue_max: reader.integer("engine.queue_max").unwrap_or_default(),
        prefill_chunk: reader.integer("engine.prefill_chunk").unwrap_or_default(),
        memory_bytes: reader.integer("engine.memory_bytes"),
        share_prefixes: match reader.choice("engine.share_prefixes") {
            Some("nobody") => SharePrefixes::Nobody,
            Some("everyone") => SharePrefixes::Everyone,
            _ => SharePrefixes::WithinOwner,
        },
        speculation: reader.switch("engine.speculation").unwrap_or_default(),
    }
}

/// Processors that the process may use: its affinity and its cgroup's quota are heeded.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What the operator should know of more threads than processors: each step is as slow as its
/// slowest thread.
fn crowd(threads: usize, processors: usize) -> Option<String> {
    (threads > processors).then(|| {
        format!(
            "engine.threads is {threads}, and the process may use {processors} processors: \
             threads that wait for each other's processor make every token slower"
        )
    })
}

fn data_dir(reader: &mut Reader) -> PathBuf {
    let set = reader.path("data_dir");
    let path = set.or_else(|| reader.home(".local/share/tally"));
    if path.is_none() {
        reader.require("data_dir");
    }
    path.unwrap_or_default()
}

fn settlement(reader: &mut Reader) -> SettlementSettings {
    let claim_margin = reader.integer("settlement.claim_margin_seconds").unwrap_or_default();
    SettlementSettings {
        claim_at: TokenCount::new(reader.integer("settlement.claim_at").unwrap_or_default()),
        confirmations: reader.integer("settlement.confirmations").unwrap_or_default(),
        reorg_depth: reader.integer("settlement.reorg_depth").unwrap_or_default(),
        complete_at_a_loss: reader.switch("settlement.complete_at_a_loss").unwrap_or_default(),
        claim_margin: ChainSeconds::new(claim_margin),
        fee_share_max: reader.fraction("settlement.fee_share_max").unwrap_or_default(),
        fee_max: reader.integer("settlement.fee_max_wei_per_gas").map(Amount::new),
        poll: reader.millis("settlement.poll_milliseconds"),
        reprice_after: reader.seconds("settlement.reprice_after_seconds"),
        grace: reader.seconds("settlement.grace_seconds"),
        grace_clean: reader.seconds("settlement.grace_clean_seconds"),
        idle: reader.seconds("settlement.idle_seconds"),
    }
}

/// Who can reach the node.
struct Reach {
    /// Loopback, on a development chain.
    is_dev_local: bool,
    /// Loopback.
    is_local: bool,
}

fn session(reader: &mut Reader, reach: Reach) -> SessionSettings {
    let cap = reader.integer("session.legacy_cap_tokens").map(TokenCount::new);
    let legacy = match reader.choice("session.legacy") {
        Some("on") => LegacyMode::On { cap },
        Some("auto") if reach.is_dev_local => LegacyMode::On { cap },
        _ => LegacyMode::Off,
    };
    if legacy == (LegacyMode::On { cap: None }) && !reach.is_local {
        let why = "clients that prove nothing are served to the outside; set a cap per session";
        reader.clash("session.legacy_cap_tokens", why);
    }
    let price_min = reader.integer("session.price_min").unwrap_or_default();
    SessionSettings {
        price_min: PricePerToken::new(price_min),
        payment_tokens: payment_tokens(reader),
        exposure: exposure(reader),
        legacy,
        chain_stale_max: reader.seconds("session.chain_stale_max_seconds"),
        challenge_life: reader.seconds("session.challenge_seconds"),
        token_life: reader.seconds("session.token_seconds"),
    }
}

fn exposure(reader: &mut Reader) -> ExposureRule {
    let tokens_max: u64 = reader.integer("session.exposure_tokens_max").unwrap_or_default();
    let beyond = match reader.choice("session.exposure_beyond") {
        Some("refuse") => Beyond::Refuse,
        _ => Beyond::Slow,
    };
    let claim_at = reader.integer("settlement.claim_at").unwrap_or_default();
    if beyond == Beyond::Refuse && tokens_max < claim_at {
        let why = format!("prompts would be refused for ever: claims wait for {claim_at} tokens");
        reader.clash("session.exposure_tokens_max", why);
    }
    ExposureRule { tokens_max: TokenCount::new(tokens_max), beyond }
}

fn payment_tokens(reader: &mut Reader) -> Vec<PaymentToken> {
    const KEY: &str = "session.payment_tokens";
    let pairs = reader.map(KEY);
    let mut tokens = Vec::new();
    for (address, terms) in pairs {
        match payment_token(&address, &terms) {
            Some(token) => tokens.push(token),
            None => reader.clash(
                KEY,
                format!("\"{address}={terms}\": wanted ADDRESS=PRICE_MIN or ADDRESS=PRICE_MIN:WEI"),
            ),
        }
    }
    tokens
}

/// `PRICE_MIN` in price units, `WEI` in wei for the token's smallest unit, above 0.
fn payment_token(address: &str, terms: &str) -> Option<PaymentToken> {
    let address = Address::parse(address).filter(|address| *address != Address::ZERO)?;
    let (price_min, worth) = match terms.split_once(':') {
        Some((price_min, worth)) => (price_min, Some(worth)),
        None => (terms, None),
    };
    let wei_per_unit = match worth {
        Some(worth) => {
            let wei: f64 = worth.trim().parse().ok()?;
            Some(wei).filter(|wei| wei.is_finite() && *wei > 0.0).map(Some)?
        }
        None => None,
    };
    Some(PaymentToken { address, price_min: price_min.trim().parse().ok()?, wei_per_unit })
}

fn api(reader: &mut Reader, is_dev_chain: bool) -> ApiSettings {
    let cors = match reader.origins("api.cors_origins") {
        Some(origins) if origins.iter().any(|origin| origin == "*") => Cors::Any,
        Some(origins) => Cors::Listed(origins),
        None if is_dev_chain => Cors::Any,
        None => Cors::Listed(Vec::new()),
    };
    ApiSettings {
        cors,
        body_max_bytes: reader.integer("api.body_max_bytes").unwrap_or_default(),
        ping: reader.seconds("api.ping_seconds"),
    }
}

fn log(reader: &mut Reader) -> LogSettings {
    let format = match reader.choice("log.format") {
        Some("json") => LogFormat::Json,
        _ => LogFormat::Text,
    };
    let filter = reader.text("log.filter").unwrap_or_default();
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&filter) {
        reader.clash("log.filter", format!("\"{filter}\" is no log filter: {error}"));
    }
    LogSettings { filter, format }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Settings of a free node with these besides.
    fn free_with(more: &[(&'static str, String)]) -> Result<Settings, SettingsError> {
        let mut inputs = sources::Inputs::default();
        inputs.flags.insert("free", "true".into());
        inputs.flags.insert("model.path", "model.gguf".into());
        inputs.flags.insert("data_dir", "data".into());
        inputs.flags.extend(more.iter().cloned());
        settings(&inputs)
    }

    #[test]
    fn threads_are_pinned_only_where_told_and_to_a_processor_each() {
        assert!(!free_with(&[]).unwrap().engine.pin_threads);
        let pinned = ("engine.pin_threads", "true".to_owned());
        assert!(free_with(std::slice::from_ref(&pinned)).unwrap().engine.pin_threads);
        let crowd = ("engine.threads", (processors() + 1).to_string());
        let words = free_with(&[pinned, crowd]).unwrap_err().to_string();
        assert!(words.contains("engine.pin_threads") && words.contains("one each"), "{words}");
        let maybe = free_with(&[("engine.pin_threads", "maybe".into())]).unwrap_err().to_string();
        assert!(maybe.contains("engine.pin_threads") && maybe.contains("maybe"), "{maybe}");
    }

    #[test]
    fn the_operator_is_told_of_more_threads_than_processors() {
        for (threads, processors, is_told) in [(1, 2, false), (2, 2, false), (3, 2, true)] {
            assert_eq!(crowd(threads, processors).is_some(), is_told, "{threads}");
        }
        let words = crowd(8, 2).unwrap();
        assert!(words.starts_with("engine.threads is 8,") && words.contains("use 2 processors"));
        assert_eq!(free_with(&[]).unwrap().notes, [""; 0]);
        let of_256 = free_with(&[("engine.threads", "256".into())]).unwrap();
        assert_eq!(of_256.notes, crowd(256, processors()).into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn every_listed_setting_is_looked_at() {
        let inputs = sources::Inputs::default();
        let (reader, notes) = open(&inputs);
        let (_, reader) = build(&inputs, reader, notes);
        let listed: Vec<_> = super::super::catalog::SETTINGS.iter().map(|s| s.key).collect();
        let unread: Vec<_> = listed.into_iter().filter(|key| !reader.read.contains(key)).collect();
        assert!(unread.is_empty(), "listed and never read: {unread:?}");
    }
}
