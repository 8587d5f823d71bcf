//! Care of ledger files: backup, restore, putting a finished one away.
//!
//! Never deletes a ledger and never overwrites one: what makes place is moved aside. Never copies
//! what it has not read back. Relies on its caller for the wallet's lock, except to back up, which
//! works beside a running node.

use std::path::{Path, PathBuf};

use super::file::{self, free_name, with_ending};
use super::inspect::inspect;
use super::open::{self, Opening};
use super::{LedgerBinding, LedgerSums, SqliteReader};
use crate::billing::{Accounts, Subject};
use crate::ledger::LedgerError;

/// Open matters that a refusal lists.
const LISTED_MAX: usize = 10;

/// A ledger file was left as it was, for this reason.
#[derive(Debug, thiserror::Error)]
pub enum CareError {
    /// It cannot be read or written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The file system refused.
    #[error("{}: {error}", path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: std::io::Error,
    },
    /// Nothing is overwritten.
    #[error("{} is there already and is left alone", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A copy does not say what the original says.
    #[error("{} is not sound: {}", path.display(), faults.join("; "))]
    Unsound {
        /// The copy, or the backup.
        path: PathBuf,
        /// What is wrong.
        faults: Vec<String>,
    },
    /// The backup belongs to another chain, contract or wallet than the ledger in place.
    #[error("the backup belongs to {theirs}, the ledger in place to {ours}")]
    Stranger {
        /// Whose backup.
        theirs: String,
        /// Whose ledger.
        ours: String,
    },
    /// The ledger in place holds what the backup lacks.
    #[error(
        "the ledger in place holds entries that the backup lacks ({present}; the backup: \
         {backup}); with --replace it is moved aside, and claims it knows of are lost to the node"
    )]
    Behind {
        /// What the ledger in place holds, or why that cannot be told.
        present: String,
        /// What the backup holds.
        backup: String,
    },
    /// Something is still open.
    #[error("the ledger is not finished: {}", open.join("; "))]
    Unfinished {
        /// Jobs and transactions.
        open: Vec<String>,
    },
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What the ledger holds now.
    pub sums: LedgerSums,
    /// Where the ledger went that was in place.
    pub moved_to: Option<PathBuf>,
    /// Whether entries may have been lost: the node asks the chain before it claims again.
    pub is_behind: bool,
}

/// Whose ledger a file is, of any version up to the present one.
///
/// # Errors
/// [`LedgerError::Store`] where it is none.
pub fn binding_of(path: &Path) -> Result<LedgerBinding, LedgerError> {
    open::binding_of(path)
}

/// Copies one moment of the ledger `from` into the new file `to` (mode 0600), reads it back and
/// compares. Works while a node writes, which waits for nothing. Blocks.
///
/// # Errors
/// [`CareError`]; there is no file `to` then.
pub fn back_up(from: &Path, to: &Path) -> Result<LedgerSums, CareError> {
    refuse_existing(to)?;
    let source = SqliteReader::open(from)?;
    let partial = with_ending(to, ".partial");
    new_private(&partial)?;
    let copied = source.copy_into(&partial).map_err(CareError::from);
    let verified = copied.and_then(|()| same_as(&source, &partial));
    let finished = verified
        .and_then(|sums| refuse_existing(to).map(|()| sums))
        .and_then(|sums| finish(&partial, to).map(|()| sums));
    if finished.is_err() {
        remove_all(&partial);
    }
    finished
}

fn same_as(source: &SqliteReader, copy: &Path) -> Result<LedgerSums, CareError> {
    let found = inspect(copy)?;
    let mut faults = found.faults;
    let wanted = source.sums(Some(found.sums.last))?;
    if faults.is_empty() && wanted != found.sums {
        faults.push(format!("{} were copied of {}", told(&found.sums), told(&wanted)));
    }
    if faults.is_empty() {
        return Ok(found.sums);
    }
    Err(CareError::Unsound { path: copy.to_owned(), faults })
}

/// Puts the backup `from` in the place of the ledger `to`, after reading all of it. A ledger in
/// place is moved aside; one that holds more than the backup, or that cannot be compared, only
/// where `may_replace`. The node must be stopped. Blocks.
///
/// # Errors
/// [`CareError`]; the ledger in place is as it was.
pub fn restore(from: &Path, to: &Path, may_replace: bool) -> Result<Restored, CareError> {
    let binding = open::binding_of(from)?;
    let partial = with_ending(to, ".restoring");
    new_private(&partial)?;
    let prepared = prepare(from, &partial, binding);
    let placed = prepared.and_then(|sums| place(&partial, to, (sums, may_replace)));
    if placed.is_err() {
        remove_all(&partial);
    }
    placed
}

/// A sound copy of the backup, in the present version.
fn prepare(from: &Path, partial: &Path, ours: LedgerBinding) -> Result<LedgerSums, CareError> {
    open::copy_any(from, partial)?;
    let opening = Opening { ours, check_bytes_max: u64::MAX, keeps_older: false };
    drop(open::open_writer(partial, opening)?);
    let found = inspect(partial)?;
    if found.faults.is_empty() {
        return Ok(found.sums);
    }
    Err(CareError::Unsound { path: from.to_owned(), faults: found.faults })
}

fn place(
    partial: &Path,
    to: &Path,
    (sums, may_replace): (LedgerSums, bool),
) -> Result<Restored, CareError> {
    let is_there = to.try_exists().map_err(|error| disk(to, error))?;
    let is_behind = !is_there || !is_contained(to, partial, (sums, may_replace))?;
    if is_behind {
        open::mark_restored(partial, true)?;
    }
    let moved_to = if is_there { Some(keep_aside(to, ".replaced")?) } else { None };
    finish(partial, to)?;
    Ok(Restored { sums, moved_to, is_behind })
}

/// Whether the copy holds every entry of the ledger in place.
fn is_contained(
    present: &Path,
    copy: &Path,
    (sums, may_replace): (LedgerSums, bool),
) -> Result<bool, CareError> {
    let (theirs, copy) = (open::binding_of(present), SqliteReader::open(copy)?);
    if let Ok(ours) = theirs
        && ours != copy.binding()
    {
        let (theirs, ours) = (copy.binding().to_string(), ours.to_string());
        return Err(CareError::Stranger { theirs, ours });
    }
    let held = SqliteReader::open(present).and_then(|present| present.sums(None));
    let present = match held {
        Ok(held) if copy.sums(Some(held.last))? == held => return Ok(true),
        Ok(held) => told(&held),
        Err(error) => format!("it cannot be read: {error}"),
    };
    if may_replace {
        return Ok(false);
    }
    Err(CareError::Behind { present, backup: told(&sums) })
}

/// Puts a finished ledger away, so that another key can begin one in its place. The node must be
/// stopped. Returns where it is now. Blocks.
///
/// # Errors
/// [`CareError::Unfinished`] names jobs that are not closed and transactions that are not final.
pub fn retire(path: &Path) -> Result<PathBuf, CareError> {
    let reader = SqliteReader::open(path)?;
    let mut accounts = Accounts::default();
    let mut open = Vec::new();
    reader.replay(&mut |entry| {
        if let Err(fault) = accounts.apply(&entry) {
            open.push(fault.to_string());
        }
    })?;
    open.extend(open_matters(&accounts));
    if !open.is_empty() {
        open.truncate(LISTED_MAX);
        return Err(CareError::Unfinished { open });
    }
    let wallet = reader.binding().wallet;
    drop(reader);
    move_aside(path, &format!(".retired-{wallet}"))
}

fn open_matters(accounts: &Accounts) -> impl Iterator<Item = String> + '_ {
    let jobs = accounts.jobs.values().filter(|account| !account.is_closed());
    let jobs = jobs.map(|account| format!("job {} is not closed", account.job()));
    let of_jobs = accounts.jobs.values().flat_map(|account| {
        account.txs_open().map(|tx| (Subject::Job(account.job()), tx.nonce)).collect::<Vec<_>>()
    });
    let own = accounts.wallet.txs().open().map(|tx| (Subject::Wallet, tx.nonce));
    let txs = of_jobs.chain(own);
    jobs.chain(txs.map(|(of, nonce)| format!("transaction {nonce} ({of}) is not final")))
}

/// Moves a ledger out of its place with all that belongs to it.
fn move_aside(path: &Path, ending: &str) -> Result<PathBuf, CareError> {
    let target = keep_aside(path, ending)?;
    std::fs::remove_file(path).map_err(|error| disk(path, error))?;
    file::sync_folder(path).map_err(|error| disk(path, error))?;
    Ok(target)
}

/// Gives a ledger a second name under which it stays when another takes its place: at no moment
/// is there none, which a starting node would take for a new beginning.
fn keep_aside(path: &Path, ending: &str) -> Result<PathBuf, CareError> {
    // What is in the log goes into the file first; a damaged file keeps its log beside it.
    drop(open::empty_log(path));
    let target = free_name(&with_ending(path, ending));
    std::fs::hard_link(path, &target).map_err(|error| disk(&target, error))?;
    for ending in ["-wal", "-shm"] {
        let (from, to) = (with_ending(path, ending), with_ending(&target, ending));
        match std::fs::rename(&from, &to) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(disk(&from, error)),
        }
    }
    file::sync_folder(path).map_err(|error| disk(path, error))?;
    Ok(target)
}

/// Gives a finished file its name, durably.
fn finish(partial: &Path, to: &Path) -> Result<(), CareError> {
    let synced = std::fs::File::open(partial).and_then(|file| file.sync_all());
    synced.map_err(|error| disk(partial, error))?;
    // Left by readers; empty, since nobody wrote.
    for ending in ["-wal", "-shm"] {
        drop(std::fs::remove_file(with_ending(partial, ending)));
    }
    std::fs::rename(partial, to).map_err(|error| disk(to, error))?;
    file::sync_folder(to).map_err(|error| disk(to, error))
}

fn refuse_existing(path: &Path) -> Result<(), CareError> {
    match path.try_exists() {
        Ok(false) => Ok(()),
        Ok(true) => Err(CareError::Exists { path: path.to_owned() }),
        Err(error) => Err(disk(path, error)),
    }
}

/// A private empty file, in the place of what an interrupted attempt left.
fn new_private(path: &Path) -> Result<(), CareError> {
    remove_all(path);
    file::create_private(path).map_err(|error| disk(path, error))
}

fn remove_all(path: &Path) {
    for ending in ["", "-wal", "-shm"] {
        drop(std::fs::remove_file(with_ending(path, ending)));
    }
}

fn disk(path: &Path, error: std::io::Error) -> CareError {
    CareError::Disk { path: path.to_owned(), error }
}

fn told(sums: &LedgerSums) -> String {
    format!("{} entries with {} tokens", sums.entries(), sums.tokens)
}
