//! Metered delivery over HTTP: a frame counts when the kernel took its last byte.
//!
//! Never counts what hyper merely polled or buffered, and never counts after the connection is
//! gone: frames that wait here then are dropped, which makes them free. A handler posts each frame
//! with the body offset at which it ends; the stream under hyper ([`MeteredListener`]) watches
//! the bytes that leave and calls [`Frame::delivered`]. Relies on HTTP/1.1: one response after
//! the other on a connection, in the order of the requests.

mod stream;
mod wire;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

pub(super) use stream::ConnectionOutbox;
pub use stream::{MeteredListener, StreamLimits};

use crate::session::Frame;
use wire::{Responses, Wire};

/// Frames of one connection that were handed to hyper and not yet to the kernel.
///
/// Bounded by what sessions hand out: a job's credit of unrecorded tokens, or one whole answer a
/// request.
#[derive(Default)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Responses not yet written to their end; the first one is on the wire.
    open: VecDeque<OpenResponse>,
    id_next: u64,
    is_closed: bool,
}

struct OpenResponse {
    id: u64,
    is_bodiless: bool,
    /// Frames with the body offset at which each ends, ascending.
    frames: VecDeque<(u64, Frame)>,
}

/// A response's place in its connection's outbox.
#[derive(Clone)]
pub(super) struct Slot {
    /// `None` where the connection is not watched: its frames are never counted.
    outbox: Option<Arc<Outbox>>,
    id: u64,
}

impl Slot {
    /// A place that counts nothing.
    pub fn unwatched() -> Self {
        Self { outbox: None, id: 0 }
    }

    /// The frame counts once the response's body was written up to `end`, in bytes from the
    /// body's start. Frames are posted in order, before their bytes are handed to hyper.
    pub fn post(&self, end: u64, frame: Frame) {
        let Some(outbox) = &self.outbox else { return };
        let mut inner = outbox.inner();
        if !inner.is_closed
            && let Some(open) = inner.open.iter_mut().find(|open| open.id == self.id)
        {
            open.frames.push_back((end, frame));
        }
    }
}

impl Outbox {
    /// A place for the next response. Requests open theirs in the order of their arrival.
    pub fn open(self: &Arc<Self>, is_bodiless: bool) -> Slot {
        let mut inner = self.inner();
        let id = inner.id_next;
        inner.id_next = id.saturating_add(1);
        inner.open.push_back(OpenResponse { id, is_bodiless, frames: VecDeque::new() });
        Slot { outbox: Some(Arc::clone(self)), id }
    }

    /// Whether no request is being answered.
    fn is_idle(&self) -> bool {
        self.inner().open.is_empty()
    }

    /// The kernel took these bytes.
    fn written(&self, wire: &mut Wire, bytes: &[u8]) {
        let mut passing = Passing { inner: self.inner(), delivered: Vec::new(), free: Vec::new() };
        wire.advance(bytes, &mut passing);
        let Passing { inner, delivered, free } = passing;
        drop(inner);
        drop(free);
        for frame in delivered {
            frame.delivered();
        }
    }

    /// The connection is gone: what waits is free.
    fn close(&self) {
        let mut inner = self.inner();
        inner.is_closed = true;
        let waiting = std::mem::take(&mut inner.open);
        drop(inner);
        drop(waiting);
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes on their way: collects what they complete, so that nothing runs under the lock.
struct Passing<'a> {
    inner: std::sync::MutexGuard<'a, Inner>,
    delivered: Vec<Frame>,
    free: Vec<OpenResponse>,
}

impl Responses for Passing<'_> {
    fn is_bodiless(&self) -> bool {
        self.inner.open.front().is_some_and(|open| open.is_bodiless)
    }

    fn body_written(&mut self, total: u64) {
        let Some(open) = self.inner.open.front_mut() else { return };
        while open.frames.front().is_some_and(|(end, _)| *end <= total) {
            self.delivered.extend(open.frames.pop_front().map(|(_, frame)| frame));
        }
    }

    fn response_written(&mut self) {
        self.free.extend(self.inner.open.pop_front());
    }
}
