//! The port to the append-only ledger, and its promises.
//!
//! Never edits or deletes an entry: balances are sums. Callers rely on three things: an append is
//! durable before it is acknowledged; a group is all or nothing, in the order of submission; an
//! entry whose key is already there with the same content is acknowledged and not written twice.

#[cfg(feature = "test-support")]
pub mod memory;
pub mod sqlite;
mod stored;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::billing::Entry;
use crate::units::JobId;

/// Called by the writer once the group's fate is known. Must not block.
pub type OnDurable = Box<dyn FnOnce(Result<(), LedgerError>) + Send>;

/// The ledger could not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The writer's queue is full: nothing was taken.
    #[error("the ledger's queue is full")]
    Full,
    /// An entry's key exists with other content: a fault of ours; the group was not written.
    #[error("ledger entry {key} exists with other content")]
    Conflict {
        /// The key.
        key: String,
    },
    /// The store failed. What was acknowledged is safe; the node must stop.
    #[error("ledger store failed: {0}")]
    Store(String),
}

/// Stores entries.
#[async_trait]
pub trait Ledger: Send + Sync {
    /// Hands a group to the writer without waiting; `on_durable` runs after the sync.
    ///
    /// Groups become durable in the order of submission.
    ///
    /// # Errors
    /// [`LedgerError::Full`] when the bounded queue has no room, [`LedgerError::Store`] when the
    /// writer is gone; `on_durable` does not run then.
    fn submit(&self, entries: Vec<Entry>, on_durable: OnDurable) -> Result<(), LedgerError>;

    /// All entries, oldest first; blocks on disk, for start-up and audits.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    fn replay(&self, each: &mut dyn FnMut(Entry)) -> Result<(), LedgerError>;

    /// The entries of one job, oldest first; for building proofs and reports.
    async fn job_entries(&self, job: JobId) -> Result<Vec<Entry>, LedgerError>;

    /// Whether the writer works; false once the store has failed.
    fn is_healthy(&self) -> bool;

    /// Appends a group and waits until it is durable.
    ///
    /// # Errors
    /// Every [`LedgerError`].
    async fn append(&self, entries: Vec<Entry>) -> Result<(), LedgerError> {
        let (done, wait) = oneshot::channel();
        self.submit(
            entries,
            Box::new(move |result| {
                // The waiter may have been cancelled; the entry is durable all the same.
                drop(done.send(result));
            }),
        )?;
        wait.await.unwrap_or_else(|_| Err(LedgerError::Store("the writer is gone".into())))
    }
}
