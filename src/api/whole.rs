//! An answer in one body.
//!
//! Never counts a token before the body's last byte was written. The protocols say what the body
//! holds.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde_json::{Map, Value};

use super::AppState;
use super::delivery::Slot;
use super::error::Fault;
use super::outcome::{Pace, finish_reason};
use crate::session::{Frame, Reply, ReplyEnd, TurnEnd};

/// Waits for the whole answer, unless the node stops first.
///
/// # Errors
/// A fault where the generation failed or was cut; nothing is charged then.
pub(super) async fn collect(
    app: &AppState,
    reply: Reply,
    pace: &mut Pace,
) -> Result<(Frame, ReplyEnd), Fault> {
    let (frame, end) = tokio::select! {
        biased;
        () = app.stops.cut.cancelled() => {
            return Err(Fault::unavailable("the node is shutting down"));
        }
        answer = reply.whole() => answer,
    };
    if end.reason == TurnEnd::Error {
        return Err(Fault::internal());
    }
    pace.frame();
    pace.ended(finish_reason(end.reason));
    Ok((frame, end))
}

/// The response with this body; the frame counts when its last byte was written.
///
/// # Errors
/// None in practice: text and numbers can always be written as JSON.
pub(super) fn respond(
    slot: &Slot,
    frame: Frame,
    body: &Map<String, Value>,
    request_id: &str,
) -> Result<Response, Fault> {
    let body = serde_json::to_vec(body).map_err(|_| Fault::internal())?;
    slot.post(u64::try_from(body.len()).unwrap_or(u64::MAX), frame);
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert("x-request-id", id);
    }
    Ok(response)
}
