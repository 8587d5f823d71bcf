//! What the node says of itself: health, version, models, metrics, and who it is.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{AppState, Fault, HttpError, RequestId, read_body};
use crate::api::error::object;
use crate::session::{ModelCard, Refusal};

/// `GET /health`: 200 while it can serve, 503 when it cannot.
pub(in crate::api) async fn health(State(app): State<Arc<AppState>>) -> Response {
    let fatal = app.sessions.issues();
    let troubles = (app.hooks.troubles)();
    let (code, status) = match (fatal.is_empty(), troubles.is_empty()) {
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
        (true, false) => (StatusCode::OK, "degraded"),
        (true, true) => (StatusCode::OK, "healthy"),
    };
    let issues: Vec<String> = fatal.into_iter().map(str::to_owned).chain(troubles).collect();
    (code, Json(json!({ "status": status, "issues": issues }))).into_response()
}

/// `GET /v1/version`.
pub(in crate::api) async fn version(State(app): State<Arc<AppState>>) -> Json<Value> {
    let own = &app.version;
    let chains: Vec<u64> = app.sessions.chain_id().into_iter().collect();
    Json(json!({
        "version": own.version,
        "build": own.build,
        "features": own.features,
        "chains": chains,
    }))
}

/// `GET /v1/models`: the OpenAI list and the marketplace's, side by side.
pub(in crate::api) async fn models(State(app): State<Arc<AppState>>) -> Json<Value> {
    let cards = app.sessions.models();
    let openai = |card: &ModelCard| {
        json!({
            "id": card.name,
            "object": "model",
            "created": 0,
            "owned_by": "tally",
        })
    };
    let market = |card: &ModelCard| {
        json!({
            "id": card.name,
            "name": card.name,
            "context_window_size": card.context_length,
            "sha256": hex::encode(card.weights_sha256.bytes()),
        })
    };
    Json(json!({
        "object": "list",
        "data": cards.iter().map(openai).collect::<Vec<_>>(),
        "models": cards.iter().map(market).collect::<Vec<_>>(),
        "chain_id": app.sessions.chain_id(),
        "chain_name": app.version.chain_name,
    }))
}

/// `GET /metrics`: Prometheus text.
pub(in crate::api) async fn metrics(State(app): State<Arc<AppState>>) -> Response {
    // Content type of the text exposition format, version 0.0.4 (Prometheus documentation).
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, (app.hooks.metrics)()).into_response()
}

/// `POST /v1/auth/challenge`: proves that this node holds the host's key.
pub(in crate::api) async fn auth_challenge(
    State(app): State<Arc<AppState>>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, HttpError> {
    let answer = async {
        let fields = object(&read_body(&app, &headers, body).await?)?;
        let challenge = fields.get("challenge").and_then(Value::as_str).and_then(challenge_bytes);
        let challenge = challenge.ok_or_else(|| {
            Fault::from(Refusal::invalid("challenge", "challenge must be 64 hex digits"))
        })?;
        let no_key = || Fault::unavailable("this node serves without a host key");
        let signer = app.hooks.signer.as_ref().ok_or_else(no_key)?;
        let signed = signer(Sha256::digest(challenge).into()).ok_or_else(Fault::internal)?;
        Ok(Json(json!({ "signature": hex::encode(signed.rs), "recid": signed.recid })))
    };
    answer.await.map_err(|fault: Fault| HttpError::new(fault, &id))
}

fn challenge_bytes(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut bytes).ok()?;
    Some(bytes)
}
