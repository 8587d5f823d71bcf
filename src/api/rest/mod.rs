//! The REST API.
//!
//! Never answers in another shape than docs/spec/marketplace-api.md section 2 names, errors of
//! every kind included.

mod inference;
mod node;
mod session;
mod sse;

use axum::Extension;
use axum::http::StatusCode;

pub(super) use inference::inference;
pub(super) use node::{auth_challenge, health, metrics, models, version};
pub(super) use session::{session_challenge, session_proof, session_report, session_token};

use super::AppState;
use super::body::read_body;
use super::edge::RequestId;
use super::error::{Fault, HttpError};

/// No such path.
pub(super) async fn not_found(Extension(id): Extension<RequestId>) -> HttpError {
    HttpError::new(Fault::new(StatusCode::NOT_FOUND, "not_found", "no such path"), &id.0)
}

/// The path exists, for another method.
pub(super) async fn method_not_allowed(Extension(id): Extension<RequestId>) -> HttpError {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    HttpError::new(Fault::new(status, "method_not_allowed", "method not allowed"), &id.0)
}
