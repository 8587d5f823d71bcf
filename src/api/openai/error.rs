//! Errors in OpenAI's shape: `{"error": {message, type, param, code}}`.
//!
//! Never another code than the one REST answers, except for an over-long prompt, whose code
//! OpenAI's clients look for.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::api::error::{Fault, respond};

/// A fault on its way to an OpenAI client.
#[derive(Debug)]
pub(in crate::api) struct OpenAiError {
    fault: Fault,
    request_id: String,
}

impl OpenAiError {
    pub fn new(fault: Fault, request_id: &str) -> Self {
        Self { fault, request_id: request_id.to_owned() }
    }
}

impl IntoResponse for OpenAiError {
    fn into_response(self) -> Response {
        respond(self.fault.status, &body(&self.fault), &self.request_id)
    }
}

/// The body of an error, also when it comes in the middle of a stream.
pub(super) fn body(fault: &Fault) -> Value {
    json!({"error": {
        "message": fault.message,
        "type": kind(fault.status),
        "param": fault.details.get("field"),
        "code": code(fault.code),
    }})
}

/// What a client can do about it, in OpenAI's words.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::PAYMENT_REQUIRED => "insufficient_quota",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

fn code(code: &'static str) -> &'static str {
    match code {
        "context_length" => "context_length_exceeded",
        code => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Refusal;
    use crate::units::{JobId, TokenCount};

    #[test]
    fn every_error_has_the_four_fields_and_the_type_that_its_status_means() {
        let job = JobId::new(7).unwrap();
        let table = [
            (Refusal::invalid("stop", "no"), "invalid_request_error", json!("stop")),
            (Refusal::Unauthorized("no"), "authentication_error", Value::Null),
            (Refusal::OtherHost(job), "permission_error", Value::Null),
            (
                Refusal::PaymentRequired { job, tokens_left: TokenCount::ZERO },
                "insufficient_quota",
                Value::Null,
            ),
            (Refusal::Busy, "rate_limit_error", Value::Null),
            (Refusal::Internal, "server_error", Value::Null),
        ];
        for (refusal, kind, param) in table {
            let (code, message) = (refusal.code(), refusal.to_string());
            let expected = json!({"message": message, "type": kind, "param": param, "code": code});
            assert_eq!(body(&refusal.into())["error"], expected);
        }
        let long = Refusal::ContextLength { prompt_tokens: 9, context_window: 8 };
        assert_eq!(body(&long.into())["error"]["code"], "context_length_exceeded");
    }
}
