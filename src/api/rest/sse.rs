//! A streamed answer as server-sent events.
//!
//! A data frame for each piece of text with running usage, a last one with the response's fields
//! (its `content` is empty: clients concatenate), then `[DONE]`. Never holds more than the frame
//! it was asked for: hyper asks when the socket has room. Dropped with the connection, which
//! cancels the generation.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use serde_json::{Value, json};

use super::AppState;
use crate::api::delivery::Slot;
use crate::api::outcome::{Pace, finish_reason, summary, usage};
use crate::clock::{Clock, within};
use crate::session::{Frame, Reply, ReplyEnd, ReplyEvent, ReplyInfo, TurnEnd};

/// An admitted request that is to be streamed.
pub(super) struct Stream {
    pub app: Arc<AppState>,
    pub slot: Slot,
    pub reply: Reply,
    pub pace: Pace,
    pub clock: Arc<dyn Clock>,
    pub request_id: String,
}

/// The response whose body is the stream.
pub(super) fn respond(from: Stream) -> Response {
    let id = HeaderValue::from_str(&from.request_id).ok();
    let info = from.reply.info().clone();
    let writer = Writer {
        app: from.app,
        slot: from.slot,
        pace: from.pace,
        clock: from.clock,
        request_id: from.request_id,
        info,
        offset: 0,
    };
    let first = Some((from.reply, writer));
    let pieces = stream::unfold(first, |state| async {
        let (reply, mut writer) = state?;
        let (bytes, rest) = writer.piece(reply).await;
        Some((Ok::<_, Infallible>(bytes), rest.map(|reply| (reply, writer))))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Asks reverse proxies not to collect pieces before passing them on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if let Some(id) = id {
        headers.insert("x-request-id", id);
    }
    response
}

struct Writer {
    app: Arc<AppState>,
    slot: Slot,
    pace: Pace,
    clock: Arc<dyn Clock>,
    request_id: String,
    info: ReplyInfo,
    /// Body bytes made so far.
    offset: u64,
}

impl Writer {
    /// The next bytes of the body, and the reply unless it is over.
    async fn piece(&mut self, mut reply: Reply) -> (Bytes, Option<Reply>) {
        let keepalive = self.app.settings.sse_keepalive;
        let event = tokio::select! {
            biased;
            () = self.app.stops.cut.cancelled() => None,
            event = within(&*self.clock, keepalive, reply.next()) => Some(event),
        };
        match event {
            None => (self.end(&reply.cancel()), None),
            Some(None) => (self.take(": waiting\n\n".to_owned()), Some(reply)),
            Some(Some(ReplyEvent::Frame(frame))) => {
                let counts = usage(reply.usage());
                (self.frame(frame, &counts), Some(reply))
            }
            Some(Some(ReplyEvent::End(end))) => (self.end(&end), None),
        }
    }

    fn frame(&mut self, frame: Frame, counts: &Value) -> Bytes {
        self.pace.frame();
        let text = data(&self.chunk(&frame.text, frame.token_count(), counts));
        let bytes = self.take(text);
        self.slot.post(self.offset, frame);
        bytes
    }

    fn end(&mut self, end: &ReplyEnd) -> Bytes {
        let counts = usage(end.usage);
        let mut text = String::new();
        if !end.tail_text.is_empty() {
            text.push_str(&data(&self.chunk(&end.tail_text, 0, &counts)));
        }
        let chain_id = self.app.sessions.chain_id();
        let mut last = summary(&self.info, (end.reason, end.usage), chain_id);
        last.insert("content".into(), "".into());
        last.insert("request_id".into(), self.request_id.clone().into());
        if end.reason == TurnEnd::Error {
            last.insert("error_type".into(), "internal_error".into());
            last.insert("message".into(), "the generation failed".into());
        }
        text.push_str(&data(&Value::Object(last)));
        text.push_str("data: [DONE]\n\n");
        self.pace.ended(finish_reason(end.reason));
        self.take(text)
    }

    fn chunk(&self, content: &str, tokens: u32, counts: &Value) -> Value {
        json!({
            "model": self.info.model,
            "content": content,
            "tokens": tokens,
            "usage": counts,
            "request_id": self.request_id,
            "finish_reason": null,
        })
    }

    fn take(&mut self, text: String) -> Bytes {
        self.offset = self.offset.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        text.into()
    }
}

/// One event. JSON holds no raw line ends, so one `data:` line carries it.
fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}
