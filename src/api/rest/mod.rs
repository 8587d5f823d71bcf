//! The REST API.
//!
//! Never answers in another shape than docs/spec/marketplace-api.md section 2 names, errors of
//! every kind included.

mod inference;
mod node;
mod session;
mod sse;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;

pub(super) use inference::inference;
pub(super) use node::{auth_challenge, health, metrics, models, version};
pub(super) use session::{session_challenge, session_report, session_token};

use super::AppState;
use super::edge::RequestId;
use super::error::{Fault, HttpError};
use crate::clock::within;

/// No such path.
pub(super) async fn not_found(Extension(id): Extension<RequestId>) -> HttpError {
    HttpError::new(Fault::new(StatusCode::NOT_FOUND, "not_found", "no such path"), &id.0)
}

/// The path exists, for another method.
pub(super) async fn method_not_allowed(Extension(id): Extension<RequestId>) -> HttpError {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    HttpError::new(Fault::new(status, "method_not_allowed", "method not allowed"), &id.0)
}

/// A body, bounded in size and in time.
async fn read_body(app: &AppState, headers: &HeaderMap, body: Body) -> Result<Bytes, Fault> {
    let max = app.settings.body_bytes_max;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length
        .and_then(|text| text.parse::<u64>().ok())
        .is_some_and(|announced| announced > u64::try_from(max).unwrap_or(u64::MAX))
    {
        return Err(too_large(max));
    }
    let collected = within(&*app.clock, app.settings.body_wait_max, collect(body, max)).await;
    collected.unwrap_or_else(|| {
        let message = "the request's body did not arrive in time";
        Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
    })
}

async fn collect(body: Body, max: usize) -> Result<Bytes, Fault> {
    let mut pieces = body.into_data_stream();
    let mut collected = Vec::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|_| Fault::invalid_request("the body broke off"))?;
        if collected.len().saturating_add(piece.len()) > max {
            return Err(too_large(max));
        }
        collected.extend_from_slice(&piece);
    }
    Ok(collected.into())
}

fn too_large(max: usize) -> Fault {
    let message = format!("the body is longer than {max} bytes");
    Fault::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", message)
}
