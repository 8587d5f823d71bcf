//! The ledger on SQLite: one file, one writer thread, many readers.
//!
//! Never acknowledges what is not synced (write-ahead log, `synchronous = FULL`), never edits an
//! entry (triggers in the file forbid it, whoever opens it). A sync costs milliseconds, so
//! whatever is queued while one runs shares the next. Relies on its caller for the lock that
//! keeps a second node off the same wallet.

mod reader;
mod schema;
mod turns;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use async_trait::async_trait;

pub use reader::SqliteReader;
use writer::{Group, Shared, Writer};

use super::{Ledger, LedgerError, OnDurable, stored};
use crate::billing::Entry;
use crate::units::{Address, JobId};

/// Whose ledger a file is: opening it for another chain, contract or wallet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerBinding {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The marketplace contract.
    pub contract: Address,
    /// The host's wallet.
    pub wallet: Address,
}

/// How to open a ledger.
#[derive(Debug, Clone, Copy)]
pub struct SqliteOptions {
    /// Whose ledger it is, written at creation and compared afterwards.
    pub binding: LedgerBinding,
    /// Groups that may wait for the writer. When as many wait, [`Ledger::submit`] answers
    /// [`LedgerError::Full`] and takes nothing: the caller holds its stream back and tries again.
    pub queue_capacity: usize,
    /// Groups that share one transaction and its sync at most; bounds how long the first of them
    /// waits for the last.
    pub groups_per_commit_max: usize,
}

impl SqliteOptions {
    /// 8192 waiting groups (some 64 k tokens, seconds of writing), 1024 a commit.
    #[must_use]
    pub fn new(binding: LedgerBinding) -> Self {
        Self { binding, queue_capacity: 8192, groups_per_commit_max: 1024 }
    }
}

/// What the writer did since it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerCounts {
    /// Transactions committed, each with one sync.
    pub commits: u64,
    /// Groups answered by them, conflicts included.
    pub groups: u64,
    /// Entries written; repeats are not.
    pub entries: u64,
}

/// The ledger in one SQLite file.
///
/// Dropping it (or [`SqliteLedger::close`]) takes no more groups, writes and acknowledges what is
/// queued, then joins the writer: it blocks for as long as that takes.
pub struct SqliteLedger {
    path: PathBuf,
    shared: Arc<Shared>,
    queue: Option<SyncSender<Group>>,
    writer: Option<JoinHandle<()>>,
}

impl SqliteLedger {
    /// Opens the ledger at `path`, creating it (mode 0600) where there is none. Blocks: every
    /// page of the file is read and checked once.
    ///
    /// # Errors
    /// [`LedgerError::Store`] where the file cannot be opened or is damaged, is no ledger of this
    /// version, or belongs to another chain, contract or wallet.
    pub fn open(path: &Path, options: SqliteOptions) -> Result<Self, LedgerError> {
        let connection = schema::open_writer(path, options.binding)?;
        let shared = Arc::new(Shared::new());
        let state = Writer::new(options.groups_per_commit_max, Arc::clone(&shared));
        let (queue, groups) = sync_channel(options.queue_capacity.max(1));
        let writer = std::thread::Builder::new()
            .name("ledger-writer".into())
            .spawn(move || state.run(&connection, &groups))
            .map_err(|error| LedgerError::Store(format!("no writer thread: {error}")))?;
        let path = path.to_owned();
        Ok(Self { path, shared, queue: Some(queue), writer: Some(writer) })
    }

    /// Writes and acknowledges everything queued and ends the writer. Blocks.
    ///
    /// # Errors
    /// [`LedgerError::Store`] when the store had failed: what was acknowledged is safe, the rest
    /// was answered with an error.
    pub fn close(mut self) -> Result<(), LedgerError> {
        self.stop();
        if self.shared.is_healthy() {
            return Ok(());
        }
        Err(LedgerError::Store("the store failed before it was closed".into()))
    }

    /// What the writer did so far.
    #[must_use]
    pub fn counts(&self) -> LedgerCounts {
        self.shared.counts()
    }

    fn stop(&mut self) {
        drop(self.queue.take());
        let Some(writer) = self.writer.take() else { return };
        // A callback may hold the last reference to us: the writer cannot wait for itself.
        if writer.thread().id() != std::thread::current().id() && writer.join().is_err() {
            tracing::error!("the ledger's writer had panicked");
        }
    }
}

impl Drop for SqliteLedger {
    fn drop(&mut self) {
        self.stop();
    }
}

#[async_trait]
impl Ledger for SqliteLedger {
    fn submit(&self, entries: Vec<Entry>, on_durable: OnDurable) -> Result<(), LedgerError> {
        if !self.shared.is_healthy() {
            return Err(LedgerError::Store("the store failed earlier".into()));
        }
        let gone = || LedgerError::Store("the writer is gone".into());
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.try_send(Group { entries, on_durable }).map_err(|error| match error {
            TrySendError::Full(_) => LedgerError::Full,
            TrySendError::Disconnected(_) => gone(),
        })
    }

    fn replay(&self, each: &mut dyn FnMut(Entry)) -> Result<(), LedgerError> {
        SqliteReader::open(&self.path)?.replay(each)
    }

    async fn job_entries(&self, job: JobId) -> Result<Vec<Entry>, LedgerError> {
        let path = self.path.clone();
        let read = move || SqliteReader::open(&path)?.job_entries(job);
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| Err(LedgerError::Store(format!("the reader ended: {error}"))))
    }

    fn is_healthy(&self) -> bool {
        self.shared.is_healthy()
    }
}
