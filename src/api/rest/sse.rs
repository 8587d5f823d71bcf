//! What a streamed answer says over REST.
//!
//! A data frame for each piece of text with running usage, a last one with the response's fields
//! (its `content` is empty: clients concatenate), then `[DONE]`. Never counts by itself.

use serde_json::{Map, Value};

use crate::api::outcome::{put_logprobs, summary, usage};
use crate::api::sse::{DONE, Telling, data};
use crate::session::{Frame, ReplyEnd, ReplyInfo, TurnEnd, Usage};

/// The REST API's words.
pub(super) struct Events {
    pub info: ReplyInfo,
    pub request_id: String,
    /// The node's chain; `None` in free mode.
    pub chain_id: Option<u64>,
}

impl Telling for Events {
    fn frame(&mut self, frame: &Frame, counts: Usage, to: &mut String) {
        let mut chunk = self.chunk(&frame.text, frame.token_count(), counts);
        put_logprobs(&mut chunk, frame.logprobs());
        data(&Value::Object(chunk), to);
    }

    fn end(&mut self, end: &ReplyEnd, to: &mut String) {
        if !end.tail_text.is_empty() {
            data(&Value::Object(self.chunk(&end.tail_text, 0, end.usage)), to);
        }
        let mut last = summary(&self.info, (end.reason, end.usage), self.chain_id);
        last.insert("content".into(), "".into());
        last.insert("request_id".into(), self.request_id.clone().into());
        if end.reason == TurnEnd::Error {
            last.insert("error_type".into(), "internal_error".into());
            last.insert("message".into(), "the generation failed".into());
        }
        data(&Value::Object(last), to);
        to.push_str(DONE);
    }
}

impl Events {
    fn chunk(&self, content: &str, tokens: u32, counts: Usage) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("model".into(), self.info.model.clone().into());
        map.insert("content".into(), content.into());
        map.insert("tokens".into(), tokens.into());
        map.insert("usage".into(), usage(counts));
        map.insert("request_id".into(), self.request_id.clone().into());
        map.insert("finish_reason".into(), Value::Null);
        map
    }
}
