//! The worker protocol: what a pool manager and an orchestrator speak with `tally worker`.
//!
//! Never answers in another shape than docs/spec/worker-protocol.md names, errors of every kind
//! included. Relies on the jobs service for slots, queue and cancels, and on [`serve`] being the
//! only way in.

mod deadline;
mod error;
mod execute;
mod frames;
mod request;
mod token;

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use token::WorkerToken;

use super::delivery::{ConnectionOutbox, MeteredListener};
use super::error::Fault;
use super::{ApiSettings, edge};
use crate::clock::Clock;
use crate::jobs::Jobs;
use error::WireError;

/// Everything the worker's front-end stands on.
pub struct WorkerApp {
    /// The jobs.
    pub jobs: Arc<Jobs>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Bounds on bodies and connections.
    pub settings: ApiSettings,
    /// What `/execute` and `/cancel` ask for; `None` lets everyone in.
    pub token: Option<WorkerToken>,
    /// All metrics as Prometheus text.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// No new connections; idle ones close, running answers go on.
    pub drain: CancellationToken,
}

/// All routes.
pub fn router(app: Arc<WorkerApp>) -> Router {
    let guard = axum::middleware::from_fn_with_state(Arc::clone(&app), guard);
    Router::new()
        .route("/execute", post(execute::execute))
        .route("/cancel", post(execute::cancel))
        .route_layer(guard)
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn(|request, next| edge::enter(words, request, next)))
        .with_state(app)
}

/// Serves `listener` until `app.drain` is cancelled and every answer has ended; keeps the jobs'
/// deadlines meanwhile.
///
/// # Errors
/// None in practice: failed accepts are retried.
pub async fn serve(listener: TcpListener, app: Arc<WorkerApp>) -> io::Result<()> {
    let metered = MeteredListener::new(listener, Arc::clone(&app.clock), app.settings.stream);
    let drain = app.drain.clone().cancelled_owned();
    let jobs = Arc::clone(&app.jobs);
    let service = router(app).into_make_service_with_connect_info::<ConnectionOutbox>();
    let serving = axum::serve(metered, service).with_graceful_shutdown(drain);
    tokio::select! {
        biased;
        served = serving.into_future() => served,
        () = jobs.keep_deadlines() => Ok(()),
    }
}

/// What goes wrong around a handler.
fn words(fault: Fault, _request_id: &str) -> Response {
    let error = match fault.status {
        StatusCode::INTERNAL_SERVER_ERROR => WireError::Internal,
        _ => WireError::HttpVersion,
    };
    error.into_response()
}

/// Lets in who knows the token, where there is one.
async fn guard(State(app): State<Arc<WorkerApp>>, request: Request, next: Next) -> Response {
    let is_known = app.token.as_ref().is_none_or(|token| {
        edge::bearer(request.headers()).is_some_and(|given| token.is_same(given))
    });
    if is_known { next.run(request).await } else { WireError::Unauthorized.into_response() }
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    model_loaded: bool,
    vram_bytes: u64,
    memory_type: &'static str,
}

/// `GET /health`: 200 while jobs are taken.
async fn health(State(app): State<Arc<WorkerApp>>) -> Response {
    let (code, status) = match (app.jobs.is_healthy(), app.jobs.is_draining()) {
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
        (true, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (true, false) => (StatusCode::OK, "healthy"),
    };
    let model_loaded = app.jobs.is_healthy();
    let body = Health { status, model_loaded, vram_bytes: 0, memory_type: "cpu" };
    (code, axum::Json(body)).into_response()
}

/// `GET /metrics`.
async fn metrics(State(app): State<Arc<WorkerApp>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, (app.metrics)()).into_response()
}

async fn not_found() -> WireError {
    WireError::NotFound
}

async fn method_not_allowed() -> WireError {
    WireError::MethodNotAllowed
}
