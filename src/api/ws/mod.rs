//! The WebSocket API, for both generations of marketplace clients.
//!
//! Never silent: whatever cannot be understood is answered with an `error`, under the client's
//! own `id`. Source: docs/spec/marketplace-api.md section 3.

mod answer;
mod connection;
mod message;

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::AppState;
use super::edge::{RequestId, bearer, is_origin_allowed};
use super::error::{Fault, HttpError};
use crate::session::Credential;
use connection::Connection;

/// `GET /v1/ws` and `GET /ws`.
pub(super) async fn upgrade(
    State(app): State<Arc<AppState>>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
    asked: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, HttpError> {
    if !is_origin_allowed(&app.settings.cors, &headers) {
        let message = "web pages of this origin may not call this node";
        let fault = Fault::new(StatusCode::FORBIDDEN, "forbidden", message);
        return Err(HttpError::new(fault, &id));
    }
    let asked = asked.map_err(|_| {
        HttpError::new(Fault::invalid_request("a WebSocket upgrade is expected here"), &id)
    })?;
    let credential = bearer(&headers)
        .map_or(Credential::JobNumber, |token| Credential::Token(token.to_owned().into()));
    let max = app.settings.body_bytes_max;
    // Taken before the upgrade, so that a shutdown in between still waits for the connection.
    let place = app.stops.sockets.token();
    let upgrade = asked.max_message_size(max).max_frame_size(max);
    Ok(upgrade.on_upgrade(move |socket| async move {
        Box::pin(Connection::new(app, socket, credential).run()).await;
        drop(place);
    }))
}
