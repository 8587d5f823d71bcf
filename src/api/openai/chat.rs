//! `POST /v1/chat/completions`: a conversation, continued at once or as a stream.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

use super::error::OpenAiError;
use super::request::{self, ChatRequest, Form, Payer};
use super::telling::{About, Chunks};
use crate::api::AppState;
use crate::api::body::read_body;
use crate::api::delivery::Slot;
use crate::api::edge::{RequestId, bearer};
use crate::api::error::{Fault, object};
use crate::api::outcome::Pace;
use crate::api::sse::{self, Stream};
use crate::api::whole;
use crate::session::{Credential, Reply};
use crate::units::JobId;

/// Where clients whose library cannot add a field to the body name their job.
const JOB_HEADER: &str = "x-tally-job";

/// Serves a conversation's next answer.
pub(in crate::api) async fn chat(
    State(app): State<Arc<AppState>>,
    Extension(slot): Extension<Slot>,
    Extension(RequestId(id)): Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, OpenAiError> {
    let mut pace = Pace::start("openai", Arc::clone(&app.clock));
    let created = app.clock.unix();
    let begun = async {
        let bytes = read_body(&app, &headers, body).await?;
        begin(&app, &headers, &bytes, &id).await
    };
    let outcome = match begun.await {
        Ok((reply, form)) => {
            let info = reply.info().clone();
            let chain_id = app.sessions.chain_id();
            let about = About { info, request_id: id.clone(), created, chain_id };
            match form {
                Form::Stream { is_usage_wanted } => {
                    let telling = Chunks::new(about, is_usage_wanted);
                    let request_id = id;
                    let stream = Stream { app, slot, reply, pace, request_id, telling };
                    return Ok(sse::respond(stream));
                }
                Form::Whole => in_one(&app, (&slot, &about), reply, &mut pace).await,
            }
        }
        Err(fault) => Err(fault),
    };
    outcome.map_err(|fault| {
        pace.ended(fault.code);
        OpenAiError::new(fault, &id)
    })
}

async fn begin(
    app: &AppState,
    headers: &HeaderMap,
    body: &Bytes,
    request_id: &str,
) -> Result<(Reply, Form), Fault> {
    let fields = object(body)?;
    let token = bearer(headers);
    let payer = payer(app, headers, token)?;
    let ChatRequest { mut prompt, form } = request::parse(&fields, payer)?;
    if let Some(token) = token {
        prompt.credential = Credential::Token(token.to_owned().into());
    }
    let job = prompt.job.map(JobId::get);
    tracing::info!(job, request_id, api = "openai", "prompt received");
    Ok((app.sessions.begin(prompt).await?, form))
}

/// The job that pays where the body names none: the header's, else the one that the session
/// token was given out for.
fn payer(app: &AppState, headers: &HeaderMap, token: Option<&str>) -> Result<Payer, Fault> {
    let is_free = app.sessions.chain_id().is_none();
    let job = match headers.get(JOB_HEADER) {
        None => token.and_then(|token| app.sessions.job_of_token(token)),
        Some(value) => {
            let number = value.to_str().ok().and_then(|text| JobId::parse(text).ok());
            if number.is_none() && !is_free {
                let message = "x-tally-job must be the session's number on chain";
                return Err(Fault::field(JOB_HEADER, message));
            }
            number
        }
    };
    Ok(Payer { is_free, job })
}

/// The whole answer in one body.
async fn in_one(
    app: &AppState,
    (slot, about): (&Slot, &About),
    reply: Reply,
    pace: &mut Pace,
) -> Result<Response, Fault> {
    let (frame, end) = whole::collect(app, reply, pace).await?;
    let body = about.whole(&frame, &end);
    whole::respond(slot, frame, &body, &about.request_id)
}
