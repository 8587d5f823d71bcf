//! `POST /v1/inference`: one prompt, answered at once or as a stream.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;

use super::sse::{self, Stream};
use super::{AppState, Fault, HttpError, RequestId, read_body};
use crate::api::delivery::Slot;
use crate::api::edge::bearer;
use crate::api::error::object;
use crate::api::outcome::{Pace, finish_reason, summary};
use crate::api::prompt::{self, ParsedPrompt, PromptContext};
use crate::session::{Credential, Reply, TurnEnd};

/// Serves a prompt.
pub(in crate::api) async fn inference(
    State(app): State<Arc<AppState>>,
    Extension(slot): Extension<Slot>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let mut pace = Pace::start("rest", Arc::clone(&app.clock));
    let mut id = id;
    let answer = async {
        let bytes = read_body(&app, &headers, body).await?;
        let fields = object(&bytes)?;
        if let Some(own) = prompt::request_id(&fields) {
            id = own;
        }
        let is_free = app.sessions.chain_id().is_none();
        let context = PromptContext { is_free, ..PromptContext::default() };
        let mut parsed = prompt::parse(&fields, &context)?;
        if let Some(token) = bearer(&headers) {
            parsed.request.credential = Credential::Token(token.to_owned().into());
        }
        log(&parsed, &id);
        let reply = app.sessions.begin(parsed.request).await?;
        Ok::<_, Fault>((reply, parsed.stream.unwrap_or(false)))
    };
    let begun = answer.await;
    let outcome = match begun {
        Ok((reply, true)) => {
            let clock = Arc::clone(&app.clock);
            let stream = Stream { app, slot, reply, pace, clock, request_id: id };
            return Ok(sse::respond(stream));
        }
        Ok((reply, false)) => whole(&app, &slot, reply, &mut pace, &id).await,
        Err(fault) => Err(fault),
    };
    outcome.map_err(|fault| {
        pace.ended(fault.code);
        HttpError::new(fault, &id)
    })
}

/// Who asked and for which job; never what.
fn log(parsed: &ParsedPrompt, request_id: &str) {
    let job = parsed.request.job.map(crate::units::JobId::get);
    let session_id = parsed.label.as_deref();
    tracing::info!(session_id, job, request_id, api = "rest", "prompt received");
}

/// The whole answer in one body.
async fn whole(
    app: &AppState,
    slot: &Slot,
    reply: Reply,
    pace: &mut Pace,
    request_id: &str,
) -> Result<Response, Fault> {
    let info = reply.info().clone();
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
    let content = format!("{}{}", frame.text, end.tail_text);
    let mut map = summary(&info, (end.reason, end.usage), app.sessions.chain_id());
    map.insert("content".into(), content.into());
    map.insert("request_id".into(), request_id.into());
    let body = serde_json::to_vec(&map).map_err(|_| Fault::internal())?;
    slot.post(u64::try_from(body.len()).unwrap_or(u64::MAX), frame);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert("x-request-id", id);
    }
    Ok(response)
}
