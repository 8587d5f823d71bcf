//! Every background task of the node: named, owned, awaited at shutdown.
//!
//! Never lets a task die in silence: one that ends before shutdown, or panics, stops the node
//! loudly. The only place that spawns.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The node's tasks.
#[derive(Clone)]
pub struct Tasks {
    stop: CancellationToken,
    failed: Arc<Mutex<Option<String>>>,
}

/// A task's handle; awaiting it waits for the task's own orderly end.
pub struct Task {
    name: &'static str,
    handle: JoinHandle<()>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { stop: CancellationToken::new(), failed: Arc::default() }
    }
}

impl Tasks {
    /// Cancelled when the node must stop, for whatever reason.
    #[must_use]
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that must live until the node stops; its error or panic stops the node.
    pub fn spawn<E: std::fmt::Display + Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) -> Task {
        let guard = Guard { tasks: self.clone(), name, is_done: false };
        let handle = tokio::spawn(async move {
            let mut guard = guard;
            match work.await {
                Ok(()) if guard.tasks.stop.is_cancelled() => guard.is_done = true,
                Ok(()) => guard.fail("ended before the node did"),
                Err(error) => guard.fail(&error.to_string()),
            }
        });
        Task { name, handle }
    }

    /// The first failure, where the node stopped because of one.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the node because of a failure.
    pub fn fail(&self, name: &str, why: &str) {
        tracing::error!(task = name, why, "the node stops");
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert_with(|| format!("{name}: {why}"));
        self.stop.cancel();
    }
}

impl Task {
    /// Waits for the task's end.
    pub async fn join(self) {
        if let Err(error) = self.handle.await {
            tracing::error!(task = self.name, %error, "task did not end in order");
        }
    }
}

/// Notices a panic, and a task that is dropped before the node stops: it was never told that all
/// is well. A stopping node may drop what takes too long.
struct Guard {
    tasks: Tasks,
    name: &'static str,
    is_done: bool,
}

impl Guard {
    fn fail(&mut self, why: &str) {
        self.is_done = true;
        self.tasks.fail(self.name, why);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let may_end = self.tasks.stop.is_cancelled() && !std::thread::panicking();
        if !self.is_done && !may_end {
            self.tasks.fail(self.name, "panicked or was dropped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_task_stops_the_node_and_names_it() {
        let tasks = Tasks::default();
        let task = tasks.spawn("submitter", async {
            assert_eq!(1, 2, "on purpose");
            Ok::<(), String>(())
        });
        task.join().await;
        assert!(tasks.stop().is_cancelled());
        assert!(tasks.failure().unwrap().starts_with("submitter"));
    }

    #[tokio::test]
    async fn a_stopping_node_may_drop_a_task_and_still_hears_of_a_panic() {
        let tasks = Tasks::default();
        let dropped = tasks.spawn("api", std::future::pending::<Result<(), String>>());
        tasks.stop().cancel();
        dropped.handle.abort();
        dropped.join().await;
        assert_eq!(tasks.failure(), None);
        let broken = tasks.spawn("watch", async {
            assert_eq!(1, 2, "on purpose");
            Ok::<(), String>(())
        });
        broken.join().await;
        assert!(tasks.failure().unwrap().starts_with("watch"));
    }

    #[tokio::test]
    async fn an_early_end_or_an_error_stops_the_node_and_an_orderly_end_does_not() {
        let tasks = Tasks::default();
        let stop = tasks.stop();
        let orderly = tasks.spawn("a", async move {
            stop.cancelled().await;
            Ok::<(), String>(())
        });
        assert_eq!(tasks.failure(), None);
        let broken = tasks.spawn("ledger", async { Err("disk full") });
        broken.join().await;
        orderly.join().await;
        assert_eq!(tasks.failure(), Some("ledger: disk full".into()));
    }
}
