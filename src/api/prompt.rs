//! The fields of a prompt, as both generations of marketplace clients send them.
//!
//! Never fills in what must be said (model, prompt, max_tokens) and never serves a session id
//! that is no number. Shared by REST and WebSocket, so that both refuse alike, and in its parts
//! by the OpenAI API; ranges are the session service's. Source: docs/spec/marketplace-api.md
//! sections 1 and 2.

use serde_json::{Map, Value};

use super::fields::{flag, present, required_text, whole};
use super::sampling;
use crate::session::{
    Credential, Prompt, PromptInput, PromptRequest, Refusal, SamplingInput, Turn,
};
use crate::units::{Hash32, JobId};

/// Longest request id taken over from a client; a longer one is replaced.
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Longest part of a session id that is logged.
const LABEL_CHARS_MAX: usize = 64;

/// What a connection knows before the message is read.
#[derive(Debug, Clone, Default)]
pub(super) struct PromptContext {
    /// Whether the node serves without pay: ids that are no numbers are ignored then.
    pub is_free: bool,
    /// The job of the last `session_init`, where the message names none.
    pub job: Option<JobId>,
    /// What that `session_init` called the session.
    pub label: Option<String>,
    /// The turns before this one are the node's to remember.
    pub is_conversation: bool,
}

/// A prompt as asked for.
#[derive(Debug)]
pub(super) struct ParsedPrompt {
    pub request: PromptRequest,
    /// Whether to stream, where the client says so.
    pub stream: Option<bool>,
    /// The client's own name for the request.
    pub request_id: Option<String>,
    /// The session id as received, shortened, for the log and for echoes.
    pub label: Option<String>,
}

/// Reads a prompt.
///
/// # Errors
/// [`Refusal::Invalid`] with the field's wire name.
pub(super) fn parse(
    map: &Map<String, Value>,
    context: &PromptContext,
) -> Result<ParsedPrompt, Refusal> {
    let model = required_text(map, "model")?;
    let prompt = required_text(map, "prompt")?;
    let max_tokens = whole(map, "max_tokens")?
        .ok_or_else(|| Refusal::invalid("max_tokens", "max_tokens is required"))?;
    let request = PromptRequest {
        job: job(map, context)?,
        credential: Credential::JobNumber,
        chain_id: chain_id(map)?,
        model,
        input: input(map, prompt, context)?,
        max_tokens,
        sampling: sampling::parse(map, SamplingInput::default())?,
        user_nonce: user_nonce(map)?,
    };
    let stream = flag(map, "stream")?;
    Ok(ParsedPrompt { request, stream, request_id: request_id(map), label: label(map) })
}

/// What the user gives to the seed: 32 bytes in hex.
///
/// # Errors
/// [`Refusal::Invalid`] for anything else.
pub(super) fn user_nonce(map: &Map<String, Value>) -> Result<Option<Hash32>, Refusal> {
    let wrong = || Refusal::invalid("user_nonce", "user_nonce must be 32 bytes in hex with 0x");
    match map.get("user_nonce") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_str().and_then(Hash32::parse).map(Some).ok_or_else(wrong),
    }
}

/// The job a message names, else the one its connection speaks for.
///
/// # Errors
/// [`Refusal::Invalid`] for an id that is no number, unless the node serves without pay.
pub(super) fn job(
    map: &Map<String, Value>,
    context: &PromptContext,
) -> Result<Option<JobId>, Refusal> {
    let fields = [
        ("job_id", "job_id"),
        ("jobId", "job_id"),
        ("session_id", "session_id"),
        ("sessionId", "session_id"),
    ];
    for (key, field) in fields {
        let Some(value) = present(map, key) else { continue };
        if let Some(job) = number_of(value) {
            return Ok(Some(job));
        }
        // A name that `session_init` gave together with a job's number is known here.
        let is_known = field == "session_id"
            && context.job.is_some()
            && text_of(value).is_some_and(|text| Some(text) == context.label);
        if context.is_free || is_known {
            continue;
        }
        let message = format!("{key} must be the session's number on chain, such as 139 or 139n");
        return Err(Refusal::invalid(field, message));
    }
    Ok(context.job)
}

/// The session's name as received, shortened.
pub(super) fn label(map: &Map<String, Value>) -> Option<String> {
    let keys = ["session_id", "sessionId", "job_id", "jobId"];
    keys.iter().find_map(|key| present(map, key)).and_then(text_of)
}

/// The chain a message names.
///
/// # Errors
/// [`Refusal::Invalid`] for what is no number.
pub(super) fn chain_id(map: &Map<String, Value>) -> Result<Option<u64>, Refusal> {
    let Some(value) = present(map, "chain_id").or_else(|| present(map, "chainId")) else {
        return Ok(None);
    };
    let number = match value {
        Value::String(text) => text.trim().trim_end_matches('n').parse().ok(),
        Value::Number(number) => number.as_u64(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    number.map(Some).ok_or_else(|| Refusal::invalid("chain_id", "chain_id must be a number"))
}

/// A client's own name for its request, where it is fit to be echoed in a header.
pub(super) fn request_id(map: &Map<String, Value>) -> Option<String> {
    present(map, "request_id")
        .and_then(Value::as_str)
        .filter(|id| is_request_id(id))
        .map(Into::into)
}

/// Whether a client's request id is taken over.
pub(super) fn is_request_id(id: &str) -> bool {
    (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic())
}

fn number_of(value: &Value) -> Option<JobId> {
    match value {
        Value::Number(number) => number.as_u64().and_then(JobId::new),
        Value::String(text) => JobId::parse(text).ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.chars().take(LABEL_CHARS_MAX).collect()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn input(
    map: &Map<String, Value>,
    prompt: String,
    context: &PromptContext,
) -> Result<PromptInput, Refusal> {
    let turns = turns(map)?;
    if flag(map, "raw")?.unwrap_or(false) {
        if turns.is_some_and(|turns| !turns.is_empty()) {
            let message = "a raw prompt brings its own context: leave conversation_context out";
            return Err(Refusal::invalid("conversation_context", message));
        }
        return Ok(PromptInput::Complete(Prompt::Raw(prompt)));
    }
    let keeps_history = flag(map, "history")?.unwrap_or(true);
    if turns.is_none() && context.is_conversation && keeps_history {
        return Ok(PromptInput::Continue(prompt));
    }
    let mut turns = turns.unwrap_or_default();
    turns.push(Turn { role: "user".to_owned(), content: prompt });
    Ok(PromptInput::Complete(Prompt::Chat(turns)))
}

/// The turns a client brings; `None` where it brings none, which differs from an empty list.
fn turns(map: &Map<String, Value>) -> Result<Option<Vec<Turn>>, Refusal> {
    let wrong = || {
        let message = "conversation_context must be a list of {role, content}, \
                       role being system, user or assistant";
        Refusal::invalid("conversation_context", message)
    };
    let Some(value) = present(map, "conversation_context") else { return Ok(None) };
    let list = value.as_array().ok_or_else(wrong)?;
    let turn = |item: &Value| {
        let role = item.get("role")?.as_str()?;
        let content = item.get("content")?.as_str()?;
        let is_known = ["system", "user", "assistant"].contains(&role);
        is_known.then(|| Turn { role: role.to_owned(), content: content.to_owned() })
    };
    list.iter().map(turn).collect::<Option<_>>().map(Some).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn with(extra: Value) -> Map<String, Value> {
        let mut fields = map(json!({"model": "m", "prompt": "hi", "max_tokens": 5}));
        fields.extend(map(extra));
        fields
    }

    fn parsed(extra: Value) -> ParsedPrompt {
        parse(&with(extra), &PromptContext::default()).unwrap()
    }

    /// The field that is refused.
    fn refused(fields: &Map<String, Value>) -> &'static str {
        match parse(fields, &PromptContext::default()) {
            Err(Refusal::Invalid { field, .. }) => field,
            other => panic!("not refused for a field: {other:?}"),
        }
    }

    #[test]
    fn every_spelling_of_a_job_means_the_same_and_job_id_wins() {
        let spellings = [
            json!({"job_id": 139}),
            json!({"jobId": "139"}),
            json!({"session_id": "139n"}),
            json!({"sessionId": 139}),
            json!({"job_id": "139n", "session_id": "some-name"}),
            json!({"job_id": null, "session_id": 139}),
            json!({"jobId": 139, "session_id": 7}),
        ];
        for spelling in spellings {
            assert_eq!(parsed(spelling.clone()).request.job, JobId::new(139), "{spelling}");
        }
    }

    #[test]
    fn a_session_id_that_is_no_number_is_refused_unless_the_node_is_free() {
        for bad in [json!("abc"), json!(""), json!(1.5), json!(-1), json!(0), json!([1])] {
            let fields = with(json!({ "session_id": bad }));
            assert_eq!(refused(&fields), "session_id", "{bad}");
            let free = PromptContext { is_free: true, ..PromptContext::default() };
            assert_eq!(parse(&fields, &free).unwrap().request.job, None, "{bad}");
        }
        assert_eq!(refused(&with(json!({"job_id": "abc", "session_id": 139}))), "job_id");
    }

    #[test]
    fn a_name_given_with_a_job_at_init_is_known_afterwards_and_no_other() {
        let context = PromptContext {
            job: JobId::new(139),
            label: Some("my-chat".to_owned()),
            ..PromptContext::default()
        };
        let named = with(json!({"session_id": "my-chat"}));
        assert_eq!(parse(&named, &context).unwrap().request.job, JobId::new(139));
        assert!(parse(&with(json!({"session_id": "other"})), &context).is_err());
    }

    #[test]
    fn what_is_missing_or_of_the_wrong_kind_is_named() {
        for key in ["model", "prompt", "max_tokens"] {
            let mut fields = with(json!({}));
            fields.remove(key);
            assert_eq!(refused(&fields), key);
        }
        let wrong = [
            ("model", json!("")),
            ("prompt", json!("")),
            ("prompt", json!(7)),
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(1.5)),
            ("temperature", json!("hot")),
            ("top_k", json!(-1)),
            ("seed", json!("x")),
            ("stop", json!([1])),
            ("stream", json!("yes")),
            ("chain_id", json!("main")),
            ("conversation_context", json!([{"role": "robot", "content": "x"}])),
        ];
        for (key, value) in wrong {
            assert_eq!(refused(&with(json!({ key: value }))), key);
        }
    }

    #[test]
    fn unknown_fields_are_ignored_and_defaults_are_the_specs() {
        let request = parsed(json!({"host_mode": {"x": 1}, "chainId": "31337"})).request;
        assert_eq!(request.sampling, SamplingInput::default());
        assert_eq!(request.chain_id, Some(31_337));
        assert_eq!(parsed(json!({"stop": "END"})).request.sampling.stop, ["END"]);
    }

    #[test]
    fn history_is_the_nodes_only_where_the_client_brings_none() {
        let conversation = PromptContext { is_conversation: true, ..PromptContext::default() };
        let input = |extra| parse(&with(extra), &conversation).unwrap().request.input;
        assert_eq!(input(json!({})), PromptInput::Continue("hi".to_owned()));
        let fresh = || Turn { role: "user".to_owned(), content: "hi".to_owned() };
        let alone = PromptInput::Complete(Prompt::Chat(vec![fresh()]));
        assert_eq!(input(json!({"conversation_context": []})), alone);
        assert_eq!(input(json!({"history": false})), alone);
        let raw = PromptInput::Complete(Prompt::Raw("hi".to_owned()));
        assert_eq!(input(json!({"raw": true})), raw);
        let before = Turn { role: "assistant".to_owned(), content: "a".to_owned() };
        let context = json!({"conversation_context": [{"role": "assistant", "content": "a"}]});
        let both = PromptInput::Complete(Prompt::Chat(vec![before, fresh()]));
        assert_eq!(input(context), both);
    }

    #[test]
    fn a_request_id_that_could_break_a_header_is_not_taken_over() {
        assert_eq!(parsed(json!({"request_id": "r-1"})).request_id.as_deref(), Some("r-1"));
        for bad in [json!("a\r\nb"), json!(""), json!(7), json!("x".repeat(129))] {
            assert_eq!(parsed(json!({ "request_id": bad })).request_id, None);
        }
    }
}
