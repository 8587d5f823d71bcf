//! Front-ends: bytes to domain and back.
//!
//! Never counts, prices or retries: what a prompt costs and whether it is served is the session
//! service's to say. Relies on [`serve`] being the only way in: its listener watches what the
//! kernel takes, without which no token counts as delivered.

mod body;
mod delivery;
mod edge;
mod error;
mod fields;
mod openai;
mod outcome;
mod prompt;
mod rest;
mod sampling;
mod sse;
mod whole;
pub mod worker;
mod ws;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use delivery::{MeteredListener, StreamLimits};

use crate::clock::Clock;
use crate::session::{Notice, Sessions};

/// The operator's wishes for the front-ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSettings {
    /// Origins of web pages that may call; `*` admits all.
    pub cors: Vec<String>,
    /// Longest body or WebSocket message, bytes.
    pub body_bytes_max: usize,
    /// Longest wait for a request's body.
    pub body_wait_max: Duration,
    /// Patience with connections.
    pub stream: StreamLimits,
    /// Pause between WebSocket pings; two without an answer close the connection.
    pub heartbeat: Duration,
    /// Pause between comments in a silent SSE stream, so that proxies keep it open.
    pub sse_keepalive: Duration,
    /// Prompts that may wait on one WebSocket connection while one runs there.
    pub prompts_waiting_max: usize,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self {
            cors: Vec::new(),
            // Far above a prompt that fills the longest context we know of, far below trouble.
            body_bytes_max: 2 * 1024 * 1024,
            body_wait_max: Duration::from_secs(30),
            stream: StreamLimits {
                head_wait_max: Duration::from_secs(60),
                stall_max: Duration::from_secs(30),
                connections_max: 1024,
            },
            // docs/spec/marketplace-api.md section 3.
            heartbeat: Duration::from_secs(20),
            sse_keepalive: Duration::from_secs(15),
            prompts_waiting_max: 4,
        }
    }
}

/// A recoverable signature of the host's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSignature {
    /// r then s, 32 bytes each, big-endian.
    pub rs: [u8; 64],
    /// 0 or 1.
    pub recid: u8,
}

/// Signs a 32-byte digest with the host's key; `None` when the key refuses.
pub type HostSigner = Arc<dyn Fn([u8; 32]) -> Option<HostSignature> + Send + Sync>;

/// What the front-ends ask of parts they do not know.
#[derive(Clone)]
pub struct Hooks {
    /// All metrics as Prometheus text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// The host's key; `None` in free mode.
    pub signer: Option<HostSigner>,
    /// What is wrong though prompts are still served, such as an unreachable chain.
    pub troubles: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

/// What the node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionInfo {
    /// The release.
    pub version: String,
    /// Commit and build date.
    pub build: String,
    /// What this build can do, for clients that ask.
    pub features: Vec<String>,
    /// The chain's name, for people.
    pub chain_name: Option<String>,
}

/// How the front-ends are told to stop, and how it is known that they have.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// No new connections; idle ones close, running answers go on.
    pub drain: CancellationToken,
    /// Running answers end now, as cancelled.
    pub cut: CancellationToken,
    /// Every WebSocket connection; `serve` waits for it.
    pub sockets: TaskTracker,
}

/// Everything the front-ends stand on.
pub struct AppState {
    /// The session service.
    pub sessions: Arc<Sessions>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The operator's wishes.
    pub settings: ApiSettings,
    /// Parts they do not know.
    pub hooks: Hooks,
    /// What the node says of itself.
    pub version: VersionInfo,
    /// News of settlement for WebSocket clients. A client that lags misses some.
    pub notices: broadcast::Sender<Notice>,
    /// How they stop.
    pub stops: Stops,
}

/// All routes. Tokens are counted only on connections of a [`MeteredListener`].
pub fn router(app: Arc<AppState>) -> Router {
    let cors = edge::cors(&app.settings.cors);
    Router::new()
        .route("/v1/inference", post(rest::inference))
        .route("/v1/chat/completions", post(openai::chat).fallback(openai::method_not_allowed))
        .route("/v1/sessions/{job}", get(rest::session_report))
        .route("/v1/sessions/{job}/proofs/{seq}", get(rest::session_proof))
        .route("/v1/sessions/{job}/challenge", post(rest::session_challenge))
        .route("/v1/sessions/{job}/token", post(rest::session_token))
        .route("/v1/auth/challenge", post(rest::auth_challenge))
        .route("/health", get(rest::health))
        .route("/v1/health", get(rest::health))
        .route("/v1/version", get(rest::version))
        .route("/v1/models", get(rest::models))
        .route("/metrics", get(rest::metrics))
        .route("/v1/ws", get(ws::upgrade))
        .route("/ws", get(ws::upgrade))
        .fallback(rest::not_found)
        .method_not_allowed_fallback(rest::method_not_allowed)
        .layer(cors)
        .layer(axum::middleware::from_fn(|request, next| {
            edge::enter(error::Fault::into_http, request, next)
        }))
        .with_state(app)
}

/// Serves `listener` until `stops.drain` is cancelled and every answer has ended.
///
/// # Errors
/// None in practice: failed accepts are retried.
pub async fn serve(listener: TcpListener, app: Arc<AppState>) -> io::Result<()> {
    let metered = MeteredListener::new(listener, Arc::clone(&app.clock), app.settings.stream);
    let stops = app.stops.clone();
    let service = router(app).into_make_service_with_connect_info::<delivery::ConnectionOutbox>();
    let drain = stops.drain.clone().cancelled_owned();
    axum::serve(metered, service).with_graceful_shutdown(drain).await?;
    stops.sockets.close();
    stops.sockets.wait().await;
    Ok(())
}
