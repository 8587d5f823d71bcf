//! The OpenAI API, as far as clients of chat completions need it.
//!
//! Never serves a field that it does not know, and never answers an error in another shape than
//! OpenAI's. Tokens are counted as over every other front-end: by the session service, when their
//! frame was written. Source of shapes: the OpenAI API reference; ours is
//! docs/spec/marketplace-api.md section 6.

mod chat;
mod error;
mod request;
mod telling;

use axum::Extension;
use axum::http::StatusCode;

pub(super) use chat::chat;
use error::OpenAiError;

use super::edge::RequestId;
use super::error::Fault;

/// The path exists, for another method.
pub(super) async fn method_not_allowed(Extension(id): Extension<RequestId>) -> OpenAiError {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    OpenAiError::new(Fault::new(status, "method_not_allowed", "method not allowed"), &id.0)
}
