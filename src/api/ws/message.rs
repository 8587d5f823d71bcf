//! Messages of WebSocket clients, read; and the shapes that answer them.
//!
//! Never decides: it says what was asked, or why it cannot be understood.

use secrecy::SecretString;
use serde_json::{Map, Value, json};

use crate::api::error::{Fault, object};
use crate::api::fields::present;
use crate::api::prompt::{self, ParsedPrompt, PromptContext};
use crate::session::{Notice, Refusal};
use crate::units::JobId;

/// A message that asks for something.
pub(super) enum Inbound {
    /// `session_init`: from now on this connection speaks for the job.
    Init(Box<Init>),
    /// `prompt` or `inference`.
    Prompt(Box<ParsedPrompt>),
    /// `stream_cancel`.
    Cancel,
    /// `ping`.
    Ping,
    /// `pong`, or anything else that wants no answer.
    Nothing,
}

/// `session_init`.
pub(super) struct Init {
    pub job: Option<JobId>,
    /// The session's name as the client sent it, to be echoed unchanged.
    pub session_id: Value,
    /// The same, as later messages may repeat it.
    pub label: Option<String>,
    pub chain_id: Option<u64>,
    pub token: Option<SecretString>,
}

/// A message and the `id` under which it is to be answered.
pub(super) struct Envelope {
    pub id: Option<Value>,
    pub content: Result<Inbound, Fault>,
}

/// Reads a message.
pub(super) fn read(bytes: &[u8], context: &PromptContext) -> Envelope {
    let map = match object(bytes) {
        Ok(map) => map,
        Err(fault) => return Envelope { id: None, content: Err(fault) },
    };
    Envelope { id: present(&map, "id").cloned(), content: content(map, context) }
}

fn content(map: Map<String, Value>, context: &PromptContext) -> Result<Inbound, Fault> {
    let kind = present(&map, "type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "session_init" => Ok(Inbound::Init(Box::new(init(&map, context)?))),
        "prompt" => {
            let context =
                PromptContext { is_conversation: context.job.is_some(), ..context.clone() };
            let parsed = prompt::parse(&nested(map), &context)?;
            Ok(Inbound::Prompt(Box::new(parsed)))
        }
        "inference" => {
            let parsed = prompt::parse(&nested(map), context)?;
            Ok(Inbound::Prompt(Box::new(parsed)))
        }
        "stream_cancel" => Ok(Inbound::Cancel),
        "ping" => Ok(Inbound::Ping),
        "pong" => Ok(Inbound::Nothing),
        kind if kind.starts_with("encrypted_") => {
            let message = "encrypted sessions are not supported by this node";
            Err(Fault::new(axum::http::StatusCode::BAD_REQUEST, "unsupported", message))
        }
        "" => Err(Fault::invalid_request("the message has no type")),
        kind => {
            let shown: String = kind.chars().take(64).collect();
            Err(Fault::invalid_request(format!("unknown message type {shown:?}")))
        }
    }
}

/// The fields of a message's `request` laid over those that lie flat beside it.
fn nested(mut map: Map<String, Value>) -> Map<String, Value> {
    if let Some(Value::Object(request)) = map.remove("request") {
        map.extend(request.into_iter().filter(|(_, value)| !value.is_null()));
    }
    map
}

fn init(map: &Map<String, Value>, context: &PromptContext) -> Result<Init, Refusal> {
    // Whatever an earlier init said, this one must name its job by itself.
    let own = PromptContext { is_free: context.is_free, ..PromptContext::default() };
    let job = prompt::job(map, &own)?;
    if job.is_none() && !context.is_free {
        return Err(Refusal::invalid("session_id", "session_init needs the session's number"));
    }
    let named = present(map, "session_id").or_else(|| present(map, "sessionId"));
    let session_id = named.cloned().unwrap_or_else(|| job.map(|job| job.to_string()).into());
    let token = present(map, "token").and_then(Value::as_str);
    Ok(Init {
        job,
        session_id,
        label: prompt::label(map),
        chain_id: prompt::chain_id(map)?,
        token: token.map(|token| token.to_owned().into()),
    })
}

/// `error`.
pub(super) fn error(fault: &Fault) -> Map<String, Value> {
    let mut map = kind("error");
    // The first level too: the 2026 client reads an over-long prompt's numbers there.
    if let Value::Object(details) = &fault.details {
        map.extend(details.clone());
    }
    map.insert("code".into(), fault.socket_code().into());
    map.insert("error_type".into(), fault.code.into());
    map.insert("message".into(), fault.message.clone().into());
    map.insert("details".into(), fault.details.clone());
    map
}

/// A message of this type, still empty.
pub(super) fn kind(kind: &str) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("type".into(), kind.into());
    map
}

/// News of settlement.
pub(super) fn notice(notice: &Notice) -> Map<String, Value> {
    let value = match notice {
        Notice::ClaimIncluded { job, tokens, tx } => json!({
            "type": "checkpoint_submitted",
            "session_id": job.to_string(),
            "job_id": job.get(),
            "tokens": tokens.get(),
            "tx_hash": tx.to_string(),
        }),
        Notice::Completed { job } => json!({
            "type": "session_completed",
            "session_id": job.to_string(),
            "job_id": job.get(),
        }),
    };
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::PromptInput;

    fn read_json(value: &Value, context: &PromptContext) -> Envelope {
        read(value.to_string().as_bytes(), context)
    }

    fn prompt_of(value: &Value, context: &PromptContext) -> ParsedPrompt {
        match read_json(value, context).content {
            Ok(Inbound::Prompt(parsed)) => *parsed,
            Ok(_) | Err(_) => panic!("not a prompt: {value}"),
        }
    }

    #[test]
    fn fields_may_lie_flat_or_nested_and_nested_ones_win() {
        let context = PromptContext { job: JobId::new(7), ..PromptContext::default() };
        let nested = json!({"type": "prompt", "prompt": "flat", "jobId": "139",
            "request": {"model": "m", "prompt": "inner", "max_tokens": 9, "stream": true}});
        let parsed = prompt_of(&nested, &context);
        assert_eq!(parsed.request.input, PromptInput::Continue("inner".to_owned()));
        assert_eq!(parsed.request.job, JobId::new(139));
        let flat = json!({"type": "prompt", "prompt": "p", "model": "m", "max_tokens": 9});
        assert_eq!(prompt_of(&flat, &context).request.job, JobId::new(7));
    }

    #[test]
    fn the_first_generation_brings_no_conversation() {
        let context = PromptContext { job: JobId::new(7), ..PromptContext::default() };
        let message = json!({"type": "inference",
            "request": {"model": "m", "prompt": "p", "max_tokens": 9, "session_id": "8n"}});
        let parsed = prompt_of(&message, &context);
        assert_eq!(parsed.request.job, JobId::new(8));
        assert!(matches!(parsed.request.input, PromptInput::Complete(_)));
    }

    #[test]
    fn what_is_not_understood_says_why_and_keeps_its_id() {
        let context = PromptContext::default();
        let cases = [
            (json!({"id": 1}), "invalid_request"),
            (json!({"id": 1, "type": "dance"}), "invalid_request"),
            (json!({"id": 1, "type": 7}), "invalid_request"),
            (json!({"id": 1, "type": "encrypted_session_init"}), "unsupported"),
            (json!({"id": 1, "type": "session_init"}), "validation_error"),
            (json!({"id": 1, "type": "session_init", "session_id": "abc"}), "validation_error"),
            (json!({"id": 1, "type": "prompt"}), "validation_error"),
        ];
        for (message, code) in cases {
            let envelope = read_json(&message, &context);
            assert_eq!(envelope.id, Some(json!(1)), "{message}");
            assert_eq!(envelope.content.err().map(|fault| fault.code), Some(code), "{message}");
        }
        assert!(read(b"{", &context).content.is_err());
    }

    #[test]
    fn a_session_name_beside_a_job_is_echoed_as_it_came() {
        let message = json!({"type": "session_init", "session_id": "my-chat", "jobId": "139n"});
        let Ok(Inbound::Init(init)) = read_json(&message, &PromptContext::default()).content else {
            panic!("not an init");
        };
        assert_eq!(init.job, JobId::new(139));
        assert_eq!(init.session_id, json!("my-chat"));
    }
}
