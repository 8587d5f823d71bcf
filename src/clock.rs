//! Time as a port: every wait and every "now" of the node goes through [`Clock`].
//!
//! Never used for money: claims and deadlines compare chain times only. Relies on tokio's timer
//! in production; the simulator brings its own clock.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::units::Millis;

/// A wait that ends when its time is over.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Source of time and of waits.
pub trait Clock: Send + Sync {
    /// Monotonic milliseconds since an arbitrary origin; only differences mean something.
    fn now(&self) -> Millis;

    /// Wall-clock milliseconds since the Unix epoch, for logs and for expiry of tokens.
    fn unix(&self) -> Millis;

    /// Completes after `span`. Dropping it cancels the wait.
    fn sleep(&self, span: Duration) -> Sleep;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic origin is now.
    #[must_use]
    pub fn shared() -> Arc<dyn Clock> {
        Arc::new(Self { origin: Instant::now() })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        Millis::new(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn unix(&self) -> Millis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis::new(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn sleep(&self, span: Duration) -> Sleep {
        Box::pin(tokio::time::sleep(span))
    }
}

/// `future`, or `None` when `span` passes first. The future is dropped then.
pub async fn within<T>(
    clock: &dyn Clock,
    span: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = clock.sleep(span) => None,
    }
}
