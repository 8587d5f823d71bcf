//! Refusals over HTTP: two shapes, one for requests that break rules of fields, one for the rest.
//!
//! Never repeats a prompt, and never answers without a JSON body. Source of shapes and codes:
//! docs/spec/worker-protocol.md.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api::error::Fault;
use crate::jobs::{JobRefusal, JobsLoad};

/// Seconds after which an orchestrator that found all places taken may ask again: about what a
/// short answer takes.
const RETRY_AFTER_SECONDS: u16 = 2;

/// One rule that a request breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct FieldError {
    pub field: &'static str,
    pub constraint: &'static str,
    pub message: String,
    /// What was found; absent where it may be long or secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// Why a request gets no stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum WorkerError {
    /// Rules of fields, all that are broken, in the protocol's order.
    Fields(Vec<FieldError>),
    /// Bytes that are no JSON, or a body that cannot be read.
    Malformed(String),
    /// JSON in which a field is missing or of another type.
    Mistyped(String),
    /// A header whose value means nothing.
    Header(String),
    NotJson,
    TooLarge(String),
    TooSlow,
    Unauthorized,
    NotFound,
    MethodNotAllowed,
    Duplicate,
    Busy(JobsLoad),
    Draining,
    Unavailable,
}

#[derive(Serialize)]
struct Fields {
    errors: Vec<FieldError>,
}

#[derive(Serialize)]
struct Envelope {
    error: Body,
}

#[derive(Serialize)]
struct Body {
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    slots_total: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    slots_busy: Option<u32>,
}

impl WorkerError {
    /// Status and stable code; a refusal by fields has its own shape and no code.
    fn kind(&self) -> (u16, &'static str) {
        match self {
            Self::Fields(_) => (400, "VALIDATION_ERROR"),
            Self::Malformed(_) => (400, "MALFORMED_JSON"),
            Self::Header(_) => (400, "INVALID_HEADER"),
            Self::Unauthorized => (401, "UNAUTHORIZED"),
            Self::NotFound => (404, "NOT_FOUND"),
            Self::MethodNotAllowed => (405, "METHOD_NOT_ALLOWED"),
            Self::TooSlow => (408, "BODY_TIMEOUT"),
            Self::Duplicate => (409, "DUPLICATE_JOB_ID"),
            Self::TooLarge(_) => (413, "PAYLOAD_TOO_LARGE"),
            Self::NotJson => (415, "UNSUPPORTED_MEDIA_TYPE"),
            Self::Mistyped(_) => (422, "INVALID_BODY"),
            Self::Busy(_) => (503, "ALL_SLOTS_BUSY"),
            Self::Draining => (503, "SHUTTING_DOWN"),
            Self::Unavailable => (503, "ENGINE_UNAVAILABLE"),
        }
    }

    /// The code, as metrics count it.
    pub fn code(&self) -> &'static str {
        self.kind().1
    }

    fn message(&self) -> String {
        let words = match self {
            Self::Fields(_) => "the request breaks rules of its fields",
            Self::Malformed(words)
            | Self::Mistyped(words)
            | Self::Header(words)
            | Self::TooLarge(words) => words,
            Self::NotJson => "the content type must be application/json",
            Self::TooSlow => "the request's body did not arrive in time",
            Self::Unauthorized => "a bearer token is wanted in Authorization",
            Self::NotFound => "no such path",
            Self::MethodNotAllowed => "method not allowed",
            Self::Duplicate => "a job with this job_id is running or waiting",
            Self::Busy(_) => "all slots are busy and the queue is full; try again later",
            Self::Draining => "the worker is shutting down",
            Self::Unavailable => "the engine does not take work",
        };
        words.to_owned()
    }
}

impl IntoResponse for WorkerError {
    fn into_response(self) -> Response {
        let (status, code) = self.kind();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let message = self.message();
        let load = match &self {
            Self::Busy(load) => Some(*load),
            _ => None,
        };
        let mut response = match self {
            Self::Fields(errors) => (status, Json(Fields { errors })).into_response(),
            _ => {
                let (slots_total, slots_busy) =
                    (load.map(|load| load.slots_total), load.map(|load| load.slots_busy));
                let error = Body { code, message, slots_total, slots_busy };
                (status, Json(Envelope { error })).into_response()
            }
        };
        let headers = response.headers_mut();
        if load.is_some() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<JobRefusal> for WorkerError {
    fn from(refusal: JobRefusal) -> Self {
        let of_prompt = |constraint, message| {
            Self::Fields(vec![FieldError { field: "prompt", constraint, message, value: None }])
        };
        match refusal {
            JobRefusal::Busy(load) => Self::Busy(load),
            JobRefusal::Duplicate => Self::Duplicate,
            JobRefusal::Draining => Self::Draining,
            JobRefusal::Unavailable => Self::Unavailable,
            refusal @ JobRefusal::ContextLength { .. } => {
                of_prompt("context_length", refusal.to_string())
            }
            refusal @ JobRefusal::Prompt(_) => of_prompt("encodable", refusal.to_string()),
        }
    }
}

impl From<Fault> for WorkerError {
    /// Of a body that could not be read.
    fn from(fault: Fault) -> Self {
        match fault.status {
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge(fault.message),
            StatusCode::REQUEST_TIMEOUT => Self::TooSlow,
            _ => Self::Malformed(fault.message),
        }
    }
}
