//! Time that stands until a run moves it.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tally::clock::{Clock, Sleep};
use tally::units::Millis;
use tokio::sync::oneshot;

#[derive(Default)]
pub struct SimClock {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    now: u64,
    sleepers: Vec<(u64, oneshot::Sender<()>)>,
}

impl SimClock {
    pub fn advance(&self, ms: u64) {
        let mut inner = self.lock();
        inner.now += ms;
        let now = inner.now;
        let due: Vec<_> = inner.sleepers.extract_if(.., |(at, _)| *at <= now).collect();
        drop(inner);
        for (_, wake) in due {
            let _ = wake.send(()); // A sleeper may be gone.
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

impl Clock for SimClock {
    fn now(&self) -> Millis {
        Millis::new(self.lock().now)
    }

    fn unix(&self) -> Millis {
        self.now()
    }

    fn sleep(&self, span: Duration) -> Sleep {
        let (wake, woken) = oneshot::channel();
        let mut inner = self.lock();
        inner.sleepers.retain(|(_, wake)| !wake.is_closed());
        let at = inner.now + u64::try_from(span.as_millis()).unwrap();
        inner.sleepers.push((at, wake));
        Box::pin(async move {
            let _ = woken.await;
        })
    }
}
