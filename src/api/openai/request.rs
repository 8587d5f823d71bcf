//! The fields of a chat completion.
//!
//! Never ignores a field: what is not served is refused by its name, unless it says what would
//! happen without it. Ranges are the session service's. Source: the OpenAI API reference; the
//! fields that are ours or other servers' are in docs/spec/marketplace-api.md section 6.

use serde_json::{Map, Value};

use crate::api::error::Fault;
use crate::api::fields::{flag, present, required_text, whole};
use crate::api::prompt::{self, PromptContext};
use crate::api::sampling;
use crate::session::{Credential, Prompt, PromptInput, PromptRequest, SamplingInput, Turn};
use crate::units::JobId;

/// Tokens of an answer where the client sets no bound. A hold on the deposit stands for all of
/// them while the answer runs, so "as many as fit" would let one request take a whole deposit.
const MAX_TOKENS_DEFAULT: u64 = 1024;

/// Fields that are read.
const SERVED: [&str; 26] = [
    "chain_id",
    "frequency_penalty",
    "ignore_eos",
    "job_id",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "min_p",
    "model",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "safety_identifier",
    "seed",
    "session_id",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_logprobs",
    "top_p",
    "user",
    "user_nonce",
];

/// Fields of which only this value is served, which says what happens without them.
fn only_value(name: &str) -> Option<fn(&Value) -> bool> {
    let is_empty = |value: &Value| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    Some(match name {
        "store" => |value| value == &Value::Bool(false),
        "parallel_tool_calls" => Value::is_boolean,
        "functions" | "metadata" | "tools" => is_empty,
        "function_call" | "tool_choice" => |value| value == "none" || value == "auto",
        "modalities" => |value| value == &serde_json::json!(["text"]),
        "response_format" => |value| value == &serde_json::json!({"type": "text"}),
        "service_tier" => |value| value == "auto" || value == "default",
        _ => return None,
    })
}

/// Who pays, as far as it is known without the body.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Payer {
    /// Whether the node serves without pay.
    pub is_free: bool,
    /// The job, where the body names none.
    pub job: Option<JobId>,
}

/// How the answer is wanted.
pub(super) enum Form {
    Stream {
        /// A last chunk tells the counts.
        is_usage_wanted: bool,
    },
    Whole,
}

/// A conversation as asked for.
pub(super) struct ChatRequest {
    pub prompt: PromptRequest,
    pub form: Form,
}

/// Reads a request's fields.
///
/// # Errors
/// A fault that names the first field that is wrong or not served.
pub(super) fn parse(map: &Map<String, Value>, payer: Payer) -> Result<ChatRequest, Fault> {
    check_names(map)?;
    let context =
        PromptContext { is_free: payer.is_free, job: payer.job, ..PromptContext::default() };
    // OpenAI's default, not the marketplace's.
    let default = SamplingInput { temperature: 1.0, ..SamplingInput::default() };
    let prompt = PromptRequest {
        job: prompt::job(map, &context)?,
        credential: Credential::JobNumber,
        chain_id: prompt::chain_id(map)?,
        model: required_text(map, "model")?,
        input: PromptInput::Complete(Prompt::Chat(messages(map)?)),
        max_tokens: max_tokens(map)?,
        sampling: sampling::parse(map, default)?,
        user_nonce: prompt::user_nonce(map)?,
    };
    Ok(ChatRequest { prompt, form: form(map)? })
}

/// Refuses what is not served. `null` is the same as leaving a field out.
fn check_names(map: &Map<String, Value>) -> Result<(), Fault> {
    for (name, value) in map {
        let is_served = match (only_value(name), name.as_str()) {
            (None, "n") => value.is_null() || value == 1,
            (None, "user" | "safety_identifier") => value.is_null() || value.is_string(),
            (None, name) if SERVED.contains(&name) => true,
            (None, _) => return Err(Fault::field(name, format!("unknown field: {name}"))),
            (Some(is_default), _) => value.is_null() || is_default(value),
        };
        if !is_served {
            let message = format!("this value of {name} is not served here; leave it out");
            return Err(Fault::field(name, message));
        }
    }
    Ok(())
}

fn messages(map: &Map<String, Value>) -> Result<Vec<Turn>, Fault> {
    let wrong = |message: &str| Fault::field("messages", message);
    let list = match present(map, "messages") {
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(_) => return Err(wrong("messages must be a list of at least one message")),
        None => return Err(wrong("messages is required")),
    };
    let turns = list.iter().enumerate().map(|(at, item)| message(at, item));
    let turns: Vec<Turn> = turns.collect::<Result<_, _>>()?;
    if turns.last().is_some_and(|turn| turn.content.is_empty()) {
        return Err(wrong("the last message must not be empty"));
    }
    Ok(turns)
}

fn message(at: usize, item: &Value) -> Result<Turn, Fault> {
    let place = |name: &str| format!("messages[{at}].{name}");
    let Some(map) = item.as_object() else {
        let message = format!("messages[{at}] must be an object of role and content");
        return Err(Fault::field(&format!("messages[{at}]"), message));
    };
    for (name, value) in map {
        let is_nothing = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if !["role", "content"].contains(&name.as_str()) && !is_nothing {
            let message = format!("{} is not served here", place(name));
            return Err(Fault::field(&place(name), message));
        }
    }
    let role = match map.get("role").and_then(Value::as_str) {
        Some(role @ ("system" | "user" | "assistant")) => role.to_owned(),
        _ => {
            let message = format!("{} must be system, user or assistant", place("role"));
            return Err(Fault::field(&place("role"), message));
        }
    };
    let content = map.get("content").and_then(text_of).ok_or_else(|| {
        let name = place("content");
        let message = format!("{name} must be a string or a list of text parts");
        Fault::field(&name, message)
    })?;
    Ok(Turn { role, content })
}

/// A string, or the texts of a list of `{"type": "text", "text"}`, put together as they stand.
fn text_of(content: &Value) -> Option<String> {
    let part = |part: &Value| {
        let is_text = part.get("type").is_some_and(|kind| kind == "text");
        let is_whole = part.as_object().is_some_and(|map| map.len() == 2);
        part.get("text").and_then(Value::as_str).filter(|_| is_text && is_whole).map(str::to_owned)
    };
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) if !parts.is_empty() => parts.iter().map(part).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            None
        }
    }
}

fn max_tokens(map: &Map<String, Value>) -> Result<u64, Fault> {
    let old = whole(map, "max_tokens")?;
    let new = whole(map, "max_completion_tokens")?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message = "max_tokens and max_completion_tokens are one bound; send one of them";
            Err(Fault::field("max_completion_tokens", message))
        }
        (old, new) => Ok(new.or(old).unwrap_or(MAX_TOKENS_DEFAULT)),
    }
}

fn form(map: &Map<String, Value>) -> Result<Form, Fault> {
    let is_streamed = flag(map, "stream")?.unwrap_or(false);
    let Some(options) = present(map, "stream_options") else {
        return Ok(if is_streamed { Form::Stream { is_usage_wanted: false } } else { Form::Whole });
    };
    let wrong = |message: &str| Fault::field("stream_options", message);
    if !is_streamed {
        return Err(wrong("stream_options is for streams: send stream: true"));
    }
    let options = options.as_object().ok_or_else(|| wrong("stream_options must be an object"))?;
    for (name, value) in options {
        let is_served = match name.as_str() {
            "include_usage" => true,
            "include_obfuscation" => value.is_null() || value == &Value::Bool(false),
            _ => false,
        };
        if !is_served {
            let name = format!("stream_options.{name}");
            return Err(Fault::field(&name, format!("{name} is not served here")));
        }
    }
    let is_usage_wanted = flag(options, "include_usage")?.unwrap_or(false);
    Ok(Form::Stream { is_usage_wanted })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn with(extra: Value) -> Map<String, Value> {
        let turns = json!([{"role": "user", "content": "hi"}]);
        let mut fields = json!({"model": "m", "messages": turns, "job_id": 7});
        let (fields, extra) = (fields.as_object_mut().unwrap(), extra.as_object().unwrap());
        fields.extend(extra.clone());
        fields.clone()
    }

    fn parsed(extra: Value) -> ChatRequest {
        let shown = extra.to_string();
        parse(&with(extra), Payer::default()).unwrap_or_else(|fault| panic!("{shown}: {fault:?}"))
    }

    /// The field that is refused.
    fn refused(extra: Value) -> String {
        let shown = extra.to_string();
        match parse(&with(extra), Payer::default()) {
            Err(fault) => fault.details["field"].as_str().unwrap().to_owned(),
            Ok(_) => panic!("not refused: {shown}"),
        }
    }

    fn turns(messages: Value) -> Vec<(String, String)> {
        match parsed(json!({ "messages": messages })).prompt.input {
            PromptInput::Complete(Prompt::Chat(turns)) => {
                turns.into_iter().map(|turn| (turn.role, turn.content)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_field_that_is_not_served_is_refused_by_its_own_name() {
        for (name, value) in [
            ("best_of", json!(1)),
            ("prompt", json!("hi")),
            ("jobId", json!(7)),
            ("n", json!(2)),
            ("n", json!(0)),
            ("user", json!(7)),
            ("logprobs", json!(2)),
            ("top_logprobs", json!(1)),
            ("frequency_penalty", json!("much")),
            ("logit_bias", json!({"Paris": -100})),
            ("logit_bias", json!({"7": "much"})),
            ("logit_bias", json!([7])),
            ("tools", json!([{"type": "function"}])),
            ("tool_choice", json!("required")),
            ("response_format", json!({"type": "json_object"})),
            ("modalities", json!(["text", "audio"])),
            ("store", json!(true)),
            ("service_tier", json!("priority")),
            ("ignore_eos", json!(1)),
            ("stream_options", json!({"include_usage": true})),
        ] {
            assert_eq!(refused(json!({ name: value })), name, "{value}");
        }
        let options = json!({"stream": true, "stream_options": {"chunk": 1}});
        assert_eq!(refused(options), "stream_options.chunk");
    }

    #[test]
    fn what_says_what_happens_anyway_is_accepted_and_so_is_null() {
        let plain = parsed(json!({})).prompt;
        for extra in [
            json!({"n": 1, "user": "u-1", "logprobs": false, "top_logprobs": 0}),
            json!({"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}}),
            json!({"tools": [], "tool_choice": "none", "parallel_tool_calls": true}),
            json!({"response_format": {"type": "text"}, "modalities": ["text"]}),
            json!({"store": false, "metadata": {}, "service_tier": "auto"}),
            json!({"n": null, "logprobs": null, "stop": null, "seed": null, "max_tokens": null}),
            json!({"tools": null, "stream": null, "stream_options": null, "temperature": null}),
        ] {
            let prompt = parsed(extra).prompt;
            assert_eq!(prompt.sampling, plain.sampling);
            assert_eq!((prompt.max_tokens, prompt.input), (1024, plain.input.clone()));
        }
        assert_eq!(plain.sampling.temperature, 1.0, "OpenAI's default");
    }

    #[test]
    fn every_served_field_reaches_the_request() {
        let ChatRequest { prompt, form } = parsed(json!({
            "max_completion_tokens": 9, "temperature": 0.5, "top_p": 0.25, "top_k": 3,
            "min_p": 0.125, "repetition_penalty": 1.5, "seed": 4, "stop": "END",
            "frequency_penalty": 0.75, "presence_penalty": -2, "logprobs": true,
            "top_logprobs": 5, "logit_bias": {"7": -100, "12": 0.5},
            "ignore_eos": true, "chain_id": 31337, "stream": true,
            "stream_options": {"include_usage": true},
        }));
        let expected = SamplingInput {
            temperature: 0.5,
            top_k: 3,
            top_p: 0.25,
            min_p: 0.125,
            repetition_penalty: 1.5,
            frequency_penalty: 0.75,
            presence_penalty: -2.0,
            logit_bias: BTreeMap::from([(7, -100.0), (12, 0.5)]),
            logprobs: Some(5),
            seed: Some(4),
            stop: vec!["END".to_owned()],
            ignore_eos: true,
        };
        assert_eq!(prompt.sampling, expected);
        let found = (prompt.job, prompt.max_tokens, prompt.chain_id, prompt.model.as_str());
        assert_eq!(found, (JobId::new(7), 9, Some(31_337), "m"));
        assert!(matches!(form, Form::Stream { is_usage_wanted: true }));
        assert!(matches!(parsed(json!({})).form, Form::Whole));
        let plain = parsed(json!({"stream": true})).form;
        assert!(matches!(plain, Form::Stream { is_usage_wanted: false }));
    }

    #[test]
    fn a_bound_has_two_names_and_one_value() {
        assert_eq!(parsed(json!({"max_tokens": 5})).prompt.max_tokens, 5);
        let both = |old, new| json!({"max_tokens": old, "max_completion_tokens": new});
        assert_eq!(parsed(both(5, 5)).prompt.max_tokens, 5);
        assert_eq!(refused(both(5, 6)), "max_completion_tokens");
        assert_eq!(refused(json!({"max_tokens": -1})), "max_tokens");
    }

    #[test]
    fn a_message_is_a_role_and_a_text_and_nothing_else() {
        let pair = |role: &str, content: &str| (role.to_owned(), content.to_owned());
        let parts = json!([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]);
        let list = json!([
            {"role": "system", "content": ""},
            {"role": "assistant", "content": "x", "refusal": null, "tool_calls": []},
            {"role": "user", "content": parts},
        ]);
        assert_eq!(turns(list), [pair("system", ""), pair("assistant", "x"), pair("user", "a b")]);
        let image = json!([{"type": "image_url", "image_url": {"url": "x"}}]);
        for (messages, field) in [
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0].role"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": image}]), "messages[0].content"),
            (json!([{"role": "user", "content": []}]), "messages[0].content"),
            (json!([{"role": "user", "content": "x", "name": "n"}]), "messages[0].name"),
            (json!([{"role": "user", "content": ""}]), "messages"),
        ] {
            let shown = messages.to_string();
            assert_eq!(refused(json!({ "messages": messages })), field, "{shown}");
        }
    }

    #[test]
    fn the_bodys_job_wins_over_the_callers() {
        let payer = Payer { is_free: false, job: JobId::new(9) };
        let mut fields = with(json!({}));
        let job = |fields: &Map<String, Value>| {
            parse(fields, payer).map(|request| request.prompt.job).unwrap()
        };
        assert_eq!(job(&fields), JobId::new(7));
        fields.remove("job_id");
        assert_eq!(job(&fields), JobId::new(9));
        fields.insert("session_id".to_owned(), json!("my-chat"));
        assert!(parse(&fields, payer).is_err());
        let free = Payer { is_free: true, job: None };
        assert!(parse(&fields, free).is_ok_and(|request| request.prompt.job.is_none()));
    }
}
