//! The jobs that run or wait, by name.
//!
//! Never knows two of one name, and never keeps one beyond its end. Nothing is ended under its
//! lock: an end takes the job out of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::JobFault;
use super::hold::{Hold, Turn};
use crate::units::Millis;

/// All jobs.
#[derive(Default)]
pub(super) struct Registry {
    inner: Mutex<Inner>,
    /// Knows when the last one is gone.
    pub present: TaskTracker,
    /// A job with a deadline has come.
    pub changed: Notify,
}

#[derive(Default)]
pub(super) struct Inner {
    pub holds: BTreeMap<String, Arc<Hold>>,
    pub is_closed: bool,
}

/// A job's entry; dropping it takes the job out.
struct Place {
    id: String,
    registry: Arc<Registry>,
    _present: TaskTrackerToken,
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = self.registry.lock().holds.remove(&self.id);
        drop(taken);
    }
}

impl Registry {
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a job under a name that is free.
    pub fn enter(
        self: &Arc<Self>,
        inner: &mut Inner,
        id: &str,
        (turn, deadline): (Turn, Option<Millis>),
    ) -> Arc<Hold> {
        let id = id.to_owned();
        let place =
            Place { id: id.clone(), registry: Arc::clone(self), _present: self.present.token() };
        let hold = Arc::new(Hold::new(Box::new(place), turn, deadline));
        inner.holds.insert(id, Arc::clone(&hold));
        if deadline.is_some() {
            self.changed.notify_one();
        }
        hold
    }

    /// The job of this name.
    pub fn get(&self, id: &str) -> Option<Arc<Hold>> {
        self.lock().holds.get(id).cloned()
    }

    /// Ends the jobs that `is_meant` says.
    pub fn end(&self, fault: &JobFault, is_meant: impl Fn(&Hold) -> bool) {
        let inner = self.lock();
        let meant = inner.holds.values().filter(|hold| is_meant(hold)).cloned();
        let meant: Vec<_> = meant.collect();
        drop(inner);
        meant.iter().for_each(|hold| hold.end(fault.clone()));
    }

    /// The first deadline of all.
    pub fn deadline(&self) -> Option<Millis> {
        self.lock().holds.values().filter_map(|hold| hold.deadline).min()
    }
}
