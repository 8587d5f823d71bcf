//! The WebSocket API.

use axum::response::Response;

pub(super) async fn upgrade() -> Response {
    Response::default()
}
