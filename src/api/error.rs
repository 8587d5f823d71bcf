//! Errors as clients see them: one shape over REST, the same facts over WebSocket and in the shape
//! of the OpenAI API (`openai/error.rs`).
//!
//! Never shows internal detail: a refusal's own words, its stable code and what a client can act
//! on. Source of codes and fields: docs/spec/marketplace-api.md sections 2 and 3.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::session::Refusal;

/// Seconds after which a client that found all places taken may ask again. A place frees when a
/// short answer ends, which takes a few seconds on the slowest model we serve.
const RETRY_AFTER_SECONDS: u16 = 2;

/// What went wrong, before it is put into a protocol's words.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// What a client can act on; an object.
    pub details: Value,
}

impl Fault {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), details: json!({}) }
    }

    /// A body or message that is not what the protocol asks for.
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal error")
    }

    pub fn unavailable(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "service_unavailable", message)
    }

    /// A field that is missing, out of range or not served; `name` is the client's for it.
    pub fn field(name: &str, message: impl Into<String>) -> Self {
        let fault = Self::new(StatusCode::BAD_REQUEST, "validation_error", message);
        Self { details: json!({ "field": name }), ..fault }
    }

    /// The code as WebSocket clients know it.
    pub fn socket_code(&self) -> String {
        match self.code {
            "context_length" => "TOKEN_LIMIT_EXCEEDED".to_owned(),
            code => code.to_ascii_uppercase(),
        }
    }

    /// The answer over HTTP.
    pub fn into_http(self, request_id: &str) -> Response {
        let body = json!({
            "error_type": self.code,
            "message": self.message,
            "request_id": request_id,
            "details": self.details,
        });
        respond(self.status, &body, request_id)
    }
}

/// An error's body, with the headers that errors have in every shape.
pub(super) fn respond(status: StatusCode, body: &Value, request_id: &str) -> Response {
    let mut response = (status, axum::Json(body)).into_response();
    if status == StatusCode::TOO_MANY_REQUESTS {
        let seconds = HeaderValue::from(RETRY_AFTER_SECONDS);
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert("x-request-id", id);
    }
    response
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let code = refusal.code();
        let message = refusal.to_string();
        let (status, details) = match refusal {
            Refusal::Invalid { field, .. } => (400, json!({ "field": field })),
            Refusal::OtherChain { asked, ours } => {
                (400, json!({ "field": "chain_id", "asked": asked, "chain_id": ours }))
            }
            Refusal::ContextLength { prompt_tokens, context_window } => (
                400,
                json!({ "prompt_tokens": prompt_tokens, "context_window_size": context_window }),
            ),
            Refusal::ModelNotFound { model, available } => {
                (404, json!({ "model": model, "available_models": available }))
            }
            Refusal::SessionNotFound(job) => (404, json!({ "job_id": job.get() })),
            Refusal::ProofNotFound { job, seq } => {
                (404, json!({ "job_id": job.get(), "seq": seq.get() }))
            }
            Refusal::OtherHost(job) => (403, json!({ "job_id": job.get() })),
            Refusal::Unauthorized(_) => (401, json!({})),
            Refusal::SessionClosed(job) => (409, json!({ "job_id": job.get() })),
            Refusal::PaymentRequired { job, tokens_left } => {
                (402, json!({ "job_id": job.get(), "tokens_left": tokens_left.get() }))
            }
            Refusal::PriceTooLow { job, price_min } => {
                (402, json!({ "job_id": job.get(), "price_min": price_min.to_string() }))
            }
            Refusal::TokenNotAccepted { job, token } => {
                (402, json!({ "job_id": job.get(), "payment_token": token.to_string() }))
            }
            Refusal::Unfunded(job) => (402, json!({ "job_id": job.get() })),
            Refusal::OtherModel(job) => (404, json!({ "job_id": job.get() })),
            Refusal::RateUnset(job) => (409, json!({ "job_id": job.get() })),
            Refusal::Exposed(job) => {
                (429, json!({ "job_id": job.get(), "retry_after": RETRY_AFTER_SECONDS }))
            }
            Refusal::Paused(_) => (503, json!({})),
            Refusal::Busy => (429, json!({ "retry_after": RETRY_AFTER_SECONDS })),
            Refusal::Halted(job) => (500, json!({ "job_id": job.get() })),
            Refusal::Unavailable(_) => (503, json!({})),
            Refusal::Internal => (500, json!({})),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, code, message, details }
    }
}

/// A fault on its way to an HTTP client.
#[derive(Debug)]
pub(super) struct HttpError {
    fault: Fault,
    request_id: String,
}

impl HttpError {
    pub fn new(fault: impl Into<Fault>, request_id: &str) -> Self {
        Self { fault: fault.into(), request_id: request_id.to_owned() }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        self.fault.into_http(&self.request_id)
    }
}

/// A JSON object, or what it is instead.
///
/// # Errors
/// A fault that names the place but repeats nothing of the text: it may hold a prompt.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>, Fault> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Fault::invalid_request("a JSON object is expected")),
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let place = format!("malformed JSON at line {line}, column {column}");
            Err(Fault::invalid_request(place))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_json_is_named_by_place_and_never_repeated() {
        let fault = object(b"{\"prompt\": secret").unwrap_err();
        assert_eq!(fault.code, "invalid_request");
        assert!(!fault.message.contains("secret"), "{}", fault.message);
        assert!(object(b"[1]").is_err());
        assert!(object(b"\xff").is_err());
    }

    #[test]
    fn an_over_long_prompt_has_its_own_socket_code() {
        let refusal = Refusal::ContextLength { prompt_tokens: 9, context_window: 8 };
        let fault = Fault::from(refusal);
        assert_eq!(fault.socket_code(), "TOKEN_LIMIT_EXCEEDED");
        assert_eq!(fault.details, json!({"prompt_tokens": 9, "context_window_size": 8}));
        assert_eq!(Fault::from(Refusal::Busy).socket_code(), "RATE_LIMIT_EXCEEDED");
    }

    #[test]
    fn a_session_without_a_claim_rate_is_a_conflict_and_no_missing_model() {
        let job = crate::units::JobId::new(7).unwrap();
        let fault = Fault::from(Refusal::RateUnset(job));
        let found = (fault.status.as_u16(), fault.code, fault.socket_code());
        assert_eq!(found, (409, "rate_unset", "RATE_UNSET".to_owned()));
        assert_eq!(fault.details, json!({"job_id": 7}));
    }
}
