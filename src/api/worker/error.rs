//! Refusals over HTTP: two shapes, one for requests that break rules of fields, one for the rest.
//!
//! Never repeats a prompt, and never answers without a JSON body. Source of shapes and codes:
//! docs/spec/worker-protocol.md.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api::error::Fault;
use crate::jobs::JobRefusal;

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
pub(super) enum WireError {
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
    /// The worker does not take the job, for a reason that is not in its fields.
    Refused(JobRefusal),
    /// Another HTTP than 1.1.
    HttpVersion,
    /// A bug; the log says which.
    Internal,
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

impl WireError {
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
            Self::TooLarge(_) => (413, "PAYLOAD_TOO_LARGE"),
            Self::NotJson => (415, "UNSUPPORTED_MEDIA_TYPE"),
            Self::Mistyped(_) => (422, "INVALID_BODY"),
            Self::Internal => (500, "INTERNAL_ERROR"),
            Self::HttpVersion => (505, "HTTP_VERSION"),
            Self::Refused(refusal) => match refusal {
                JobRefusal::Duplicate => (409, "DUPLICATE_JOB_ID"),
                JobRefusal::Busy(_) => (503, "ALL_SLOTS_BUSY"),
                JobRefusal::Draining => (503, "SHUTTING_DOWN"),
                JobRefusal::Unavailable => (503, "ENGINE_UNAVAILABLE"),
                // Told as the field's fault.
                JobRefusal::ContextLength { .. } | JobRefusal::Prompt(_) => {
                    (400, "VALIDATION_ERROR")
                }
            },
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
            Self::Internal => "internal error",
            Self::HttpVersion => "the worker speaks HTTP/1.1",
            Self::Refused(refusal) => return refusal.to_string(),
        };
        words.to_owned()
    }
}

impl IntoResponse for WireError {
    fn into_response(self) -> Response {
        let (status, code) = self.kind();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let message = self.message();
        let load = match &self {
            Self::Refused(JobRefusal::Busy(load)) => Some(*load),
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

impl From<JobRefusal> for WireError {
    fn from(refusal: JobRefusal) -> Self {
        let of_prompt = |constraint, message| {
            Self::Fields(vec![FieldError { field: "prompt", constraint, message, value: None }])
        };
        match refusal {
            refusal @ JobRefusal::ContextLength { .. } => {
                of_prompt("context_length", refusal.to_string())
            }
            refusal @ JobRefusal::Prompt(_) => of_prompt("encodable", refusal.to_string()),
            refusal => Self::Refused(refusal),
        }
    }
}

impl From<Fault> for WireError {
    /// Of a body that could not be read.
    fn from(fault: Fault) -> Self {
        match fault.status {
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge(fault.message),
            StatusCode::REQUEST_TIMEOUT => Self::TooSlow,
            _ => Self::Malformed(fault.message),
        }
    }
}
