//! Bodies of requests: bounded in size and in time.
//!
//! Never reads further than the bound. Every route that takes a body reads it here.

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;

use super::error::Fault;
use super::{ApiSettings, AppState};
use crate::clock::{Clock, within};

/// A body, bounded in size and in time.
///
/// # Errors
/// A fault for one that is too long, too slow or broken off.
pub(super) async fn read_body(
    app: &AppState,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Fault> {
    read_bounded(&app.settings, &*app.clock, headers, body).await
}

/// As [`read_body`], for front-ends with a state of their own.
///
/// # Errors
/// As [`read_body`].
pub(super) async fn read_bounded(
    settings: &ApiSettings,
    clock: &dyn Clock,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Fault> {
    let max = settings.body_bytes_max;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length
        .and_then(|text| text.parse::<u64>().ok())
        .is_some_and(|announced| announced > u64::try_from(max).unwrap_or(u64::MAX))
    {
        return Err(too_large(max));
    }
    let collected = within(clock, settings.body_wait_max, collect(body, max)).await;
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
