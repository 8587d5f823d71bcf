//! What a job holds: its name, its turn or its slot, the engine's work.
//!
//! Never held beyond the job's end, whoever ends it: the reader of its stream, a cancel, its
//! deadline, the worker's stop. The first one takes everything out under one lock, so that no end
//! waits for somebody to read. Relies on the engine's rule that dropping a generation cancels it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::JobFault;
use crate::clock::Sleep;
use crate::engine::{EngineEvent, EngineFinish, Generation};
use crate::units::Millis;

/// A place in the line for a slot.
pub(super) struct Turn(
    Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
);

impl Turn {
    /// The last place in the line, taken now.
    pub fn take(slots: &Arc<Semaphore>) -> Self {
        let slot = Arc::clone(slots).acquire_owned();
        // A semaphore counts those in line from their first look at it; who looks for tokio's
        // budget of a task might be told to come again.
        let mut turn = Self(Box::pin(tokio::task::unconstrained(slot)));
        let mut looking = Context::from_waker(Waker::noop());
        match turn.0.as_mut().poll(&mut looking) {
            Poll::Ready(slot) => Self(Box::pin(std::future::ready(slot))),
            Poll::Pending => turn,
        }
    }
}

/// What comes next in a job.
pub(super) enum Step {
    /// It has a slot, and the engine is to be asked, for the first time or again.
    Turn,
    /// The engine tells something; `None` when it vanished.
    Engine(Option<EngineEvent>),
    /// All was told but this end.
    Finish(EngineFinish),
    /// It was ended, and holds nothing any more.
    Ended(JobFault),
}

/// One job's, known to its reader and to the registry.
pub(super) struct Hold {
    /// When nobody wants the answer any more.
    pub deadline: Option<Millis>,
    inner: Mutex<Inner>,
}

struct Inner {
    work: Work,
    /// Its entry among the jobs: dropping it takes the job out.
    place: Option<Box<dyn Send>>,
    /// Who reads, to be told of an end.
    reader: Option<Waker>,
    /// Why it was ended from outside.
    fault: Option<JobFault>,
}

enum Work {
    Waiting(Turn),
    /// The engine did not take it yet; where it was full, until the pause is over.
    Starting(OwnedSemaphorePermit, Option<Sleep>),
    Running {
        generation: Generation,
        _slot: OwnedSemaphorePermit,
    },
    Over,
}

impl Hold {
    pub fn new(place: Box<dyn Send>, turn: Turn, deadline: Option<Millis>) -> Self {
        let work = Work::Waiting(turn);
        let inner = Inner { work, place: Some(place), reader: None, fault: None };
        Self { deadline, inner: Mutex::new(inner) }
    }

    /// What comes next; an end comes before all that waits to be told. Cancel-safe.
    pub async fn next(&self) -> Step {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Step> {
        let mut inner = self.lock();
        let step = match &mut inner.work {
            Work::Waiting(turn) => match turn.0.as_mut().poll(cx) {
                Poll::Ready(Ok(slot)) => {
                    inner.work = Work::Starting(slot, None);
                    Poll::Ready(Step::Turn)
                }
                // Nobody closes the slots.
                Poll::Ready(Err(_)) => Poll::Ready(Step::Engine(None)),
                Poll::Pending => Poll::Pending,
            },
            Work::Starting(_, Some(pause)) => pause.as_mut().poll(cx).map(|()| Step::Turn),
            Work::Starting(_, None) => Poll::Ready(Step::Turn),
            Work::Running { generation, .. } => generation.poll_next(cx).map(Step::Engine),
            Work::Over => Poll::Ready(match inner.fault.clone() {
                Some(fault) => Step::Ended(fault),
                None => Step::Engine(None),
            }),
        };
        if step.is_pending() {
            inner.reader = Some(cx.waker().clone());
        }
        step
    }

    /// The engine has taken the job; where it has ended meanwhile, the engine's work ends too.
    pub fn run(&self, generation: Generation) {
        let mut inner = self.lock();
        if let Work::Starting(..) = inner.work
            && let Work::Starting(slot, _) = std::mem::replace(&mut inner.work, Work::Over)
        {
            inner.work = Work::Running { generation, _slot: slot };
        }
    }

    /// The engine has no room yet; it is asked again after `pause`.
    pub fn wait(&self, pause: Sleep) {
        if let Work::Starting(_, own) = &mut self.lock().work {
            *own = Some(pause);
        }
    }

    /// Ends the job, whether or not anybody reads; one that has ended stays as it is.
    pub fn end(&self, fault: JobFault) {
        self.empty(Some(fault));
    }

    /// Gives everything back; why the job was ended before, if it was.
    pub fn release(&self) -> Option<JobFault> {
        self.empty(None)
    }

    fn empty(&self, fault: Option<JobFault>) -> Option<JobFault> {
        let mut inner = self.lock();
        let work = std::mem::replace(&mut inner.work, Work::Over);
        if !matches!(work, Work::Over) {
            inner.fault = fault;
        }
        let (place, reader, told) = (inner.place.take(), inner.reader.take(), inner.fault.clone());
        drop(inner);
        // The slot before the name: who may come again finds a place.
        drop(work);
        drop(place);
        if let Some(reader) = reader {
            reader.wake();
        }
        told
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A job's own handle: dropping it gives everything back.
pub(super) struct Grip(pub Arc<Hold>);

impl Drop for Grip {
    fn drop(&mut self) {
        self.0.release();
    }
}
