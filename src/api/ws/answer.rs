//! One prompt of a connection, from arrival to its last message.
//!
//! Never counts: it shapes what the session service says.

use std::future::Future;
use std::pin::Pin;

use serde_json::{Map, Value};

use super::message::kind;
use crate::api::outcome::{Pace, finish_reason, put_logprobs, summary, usage};
use crate::session::{
    Frame, PromptRequest, Reply, ReplyEnd, ReplyEvent, ReplyInfo, TurnEnd, Usage,
};

/// A prompt that was understood and waits for its turn.
pub(super) struct Waiting {
    pub request: PromptRequest,
    pub is_streamed: bool,
    pub tags: Tags,
    pub pace: Pace,
}

/// What every message that answers a prompt repeats.
#[derive(Clone)]
pub(super) struct Tags {
    pub id: Option<Value>,
    pub request_id: Option<String>,
    /// The session as the client calls it.
    pub session_id: Value,
}

impl Tags {
    /// Adds the tags to a message.
    pub fn put(&self, mut map: Map<String, Value>) -> Map<String, Value> {
        if let Some(id) = &self.id {
            map.insert("id".into(), id.clone());
        }
        if let Some(request_id) = &self.request_id {
            map.insert("request_id".into(), request_id.clone().into());
        }
        map.insert("session_id".into(), self.session_id.clone());
        map
    }
}

/// What stands around an answer's own words.
pub(super) struct Framing {
    pub tags: Tags,
    /// The node's chain; `None` in free mode.
    pub chain_id: Option<u64>,
}

enum Source {
    Stream(Box<Reply>),
    Whole(Pin<Box<dyn Future<Output = (Frame, ReplyEnd)> + Send>>),
}

/// What happens next in an answer.
pub(super) enum Event {
    Frame(Frame),
    End(ReplyEnd),
    Whole(Frame, ReplyEnd),
}

/// A prompt that is being answered.
pub(super) struct Running {
    source: Source,
    info: ReplyInfo,
    tags: Tags,
    chain_id: Option<u64>,
    /// Whether a chunk was sent: clients honour `stream_end` only after one.
    has_spoken: bool,
    pub pace: Pace,
}

impl Running {
    pub fn new(reply: Reply, is_streamed: bool, framing: Framing, pace: Pace) -> Self {
        let Framing { tags, chain_id } = framing;
        let info = reply.info().clone();
        let source = if is_streamed {
            Source::Stream(Box::new(reply))
        } else {
            Source::Whole(Box::pin(reply.whole()))
        };
        Self { source, info, tags, chain_id, has_spoken: false, pace }
    }

    /// What every message of this answer repeats.
    pub const fn tags(&self) -> &Tags {
        &self.tags
    }

    /// Waits for what comes next. Cancel-safe.
    pub async fn next(&mut self) -> Event {
        match &mut self.source {
            Source::Stream(reply) => match reply.next().await {
                ReplyEvent::Frame(frame) => Event::Frame(frame),
                ReplyEvent::End(end) => Event::End(end),
            },
            Source::Whole(answer) => {
                let (frame, end) = answer.await;
                Event::Whole(frame, end)
            }
        }
    }

    /// `stream_chunk` of a frame.
    pub fn frame(&mut self, frame: &Frame) -> Map<String, Value> {
        let mut map = self.chunk(&frame.text, frame.token_count());
        put_logprobs(&mut map, frame.logprobs());
        map
    }

    fn chunk(&mut self, content: &str, tokens: u32) -> Map<String, Value> {
        self.has_spoken = true;
        let mut map = kind("stream_chunk");
        map.insert("content".into(), content.into());
        map.insert("tokens".into(), tokens.into());
        if let Source::Stream(reply) = &self.source {
            map.insert("usage".into(), usage(reply.usage()));
        }
        self.tags.put(map)
    }

    /// The messages that end a stream, in order.
    pub fn end(&mut self, end: &ReplyEnd) -> Vec<Map<String, Value>> {
        self.pace.ended(finish_reason(end.reason));
        let mut messages = Vec::new();
        if !end.tail_text.is_empty() || !self.has_spoken {
            messages.push(self.chunk(&end.tail_text, 0));
        }
        messages.push(self.closing("stream_end", end.reason, end.usage));
        messages
    }

    /// `response`, the answer to `stream: false`.
    pub fn whole(&mut self, frame: &Frame, end: &ReplyEnd) -> Map<String, Value> {
        self.pace.ended(finish_reason(end.reason));
        let mut map = self.closing("response", end.reason, end.usage);
        map.insert("content".into(), format!("{}{}", frame.text, end.tail_text).into());
        put_logprobs(&mut map, frame.logprobs());
        map
    }

    /// Stops the generation; the messages that tell so. A whole answer was not sent, so nothing
    /// of it is paid.
    pub fn cancel(mut self) -> Vec<Map<String, Value>> {
        let usage = self.info.usage;
        let nothing = ReplyEnd { reason: TurnEnd::Cancelled, tail_text: String::new(), usage };
        let empty = Source::Whole(Box::pin(std::future::pending()));
        match std::mem::replace(&mut self.source, empty) {
            Source::Stream(reply) => {
                let end = reply.cancel();
                self.end(&end)
            }
            Source::Whole(_) => self.end(&nothing),
        }
    }

    fn closing(&self, message: &str, reason: TurnEnd, counts: Usage) -> Map<String, Value> {
        let mut map = summary(&self.info, (reason, counts), self.chain_id);
        map.extend(kind(message));
        map.insert("reason".into(), finish_reason(reason).into());
        self.tags.put(map)
    }
}
