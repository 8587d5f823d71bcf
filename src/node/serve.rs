//! `tally serve`: from settings to an orderly end.
//!
//! Never opens its port before everything behind it stands, and never exits with a delivered
//! token unrecorded: streams end first, then the ledger is flushed, then settlement finishes the
//! append it is at. Relies on `wiring` for the parts and on `Tasks` for whatever runs.

use std::fmt::Write as _;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{counter, gauge};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use super::access::{self, WalletError};
use super::doctor;
use super::lock::{self, LockError, WalletLock};
use super::metrics::{Metrics, MetricsError};
use super::models;
use super::operator::Operator;
use super::preflight::Findings;
use super::settings::{Cors, Settings};
use super::settle_loop::{self, PlacedOrder, Pulse};
use super::start::{self, Parts, StartError, log_finding};
use super::tasks::{Task, Tasks};
use super::wiring::{self, Paid, WiringError};
use crate::api::{self, ApiSettings, AppState, Hooks, HostSignature, Stops, VersionInfo};
use crate::billing::Lost;
use crate::chain::evm::{EvmChain, EvmWallet};
use crate::chain::registry::Registry;
use crate::chain::{Chain, Wallet};
use crate::clock::{Clock, SystemClock, within};
use crate::engine::Engine;
use crate::engine::local::LocalEngine;
use crate::ledger::{Ledger, LedgerError};
use crate::session::{Notice, PauseReason, Sessions};
use crate::settlement::Observer;
use crate::telemetry::{
    ENGINE_SEQUENCES_QUEUED, ENGINE_SEQUENCES_RUNNING, KV_BLOCK_COUNT_CACHED, KV_BLOCK_COUNT_FREE,
    KV_EVICTIONS, PREEMPTIONS, PREFIX_HITS, PREFIX_TOKENS, SPECULATION_GUESSED_TOKENS,
    SPECULATION_RIGHT_TOKENS,
};
use crate::units::{Hash32, JobId, TokenCount, TxHash};

/// News a slow WebSocket client may lag behind before it misses some.
const NOTICES_MAX: usize = 256;
/// Pause between two looks at the ledger's health.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// Pause between two looks at the engine's load.
const LOAD_EVERY: Duration = Duration::from_secs(1);

/// The node could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A part could not be made.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// Another node holds the wallet or the data folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The host's key cannot be read.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The node cannot be paid.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The port.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The configured address.
        address: std::net::SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// A part that must not fail has failed.
    #[error("the node stopped: {0}")]
    Task(String),
}

/// Serves until a stop signal, or until a part fails.
///
/// # Errors
/// [`ServeError`].
pub async fn run(settings: Settings) -> Result<(), ServeError> {
    let clock = SystemClock::shared();
    let wallet = settings.key.as_ref().map(access::open_wallet).transpose()?;
    let address = wallet.as_ref().map(|wallet| wallet.address());
    let _lock = WalletLock::take(address, &lock::user_dir(), &settings.data_dir)?;
    let metrics = Metrics::install()?;
    let engine = load_engine(&settings).await?;
    let parts = Parts { settings: &settings, engine: &engine, clock: &clock };
    let paid = start::paid(parts, wallet).await?;
    let paid = paid.as_ref();
    let listener = listen(&settings).await?;
    let tasks = Tasks::default();
    let stops = Stops::default();
    let sessions = Arc::new(Sessions::new(
        Arc::clone(&engine) as Arc<dyn Engine>,
        paid.map(|paid| paid.for_sessions()).transpose().map_err(WiringError::from)?,
        wiring::session_rules(&settings),
        Arc::clone(&clock),
    ));
    let (notices, _) = broadcast::channel(NOTICES_MAX);
    let news = Arc::new(News {
        sessions: Arc::clone(&sessions),
        notices: notices.clone(),
        is_chain_silent: AtomicBool::new(false),
    });
    let settle_stop = CancellationToken::new();
    let mut background = Vec::new();
    let (to_settlement, orders) = settle_loop::orders();
    let operator = Operator::new(&settings, &sessions, paid.map(|_| to_settlement));
    background.extend(operator.listen(&tasks, &clock));
    if let Some(paid) = paid {
        let money = Money { settings: &settings, paid, news: &news, orders };
        background.extend(start_settlement(&tasks, money, &settle_stop));
    }
    let app = Arc::new(AppState {
        sessions: Arc::clone(&sessions),
        clock: Arc::clone(&clock),
        settings: api_settings(&settings),
        hooks: hooks(paid, metrics, news),
        version: version_info(paid),
        notices,
        stops: stops.clone(),
    });
    let load = watch_load(Arc::clone(&sessions), Arc::clone(&clock), settle_stop.clone());
    background.push(tasks.spawn("metrics", load));
    let serving = tasks.spawn("api", api::serve(listener, app));
    if let Some(paid) = paid {
        let reach = say_reachability(Arc::clone(paid), tasks.stop());
        background.push(tasks.spawn("reachability", reach));
    }
    announce(&settings);
    wait_for_stop(&tasks).await;
    sessions.close();
    finish(Finish { settings: &settings, clock: &*clock, stops, serving }).await;
    if let Some(paid) = paid {
        flush(paid).await;
    }
    settle_stop.cancel();
    for task in background {
        task.join().await;
    }
    engine.shutdown();
    tracing::info!("stopped");
    tasks.failure().map_or(Ok(()), |why| Err(ServeError::Task(why)))
}

/// What settlement and its watchers need.
struct Money<'a> {
    settings: &'a Settings,
    paid: &'a Arc<Paid>,
    news: &'a Arc<News>,
    orders: mpsc::Receiver<PlacedOrder>,
}

fn start_settlement(tasks: &Tasks, money: Money<'_>, stop: &CancellationToken) -> [Task; 2] {
    let Money { settings, paid, news, orders } = money;
    let rules = wiring::settlement_rules(&settings.money());
    let settlement = paid.settlement(rules, Arc::clone(news) as Arc<dyn Observer>);
    let pulse = Pulse {
        clock: Arc::clone(&paid.clock),
        poll: settings.settlement.poll,
        tracker: Arc::clone(&paid.tracker),
        orders,
    };
    let settling = settle_loop::run(settlement, pulse, stop.clone());
    let watching = watch_ledger(Arc::clone(paid), Arc::clone(&paid.clock), stop.clone());
    [tasks.spawn("settlement", settling), tasks.spawn("ledger", watching)]
}

async fn load_engine(settings: &Settings) -> Result<Arc<LocalEngine>, ServeError> {
    let copy = settings.clone();
    let loading = tokio::task::spawn_blocking(move || models::load(&copy));
    let engine = loading.await.map_err(|error| ServeError::Task(error.to_string()))??;
    for card in engine.catalog() {
        tracing::info!(
            model = card.name,
            quantisation = card.quantisation,
            context = card.context_length,
            sha256 = %card.weights_sha256,
            "model loaded"
        );
    }
    Ok(Arc::new(engine))
}

async fn listen(settings: &Settings) -> Result<TcpListener, ServeError> {
    let address = settings.listen;
    let fail = |error| ServeError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    tracing::info!(address = %bound, "listening");
    Ok(listener)
}

/// Says that the node is up, to the log and to a launcher that waits for its line.
fn announce(settings: &Settings) {
    tracing::info!("ready");
    if settings.launcher_compat {
        super::console::line(super::console::LAUNCHER_LINE);
    }
}

/// Completes at a stop signal, or when a task failed; the stop is ordered then.
pub(super) async fn wait_for_stop(tasks: &Tasks) {
    let stop = tasks.stop();
    let mut terminate =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
    let terminated = async {
        match &mut terminate {
            Some(signal) => signal.recv().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        _ = terminated => tracing::info!("SIGTERM: stopping"),
        _ = tokio::signal::ctrl_c() => tracing::info!("interrupt: stopping"),
    }
    stop.cancel();
}

/// What ends the front-ends.
struct Finish<'a> {
    settings: &'a Settings,
    clock: &'a dyn Clock,
    stops: Stops,
    serving: Task,
}

/// Running answers may finish within the grace period; what still runs then is cut.
async fn finish(end: Finish<'_>) {
    let Finish { settings, clock, stops, serving } = end;
    stops.drain.cancel();
    let mut joined = std::pin::pin!(serving.join());
    let grace = settings.shutdown_grace;
    if within(clock, grace, joined.as_mut()).await.is_none() {
        tracing::warn!(seconds = grace.as_secs(), "grace period over: cutting streams");
        stops.cut.cancel();
        joined.await;
    }
}

/// Groups become durable in order, so an empty one at the end says that all are.
async fn flush(paid: &Paid) {
    if let Err(error) = paid.ledger.append(Vec::new()).await {
        tracing::error!(%error, "ledger not flushed");
    }
}

/// A ledger that cannot be written stops the node: nothing may be delivered unrecorded.
async fn watch_ledger(
    paid: Arc<Paid>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(), LedgerError> {
    while within_stop(&stop, clock.sleep(WATCH_EVERY)).await.is_some() {
        if !paid.ledger.is_healthy() {
            let why = paid.ledger.failure().unwrap_or_default();
            return Err(LedgerError::Store(format!("it takes no entries any more: {why}")));
        }
    }
    Ok(())
}

/// Reads how busy the engine is.
async fn watch_load(
    sessions: Arc<Sessions>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    while within_stop(&stop, clock.sleep(LOAD_EVERY)).await.is_some() {
        let load = sessions.load();
        gauge!(ENGINE_SEQUENCES_RUNNING).set(f64::from(load.running));
        gauge!(ENGINE_SEQUENCES_QUEUED).set(f64::from(load.queued));
        gauge!(KV_BLOCK_COUNT_FREE).set(f64::from(load.kv_block_count_free));
        gauge!(KV_BLOCK_COUNT_CACHED).set(f64::from(load.kv_block_count_cached));
        counter!(KV_EVICTIONS).absolute(load.cache.evictions);
        counter!(PREFIX_HITS).absolute(load.cache.hits);
        counter!(PREFIX_TOKENS).absolute(load.cache.hit_tokens);
        counter!(PREEMPTIONS).absolute(load.cache.preemptions);
        counter!(SPECULATION_GUESSED_TOKENS).absolute(load.guessed_tokens);
        counter!(SPECULATION_RIGHT_TOKENS).absolute(load.guessed_right);
    }
    Ok(())
}

/// Asks the registered address once, as a client would: it may lead elsewhere, or nowhere.
async fn say_reachability(
    paid: Arc<Paid>,
    stop: CancellationToken,
) -> Result<(), std::convert::Infallible> {
    let asked = async {
        let standing = paid.chain.host_standing().await.ok()?;
        let mut findings = Findings::default();
        if !standing.api_url.is_empty() {
            doctor::reach(&standing.api_url, &mut findings).await;
        }
        findings.0.iter().for_each(log_finding);
        Some(())
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        _ = asked => {}
    }
    stop.cancelled().await;
    Ok(())
}

/// Waits; `None` when the stop came first.
async fn within_stop<T>(stop: &CancellationToken, wait: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        done = wait => Some(done),
    }
}

/// Passes settlement's news on to WebSocket clients (nobody listening is fine) and to `/health`.
struct News {
    notices: broadcast::Sender<Notice>,
    sessions: Arc<Sessions>,
    is_chain_silent: AtomicBool,
}

impl News {
    fn troubles(&self) -> Vec<String> {
        let is_silent = self.is_chain_silent.load(Ordering::Acquire);
        let silent = is_silent.then(|| "the chain does not answer".to_owned());
        let pauses = self.sessions.pauses().into_iter().map(|why| why.words().to_owned());
        silent.into_iter().chain(pauses).collect()
    }
}

impl Observer for News {
    fn claim_included(&self, job: JobId, tokens: TokenCount, tx: TxHash) {
        drop(self.notices.send(Notice::ClaimIncluded { job, tokens, tx }));
    }

    fn chain_answers(&self, answers: bool) {
        self.is_chain_silent.store(!answers, Ordering::Release);
    }

    fn session_closed(&self, job: JobId, _lost: Lost) {
        drop(self.notices.send(Notice::Completed { job }));
    }

    fn gas_suffices(&self, suffices: bool) {
        let is_news = self.sessions.set_paused(PauseReason::Gas, !suffices);
        if is_news && suffices {
            tracing::info!("the wallet can pay its gas again: new paid work is taken");
        } else if is_news {
            tracing::warn!(why = PauseReason::Gas.words(), "no new paid work until it can");
        }
    }
}

fn api_settings(settings: &Settings) -> ApiSettings {
    let api = &settings.api;
    ApiSettings {
        cors: match &api.cors {
            Cors::Any => vec!["*".into()],
            Cors::Listed(origins) => origins.clone(),
        },
        body_bytes_max: api.body_max_bytes,
        heartbeat: api.ping,
        ..ApiSettings::default()
    }
}

fn hooks(paid: Option<&Arc<Paid>>, metrics: Metrics, news: Arc<News>) -> Hooks {
    Hooks {
        metrics: Arc::new(move || metrics.render()),
        signer: paid.map(|paid| signer(&paid.wallet)),
        troubles: {
            let paid = paid.cloned();
            Arc::new(move || {
                let endpoints = paid.as_ref().and_then(|paid| endpoint_trouble(&paid.chain));
                news.troubles().into_iter().chain(endpoints).collect()
            })
        },
    }
}

/// What `/health` says of endpoints that are out of use while others go on.
fn endpoint_trouble(chain: &EvmChain) -> Option<String> {
    let (usable, all) = chain.endpoints_usable();
    // The only one's silence is the chain's, which settlement tells.
    let is_trouble = all > 1 && usable < all;
    is_trouble.then(|| format!("{usable} of {all} RPC endpoints are well"))
}

fn signer(wallet: &Arc<EvmWallet>) -> api::HostSigner {
    let wallet = Arc::clone(wallet);
    Arc::new(move |digest| {
        let signature = wallet.sign_digest(Hash32::new(digest)).ok()?;
        let (rs, v) = signature.bytes().split_first_chunk::<64>()?;
        let recid = v.first()?.checked_sub(27)?;
        Some(HostSignature { rs: *rs, recid })
    })
}

fn version_info(paid: Option<&Arc<Paid>>) -> VersionInfo {
    let mut build = String::new();
    // Writing to a String cannot fail.
    let _ = write!(build, "{} {}", super::version::COMMIT, super::version::BUILD_DATE);
    VersionInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        build,
        features: ["rest", "sse", "websocket", "session-tokens"].map(str::to_owned).to_vec(),
        chain_name: paid.map(|paid| chain_name(paid.chain.chain_id())),
    }
}

/// Names people know, for `GET /v1/models`. Source: the public eip155 chain list.
fn chain_name(chain_id: u64) -> String {
    match chain_id {
        1 => "Ethereum".into(),
        8_453 => "Base".into(),
        84_532 => "Base Sepolia".into(),
        5_611 => "opBNB Testnet".into(),
        31_337 => "Development chain".into(),
        other => format!("eip155:{other}"),
    }
}
