//! `POST /execute`: a job and its stream. `POST /cancel`: the end of one.
//!
//! Never holds more than the frame it was asked for: hyper asks when the socket has room. The body
//! is dropped with its connection, and the job with the body.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;

use super::error::WireError;
use super::frames::{fault_code, frame};
use super::request::{Cancel, Execute, check_job_id, read};
use super::{WorkerApp, deadline};
use crate::api::body::read_bounded;
use crate::api::outcome::Pace;
use crate::jobs::{Job, JobEvent, JobStop};

/// Bytes of a body that are parsed beside the runtime's one thread, which answers `/health`
/// meanwhile: a body of two mebibytes may take tens of milliseconds.
const LONG_BYTES: usize = 64 * 1024;

/// Runs a job.
pub(super) async fn execute(
    State(app): State<Arc<WorkerApp>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut pace = Pace::start("worker", Arc::clone(&app.clock));
    let admitted = async {
        let bytes = read_json(&app, &headers, body).await?;
        let deadline = deadline::of(&headers)?;
        let read = move |body: &[u8]| read::<Execute>(body)?.into_job(deadline);
        let request = parse(bytes, read).await?;
        Ok::<_, WireError>(app.jobs.admit(request).await?)
    };
    match admitted.await {
        Ok(job) => respond(Telling { job, pace, model: app.jobs.model().to_owned() }),
        Err(error) => {
            pace.ended(error.code());
            error.into_response()
        }
    }
}

#[derive(Serialize)]
struct Cancelled {
    job_id: String,
}

/// Cancels a job; one that is unknown, or has ended, is fine.
pub(super) async fn cancel(
    State(app): State<Arc<WorkerApp>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, WireError> {
    let bytes = read_json(&app, &headers, body).await?;
    let Cancel { job_id } = parse(bytes, read).await?;
    if let Some(error) = check_job_id(&job_id) {
        return Err(WireError::Fields(vec![error]));
    }
    app.jobs.cancel(&job_id);
    Ok((StatusCode::ACCEPTED, Json(Cancelled { job_id })).into_response())
}

/// What `read` makes of a body.
async fn parse<T: Send + 'static>(
    bytes: Bytes,
    read: impl FnOnce(&[u8]) -> Result<T, WireError> + Send + 'static,
) -> Result<T, WireError> {
    if bytes.len() <= LONG_BYTES {
        return read(&bytes);
    }
    let beside = tokio::task::spawn_blocking(move || read(&bytes)).await;
    beside.unwrap_or(Err(WireError::Internal))
}

/// A body that says it is JSON.
async fn read_json(app: &WorkerApp, headers: &HeaderMap, body: Body) -> Result<Bytes, WireError> {
    if !is_json(headers) {
        return Err(WireError::NotJson);
    }
    Ok(read_bounded(&app.settings, &*app.clock, headers, body).await?)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// A job on its way to a client.
struct Telling {
    job: Job,
    pace: Pace,
    model: String,
}

impl Telling {
    async fn piece(&mut self) -> Option<Bytes> {
        let event = self.job.next().await?;
        match &event {
            JobEvent::Started { .. } => {}
            JobEvent::Token { .. } => self.pace.frame(),
            JobEvent::Ended { stop, .. } => self.pace.ended(match stop {
                JobStop::MaxTokens => "MAX_TOKENS",
                JobStop::Eos => "EOS",
                JobStop::Sequence(_) => "STOP_SEQUENCE",
            }),
            JobEvent::Failed(fault) => self.pace.ended(fault_code(fault).0),
        }
        Some(frame(&event, (self.job.id(), &self.model)).into())
    }
}

/// The response whose body is the stream: one frame, one piece, one write.
fn respond(telling: Telling) -> Response {
    let pieces = stream::unfold(Box::new(telling), |mut telling| async {
        let piece = telling.piece().await?;
        Some((Ok::<_, Infallible>(piece), telling))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks reverse proxies not to collect pieces before passing them on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
