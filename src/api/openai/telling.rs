//! What an answer says in OpenAI's words: chunks of a stream, or one body.
//!
//! Never counts by itself. A frame becomes one chunk; what is the same in all chunks is written
//! once, so that a token costs one copy and the escaping of its text.

use serde_json::{Map, Value, json};

use super::error;
use crate::api::error::Fault;
use crate::api::outcome::{self, finish_reason};
use crate::api::sse::{DONE, Telling, data};
use crate::session::{Frame, ReplyEnd, ReplyInfo, TokenLogprobs, TurnEnd, Usage};
use crate::units::Millis;

/// What every piece of one answer repeats.
pub(super) struct About {
    pub info: ReplyInfo,
    pub request_id: String,
    /// Wall clock at the request's arrival.
    pub created: Millis,
    /// The node's chain; `None` in free mode.
    pub chain_id: Option<u64>,
}

impl About {
    fn map(&self, object: &str) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("id".into(), format!("chatcmpl-{}", self.request_id).into());
        map.insert("object".into(), object.into());
        map.insert("created".into(), (self.created.get() / 1_000).into());
        map.insert("model".into(), self.info.model.clone().into());
        map
    }

    /// How it ended in the marketplace's words, of which OpenAI knows two; an extension that
    /// other clients pass over.
    fn tally(&self, end: &ReplyEnd) -> Value {
        json!({
            "finish_reason": finish_reason(end.reason),
            "tokens_used": end.usage.completion_tokens,
            "job_id": self.info.job.map(crate::units::JobId::get),
            "chain_id": self.chain_id,
        })
    }

    /// The whole answer.
    pub fn whole(&self, frame: &Frame, end: &ReplyEnd) -> Map<String, Value> {
        let mut map = self.map("chat.completion");
        let text = format!("{}{}", frame.text, end.tail_text);
        let message = json!({"role": "assistant", "content": text, "refusal": null});
        let choice = json!({
            "index": 0,
            "message": message,
            "logprobs": logprobs(frame.logprobs()),
            "finish_reason": openai_reason(end.reason),
        });
        map.insert("choices".into(), json!([choice]));
        map.insert("usage".into(), usage(end.usage));
        map.insert("tally".into(), self.tally(end));
        map
    }
}

/// OpenAI knows answers that the model ended and answers that something else cut short.
const fn openai_reason(end: TurnEnd) -> &'static str {
    match end {
        TurnEnd::Stop => "stop",
        TurnEnd::Length | TurnEnd::DepositExhausted | TurnEnd::Cancelled | TurnEnd::Error => {
            "length"
        }
    }
}

/// `logprobs` of a choice; null where the request asked for none.
fn logprobs(tokens: &[TokenLogprobs]) -> Value {
    let told = outcome::logprobs(tokens);
    told.map_or(Value::Null, |content| json!({"content": content, "refusal": null}))
}

/// `usage` with the prompt's tokens that were not read again, in OpenAI's place for them.
fn usage(counts: Usage) -> Value {
    let mut usage = outcome::usage(counts);
    usage["prompt_tokens_details"] = json!({"cached_tokens": counts.cached_tokens});
    usage
}

/// A streamed answer.
pub(super) struct Chunks {
    about: About,
    is_usage_wanted: bool,
    has_spoken: bool,
    /// A chunk up to its text.
    before: String,
    /// From there to its probabilities.
    between: &'static str,
    /// And from there on.
    after: String,
}

impl Chunks {
    pub fn new(about: About, is_usage_wanted: bool) -> Self {
        let fields = Value::Object(about.map("chat.completion.chunk")).to_string();
        let fields = fields.strip_suffix('}').unwrap_or_default();
        let usage = if is_usage_wanted { r#","usage":null"# } else { "" };
        let before = format!(r#"data: {fields},"choices":[{{"index":0,"delta":{{"content":"#);
        let between = r#"},"logprobs":"#;
        let after = format!(r#","finish_reason":null}}]{usage}}}"#) + "\n\n";
        Self { about, is_usage_wanted, has_spoken: false, before, between, after }
    }

    fn text(&mut self, text: &str, tokens: &[TokenLogprobs], to: &mut String) {
        self.role(to);
        to.push_str(&self.before);
        // A text can always be written as JSON.
        to.push_str(&serde_json::to_string(text).unwrap_or_default());
        to.push_str(self.between);
        match tokens {
            [] => to.push_str("null"),
            tokens => to.push_str(&logprobs(tokens).to_string()),
        }
        to.push_str(&self.after);
    }

    /// The first chunk tells who speaks. It goes out with the first text, in the same write.
    fn role(&mut self, to: &mut String) {
        if !std::mem::replace(&mut self.has_spoken, true) {
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            data(&self.chunk(delta, &[], Value::Null), to);
        }
    }

    fn chunk(&self, delta: Value, tokens: &[TokenLogprobs], finish: Value) -> Value {
        let choice = json!({
            "index": 0,
            "delta": delta,
            "logprobs": logprobs(tokens),
            "finish_reason": finish,
        });
        let mut map = self.about.map("chat.completion.chunk");
        map.insert("choices".into(), json!([choice]));
        if self.is_usage_wanted {
            map.insert("usage".into(), Value::Null);
        }
        Value::Object(map)
    }
}

impl Telling for Chunks {
    fn frame(&mut self, frame: &Frame, _: Usage, to: &mut String) {
        self.text(&frame.text, frame.logprobs(), to);
    }

    fn end(&mut self, end: &ReplyEnd, to: &mut String) {
        if end.tail_text.is_empty() {
            self.role(to);
        } else {
            self.text(&end.tail_text, &[], to);
        }
        let has_failed = end.reason == TurnEnd::Error;
        if !has_failed {
            let mut last = self.chunk(json!({}), &[], openai_reason(end.reason).into());
            last["tally"] = self.about.tally(end);
            data(&last, to);
        }
        if self.is_usage_wanted {
            let mut map = self.about.map("chat.completion.chunk");
            map.insert("choices".into(), json!([]));
            map.insert("usage".into(), usage(end.usage));
            data(&Value::Object(map), to);
        }
        // Last, because clients stop at an error; what they pay for stands before it.
        if has_failed {
            let fault = Fault { message: "the generation failed".to_owned(), ..Fault::internal() };
            data(&error::body(&fault), to);
        }
        to.push_str(DONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Logprob;

    fn chunks(is_usage_wanted: bool) -> Chunks {
        let info = ReplyInfo { job: None, model: "m\"\\é".to_owned(), usage: Usage::default() };
        let created = Millis::new(7_999);
        let request_id = "r-\"1\"".to_owned();
        Chunks::new(About { info, request_id, created, chain_id: None }, is_usage_wanted)
    }

    fn events(text: &str) -> Vec<Value> {
        let events = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: "));
        let events = events.map(Option::unwrap).filter(|event| *event != "[DONE]");
        events.map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    fn likely(bytes: &[u8]) -> TokenLogprobs {
        let one = |bytes: &[u8], logprob| Logprob { id: 1, bytes: bytes.to_vec(), logprob };
        TokenLogprobs { chosen: one(bytes, -0.25), top: vec![one(b"a", -0.125), one(bytes, -0.25)] }
    }

    #[test]
    fn probabilities_have_the_tokens_bytes_and_their_text_where_it_is_text() {
        let expected = json!({"refusal": null, "content": [{
            "token": "\u{fffd}", "logprob": -0.25, "bytes": [0xc3],
            "top_logprobs": [
                {"token": "a", "logprob": -0.125, "bytes": [0x61]},
                {"token": "\u{fffd}", "logprob": -0.25, "bytes": [0xc3]},
            ],
        }]});
        assert_eq!(logprobs(&[likely(b"\xc3")]), expected);
    }

    #[test]
    fn a_chunk_written_in_halves_is_the_chunk_written_at_once_whatever_the_text() {
        for is_usage_wanted in [false, true] {
            for text in ["", " a", "\"\\\n\r\u{2028}\u{0}\u{7f}", "é漢👩‍👩‍👧", "data: [DONE]\n\n"]
            {
                for tokens in [vec![], vec![likely(text.as_bytes())]] {
                    let mut chunks = chunks(is_usage_wanted);
                    let mut out = String::new();
                    chunks.text(text, &tokens, &mut out);
                    let delta = json!({"content": text});
                    let expected = chunks.chunk(delta, &tokens, Value::Null);
                    let found = events(&out);
                    assert_eq!(found[1..], [expected]);
                    assert_eq!(found[0]["choices"][0]["delta"]["role"], "assistant");
                    assert_eq!(found[0]["created"], 7);
                    assert_eq!(found[0]["id"], "chatcmpl-r-\"1\"");
                }
            }
        }
    }

    #[test]
    fn a_failed_answer_ends_in_an_error_and_has_no_reason_to_be_taken_as_whole() {
        let end = ReplyEnd {
            reason: TurnEnd::Error,
            tail_text: String::new(),
            usage: Usage { completion_tokens: 3, ..Usage::default() },
        };
        let mut out = String::new();
        chunks(true).end(&end, &mut out);
        assert!(out.ends_with(DONE));
        let found = events(&out);
        assert_eq!(found.len(), 3, "{out}");
        assert_eq!(found[1]["usage"]["completion_tokens"], 3);
        assert_eq!(found[2]["error"]["code"], "internal_error");
        assert!(!out.contains("\"finish_reason\":\""), "{out}");
    }
}
