//! The TCP stream under hyper: watches what the kernel takes and bounds how long it may wait.
//!
//! Never changes a byte. A peer that takes nothing for a while, or sends no request, is cut off:
//! its memory and its job's credit are needed by others.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Outbox, Wire};
use crate::clock::{Clock, Sleep};

/// Pause after a failed accept (file descriptors used up), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(500);

/// How patient a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Longest time without a complete request head while none is being answered.
    pub head_wait_max: Duration,
    /// Longest time a peer may take not one byte while bytes wait for it.
    pub stall_max: Duration,
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections_max: usize,
}

/// Accepts connections whose writes are watched.
pub struct MeteredListener {
    listener: TcpListener,
    clock: Arc<dyn Clock>,
    limits: StreamLimits,
    places: Arc<Semaphore>,
}

impl MeteredListener {
    /// Watches the connections of `listener`.
    #[must_use]
    pub fn new(listener: TcpListener, clock: Arc<dyn Clock>, limits: StreamLimits) -> Self {
        let places = Arc::new(Semaphore::new(limits.connections_max));
        Self { listener, clock, limits, places }
    }
}

impl Listener for MeteredListener {
    type Io = MeteredStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (MeteredStream, SocketAddr) {
        loop {
            // The semaphore is never closed; without a permit the connection is merely uncounted.
            let place = Arc::clone(&self.places).acquire_owned().await.ok();
            match self.listener.accept().await {
                Ok((io, peer)) => {
                    if let Err(error) = io.set_nodelay(true) {
                        tracing::debug!(%peer, %error, "TCP_NODELAY not set");
                    }
                    return (MeteredStream::new(io, self, place), peer);
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    self.clock.sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The outbox of the connection a request came by.
#[derive(Clone)]
pub(in crate::api) struct ConnectionOutbox(pub Arc<Outbox>);

impl Connected<IncomingStream<'_, MeteredListener>> for ConnectionOutbox {
    fn connect_info(stream: IncomingStream<'_, MeteredListener>) -> Self {
        Self(Arc::clone(&stream.io().outbox))
    }
}

/// A connection whose writes are watched.
pub struct MeteredStream {
    io: TcpStream,
    wire: Wire,
    outbox: Arc<Outbox>,
    clock: Arc<dyn Clock>,
    limits: StreamLimits,
    /// Runs while the peer takes no byte.
    stall: Option<Sleep>,
    /// Runs while no request is being answered.
    idle: Option<Sleep>,
    _place: Option<OwnedSemaphorePermit>,
}

impl MeteredStream {
    fn new(io: TcpStream, from: &MeteredListener, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            io,
            wire: Wire::new(),
            outbox: Arc::default(),
            clock: Arc::clone(&from.clock),
            limits: from.limits,
            stall: None,
            idle: None,
            _place: place,
        }
    }

    /// Passes a write's outcome on; an endless wait becomes an error.
    fn bounded(
        &mut self,
        outcome: Poll<io::Result<usize>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if outcome.is_ready() {
            self.stall = None;
            return outcome;
        }
        let span = self.limits.stall_max;
        let stall = self.stall.get_or_insert_with(|| self.clock.sleep(span));
        ready!(stall.as_mut().poll(cx));
        tracing::debug!("peer does not read; connection cut");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl AsyncWrite for MeteredStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_write(cx, bytes);
        let taken = ready!(this.bounded(outcome, cx))?;
        this.outbox.written(&mut this.wire, bytes.get(..taken).unwrap_or_default());
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        let taken = ready!(this.bounded(outcome, cx))?;
        let mut left = taken;
        for slice in slices {
            let part = left.min(slice.len());
            this.outbox.written(&mut this.wire, slice.get(..part).unwrap_or_default());
            left = left.saturating_sub(part);
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.outbox.is_idle() {
            this.idle = None;
            return Pin::new(&mut this.io).poll_read(cx, buffer);
        }
        // Bytes of an unfinished head do not restart the wait, else a byte a minute held a place.
        let span = this.limits.head_wait_max;
        let idle = this.idle.get_or_insert_with(|| this.clock.sleep(span));
        if idle.as_mut().poll(cx).is_ready() {
            let error = io::Error::new(io::ErrorKind::TimedOut, "no request in time");
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.io).poll_read(cx, buffer)
    }
}

impl Drop for MeteredStream {
    fn drop(&mut self) {
        self.outbox.close();
    }
}
