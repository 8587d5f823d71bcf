//! The ledger on SQLite: one file, one writer thread, many readers.
//!
//! Never acknowledges what is not synced (write-ahead log, `synchronous = FULL`), never edits an
//! entry (triggers in the file forbid it, whoever opens it). A sync costs milliseconds, so
//! whatever is queued while one runs shares the next. Relies on its caller for the lock that
//! keeps a second node off the same wallet.

mod care;
mod file;
mod inspect;
mod migrate;
mod open;
mod reader;
mod rows;
mod schema;
mod turns;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use async_trait::async_trait;

pub use care::{CareError, Restored, back_up, binding_of, restore, retire};
pub use inspect::{Inspection, inspect};
use open::Opening;
pub use reader::SqliteReader;
use writer::{Group, Shared, Writer};

use super::{Ledger, LedgerError, OnDurable, stored};
use crate::billing::Entry;
use crate::units::{Address, JobId, TokenCount};

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

impl std::fmt::Display for LedgerBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { chain_id, contract, wallet } = self;
        write!(f, "chain {chain_id}, contract {contract}, wallet {wallet}")
    }
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
    /// Files up to this many bytes are checked page by page before [`SqliteLedger::open`]
    /// returns; larger ones beside the node's start, and damage stops the ledger when it is met.
    pub check_bytes_max: u64,
}

impl SqliteOptions {
    /// 8192 waiting groups (some 64 k tokens, seconds of writing), 1024 a commit; files that a
    /// fraction of a second reads (32 MiB) are checked before the start.
    #[must_use]
    pub fn new(binding: LedgerBinding) -> Self {
        Self {
            binding,
            queue_capacity: 8192,
            groups_per_commit_max: 1024,
            check_bytes_max: 32 << 20,
        }
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

/// What a ledger holds, for comparing two of them: equal sums mean equal entries, for all that
/// damage and mishaps can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerSums {
    /// The row of the last entry; 0 where there is none.
    pub last: i64,
    /// Entries that are no deliveries.
    pub facts: u64,
    /// Deliveries.
    pub deliveries: u64,
    /// Tokens in them.
    pub tokens: TokenCount,
    /// Sum of all rows' checksums.
    pub checksums: u64,
}

impl LedgerSums {
    /// Entries of both kinds.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.facts.saturating_add(self.deliveries)
    }
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
    inspector: Option<inspect::Inspector>,
}

impl SqliteLedger {
    /// Opens the ledger at `path`, creating it (mode 0600) where there is none, and migrating an
    /// older one after a copy of it was kept. Blocks: a small file is read and checked whole; a
    /// large one is, beside whatever follows.
    ///
    /// # Errors
    /// [`LedgerError::Store`] where the file cannot be opened or is damaged, is newer or no
    /// ledger, or belongs to another chain, contract or wallet.
    pub fn open(path: &Path, options: SqliteOptions) -> Result<Self, LedgerError> {
        let SqliteOptions { binding: ours, check_bytes_max, .. } = options;
        let opening = Opening { ours, check_bytes_max, keeps_older: true };
        let connection = open::open_writer(path, opening)?;
        let shared = Arc::new(Shared::new());
        let state = Writer::new(options.groups_per_commit_max, Arc::clone(&shared));
        let (queue, groups) = sync_channel(options.queue_capacity.max(1));
        let writer = std::thread::Builder::new()
            .name("ledger-writer".into())
            .spawn(move || state.run(&connection, &groups))
            .map_err(|error| LedgerError::Store(format!("no writer thread: {error}")))?;
        let inspector = inspect::Inspector::start(path, check_bytes_max, &shared)?;
        let path = path.to_owned();
        Ok(Self { path, shared, queue: Some(queue), writer: Some(writer), inspector })
    }

    /// Whether the file came out of a backup behind which entries may be lost, and
    /// [`SqliteLedger::forget_restored`] was not called since. Blocks on disk.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn is_restored(&self) -> Result<bool, LedgerError> {
        SqliteReader::open(&self.path)?.is_restored()
    }

    /// The chain was asked about what a restored ledger may not know. Blocks on disk.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn forget_restored(&self) -> Result<(), LedgerError> {
        open::mark_restored(&self.path, false)
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

    /// Waits for the check beside the start, where there is one.
    #[cfg(feature = "test-support")]
    pub fn wait_checked(&mut self) {
        if let Some(inspector) = &mut self.inspector {
            inspector.wait();
        }
    }

    /// Why the store takes no entries any more; `None` while it does.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.failure().map(str::to_owned)
    }

    /// What the writer did so far.
    #[must_use]
    pub fn counts(&self) -> LedgerCounts {
        self.shared.counts()
    }

    fn stop(&mut self) {
        drop(self.queue.take());
        drop(self.inspector.take());
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
            let why = self.shared.failure().unwrap_or_default();
            return Err(LedgerError::Store(format!("the store failed earlier: {why}")));
        }
        let gone = || LedgerError::Store("the writer is gone".into());
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.try_send(Group { entries, on_durable }).map_err(|error| match error {
            TrySendError::Full(_) => LedgerError::Full,
            TrySendError::Disconnected(_) => gone(),
        })
    }

    fn replay(&self, each: &mut dyn FnMut(Entry)) -> Result<(), LedgerError> {
        SqliteReader::watched(&self.path, &self.shared)?.replay(each)
    }

    async fn job_entries(&self, job: JobId) -> Result<Vec<Entry>, LedgerError> {
        let (path, shared) = (self.path.clone(), Arc::clone(&self.shared));
        let read = move || SqliteReader::watched(&path, &shared)?.job_entries(job);
        tokio::task::spawn_blocking(read)
            .await
            .unwrap_or_else(|error| Err(LedgerError::Store(format!("the reader ended: {error}"))))
    }

    fn is_healthy(&self) -> bool {
        self.shared.is_healthy()
    }
}
