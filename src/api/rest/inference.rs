//! `POST /v1/inference`: one prompt, answered at once or as a stream.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::sse::Events;
use super::{AppState, Fault, HttpError, RequestId, read_body};
use crate::api::delivery::Slot;
use crate::api::edge::bearer;
use crate::api::error::object;
use crate::api::outcome::{Pace, put_logprobs, summary};
use crate::api::prompt::{self, ParsedPrompt, PromptContext};
use crate::api::sse::{self, Stream};
use crate::api::whole;
use crate::session::{Credential, Reply};

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
            let (info, chain_id) = (reply.info().clone(), app.sessions.chain_id());
            let telling = Events { info, request_id: id.clone(), chain_id };
            return Ok(sse::respond(Stream { app, slot, reply, pace, request_id: id, telling }));
        }
        Ok((reply, false)) => in_one(&app, &slot, reply, &mut pace, &id).await,
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
async fn in_one(
    app: &AppState,
    slot: &Slot,
    reply: Reply,
    pace: &mut Pace,
    request_id: &str,
) -> Result<Response, Fault> {
    let info = reply.info().clone();
    let (frame, end) = whole::collect(app, reply, pace).await?;
    let content = format!("{}{}", frame.text, end.tail_text);
    let mut map = summary(&info, (end.reason, end.usage), app.sessions.chain_id());
    map.insert("content".into(), content.into());
    put_logprobs(&mut map, frame.logprobs());
    map.insert("request_id".into(), request_id.into());
    whole::respond(slot, frame, &map, request_id)
}
