//! Looking for damage: page by page beside a node's start, and deep when the operator asks.
//!
//! Never repairs. The deep look trusts nothing: SQLite's own check of pages and indexes, every
//! row's checksum, every account folded anew, and the sums compared.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rusqlite::InterruptHandle;

use super::writer::Shared;
use super::{LedgerSums, SqliteReader, file, open};
use crate::billing::Accounts;
use crate::ledger::LedgerError;
use crate::units::TokenCount;

/// Faults that are listed; more say nothing new.
const FAULTS_MAX: usize = 20;

/// What a deep look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// What the ledger holds.
    pub sums: LedgerSums,
    /// Jobs with an account.
    pub jobs: u64,
    /// What is wrong; empty where all is well.
    pub faults: Vec<String>,
}

/// Reads the whole ledger, while a node runs or not. Blocks for as long as that takes: about a
/// second for 100 MB.
///
/// # Errors
/// [`LedgerError::Store`] where it cannot be opened, or not even be counted.
pub fn inspect(path: &Path) -> Result<Inspection, LedgerError> {
    let reader = SqliteReader::thorough(path)?;
    let mut faults = reader.damages()?;
    let sums = reader.sums(None)?;
    let mut accounts = Accounts::default();
    let mut entries: u64 = 0;
    let mut misfits = Vec::new();
    // The same moment as the sums: a node may be writing.
    let replayed = reader.replay_upto(sums.last, &mut |entry| {
        entries = entries.saturating_add(1);
        if let Err(fault) = accounts.apply(&entry) {
            misfits.push(fault.to_string());
        }
    });
    let is_whole = replayed.is_ok();
    faults.extend(replayed.err().map(|error| error.to_string()));
    faults.append(&mut misfits);
    let recorded = accounts
        .jobs
        .values()
        .fold(TokenCount::ZERO, |sum, account| sum.saturating_add(account.recorded()));
    if is_whole && faults.is_empty() && (recorded, entries) != (sums.tokens, sums.entries()) {
        faults.push(format!(
            "accounts say {recorded} tokens in {entries} entries, rows {} in {}",
            sums.tokens,
            sums.entries()
        ));
    }
    faults.truncate(FAULTS_MAX);
    let jobs = u64::try_from(accounts.jobs.len()).unwrap_or(u64::MAX);
    Ok(Inspection { sums, jobs, faults })
}

/// Reads every page of a large file once, on a thread of its own, while the node starts.
pub(super) struct Inspector {
    thread: Option<JoinHandle<()>>,
    interrupt: InterruptHandle,
    is_over: Arc<AtomicBool>,
}

impl Inspector {
    /// `None` where the file is small: it was checked when it was opened.
    pub(super) fn start(
        path: &Path,
        check_bytes_max: u64,
        shared: &Arc<Shared>,
    ) -> Result<Option<Self>, LedgerError> {
        let disk = |error| file::refuse(path, &format!("{error}"));
        if std::fs::metadata(path).map_err(disk)?.len() <= check_bytes_max {
            return Ok(None);
        }
        let (connection, _) = open::open_reader(path)?;
        let interrupt = connection.get_interrupt_handle();
        let is_over = Arc::new(AtomicBool::new(false));
        let (shared, path, over) = (Arc::clone(shared), path.to_owned(), Arc::clone(&is_over));
        let check = move || {
            if let Err(error) = open::check_pages(&path, &connection)
                && !over.load(Ordering::Acquire)
                && shared.fail(&error.to_string())
            {
                tracing::error!(%error, "the ledger takes no more entries");
            }
        };
        let thread = std::thread::Builder::new()
            .name("ledger-check".into())
            .spawn(check)
            .map_err(|error| LedgerError::Store(format!("no thread to check it: {error}")))?;
        Ok(Some(Self { thread: Some(thread), interrupt, is_over }))
    }

    /// Waits for its end. A panic there has said so itself, and what it looked at is unknown, not
    /// wrong.
    pub(super) fn wait(&mut self) {
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        self.interrupt.interrupt();
        self.wait();
    }
}
