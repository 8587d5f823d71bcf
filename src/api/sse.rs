//! A streamed answer as server-sent events, whatever a protocol puts into them.
//!
//! Never holds more than the frame it was asked for: hyper asks when the socket has room. One
//! frame is one piece of the body, so one write. Dropped with the connection, which cancels the
//! generation.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::AppState;
use super::delivery::Slot;
use super::outcome::{Pace, finish_reason};
use crate::clock::Sleep;
use crate::session::{Frame, Reply, ReplyEnd, ReplyEvent, Usage};

/// What a protocol says of an answer: events, each ended by an empty line.
pub(super) trait Telling: Send + 'static {
    /// Writes what tells of a frame; `usage` counts it already.
    fn frame(&mut self, frame: &Frame, usage: Usage, to: &mut String);

    /// Writes what tells of the end. Nothing follows.
    fn end(&mut self, end: &ReplyEnd, to: &mut String);
}

/// An admitted request that is to be streamed.
pub(super) struct Stream<T> {
    pub app: Arc<AppState>,
    pub slot: Slot,
    pub reply: Reply,
    pub pace: Pace,
    pub request_id: String,
    pub telling: T,
}

/// The response whose body is the stream.
pub(super) fn respond<T: Telling>(from: Stream<T>) -> Response {
    let id = HeaderValue::from_str(&from.request_id).ok();
    let writer = Writer {
        cut: Box::pin(from.app.stops.cut.clone().cancelled_owned()),
        quiet: from.app.clock.sleep(from.app.settings.sse_keepalive / 2),
        has_spoken: false,
        app: from.app,
        slot: from.slot,
        pace: from.pace,
        telling: from.telling,
        offset: 0,
    };
    let first = Some(Box::new((from.reply, writer)));
    let pieces = stream::unfold(first, |state| async {
        let mut state = state?;
        let (reply, writer) = &mut *state;
        let piece = writer.piece(reply).await;
        let (bytes, rest) = match piece {
            Piece::More(bytes) => (bytes, Some(state)),
            Piece::Last(end) => {
                let (reply, mut writer) = *state;
                let end = end.unwrap_or_else(|| reply.cancel());
                (writer.end(&end), None)
            }
        };
        Some((Ok::<_, Infallible>(bytes), rest))
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

/// One event. JSON holds no raw line ends, so one `data:` line carries it.
pub(super) fn data(json: &impl std::fmt::Display, to: &mut String) {
    use std::fmt::Write;
    // Writing into a `String` cannot fail.
    let _ = write!(to, "data: {json}\n\n");
}

/// The event after which OpenAI's clients, and ours, stop reading.
pub(super) const DONE: &str = "data: [DONE]\n\n";

/// What comes next in a body.
enum Piece {
    More(Bytes),
    /// The end; `None` where the answer is to be cut.
    Last(Option<ReplyEnd>),
}

struct Writer<T> {
    app: Arc<AppState>,
    slot: Slot,
    pace: Pace,
    telling: T,
    /// The node's order to end all answers; kept, since making it anew takes a lock that all
    /// streams share.
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Half of the longest silence. It runs on over frames, since a timer to a token costs more
    /// than its event: a comment goes out when one whole half had none.
    quiet: Sleep,
    /// Whether anything went out since `quiet` began.
    has_spoken: bool,
    /// Body bytes made so far.
    offset: u64,
}

impl<T: Telling> Writer<T> {
    /// The next bytes of the body.
    async fn piece(&mut self, reply: &mut Reply) -> Piece {
        loop {
            let event = tokio::select! {
                biased;
                () = &mut self.cut => return Piece::Last(None),
                event = reply.next() => event,
                () = &mut self.quiet => {
                    self.quiet = self.app.clock.sleep(self.app.settings.sse_keepalive / 2);
                    if !std::mem::take(&mut self.has_spoken) {
                        return Piece::More(self.take(": waiting\n\n".to_owned()));
                    }
                    continue;
                }
            };
            return match event {
                ReplyEvent::Frame(frame) => Piece::More(self.frame(frame, reply.usage())),
                ReplyEvent::End(end) => Piece::Last(Some(end)),
            };
        }
    }

    fn frame(&mut self, frame: Frame, usage: Usage) -> Bytes {
        self.has_spoken = true;
        self.pace.frame();
        let mut text = String::with_capacity(512);
        self.telling.frame(&frame, usage, &mut text);
        let bytes = self.take(text);
        self.slot.post(self.offset, frame);
        bytes
    }

    fn end(&mut self, end: &ReplyEnd) -> Bytes {
        let mut text = String::new();
        self.telling.end(end, &mut text);
        self.pace.ended(finish_reason(end.reason));
        self.take(text)
    }

    fn take(&mut self, text: String) -> Bytes {
        self.offset = self.offset.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        text.into()
    }
}
