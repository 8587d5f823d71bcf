//! Opening the ledger's file: whether it may be opened at all, pragmas, migration.
//!
//! Never repairs and never guesses: a file that is damaged, foreign, newer, or bound to another
//! chain, contract or wallet is refused by name and left as it is; an older one is migrated by
//! `migrate`.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::file::{DAMAGED, at, create_private, holds_data, refuse};
use super::schema::{RESTORED, SCHEMA_VERSION, create, is_empty, read_binding};
use super::{LedgerBinding, migrate};
use crate::ledger::LedgerError;

/// How long a statement waits for another process, such as a backup, to release the file.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Pages in the write-ahead log before they are moved into the file: 16 MB, which a start after a
/// crash reads in some ten milliseconds.
const LOG_PAGES_MAX: u32 = 4_000;
/// Pages of the file kept in memory, KiB at most: the ends of the indices of all open jobs.
const CACHE_KIB_MAX: i32 = 32 * 1024;

/// How to open for writing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Opening {
    /// Whose ledger it must be.
    pub ours: LedgerBinding,
    /// Files up to this size are checked page by page before anything else.
    pub check_bytes_max: u64,
    /// Whether a copy of an older file is kept beside it before it is migrated.
    pub keeps_older: bool,
}

/// The writer's connection; creates the ledger where there is none, migrates an older one.
pub(super) fn open_writer(path: &Path, opening: Opening) -> Result<Connection, LedgerError> {
    let disk = |error| refuse(path, &format!("{error}"));
    if holds_data(path).map_err(disk)? {
        // Read-only first, and before any pragma that writes: what is not ours stays as it is.
        let (_, theirs, version) = open_any(path)?;
        refuse_newer(path, version)?;
        refuse_stranger(path, opening.ours, theirs)?;
    }
    create_private(path).map_err(disk)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = at(path, Connection::open_with_flags(path, flags))?;
    at(path, connection.busy_timeout(BUSY_WAIT))?;
    if std::fs::metadata(path).map_err(disk)?.len() <= opening.check_bytes_max {
        check_pages(path, &connection)?;
    }
    at(path, set_pragmas(&connection))?;
    if at(path, is_empty(&connection))? {
        at(path, create(&mut connection, opening.ours))?;
    } else {
        migrate::to_present(path, &mut connection, opening.keeps_older)?;
    }
    // The write lock says now, rather than at the first delivery, that the file takes entries.
    at(path, connection.execute_batch("BEGIN IMMEDIATE; COMMIT"))?;
    Ok(connection)
}

/// A connection that cannot write, usable while a node runs.
pub(super) fn open_reader(path: &Path) -> Result<(Connection, LedgerBinding), LedgerError> {
    let (connection, binding, version) = open_any(path)?;
    refuse_newer(path, version)?;
    if version < SCHEMA_VERSION {
        let why = format!(
            "its schema is version {version}, older than {SCHEMA_VERSION}: `tally serve` migrates \
             it when it starts and keeps a copy"
        );
        return Err(refuse(path, &why));
    }
    Ok((connection, binding))
}

/// A connection that cannot write to a ledger of any version, known or not.
fn open_any(path: &Path) -> Result<(Connection, LedgerBinding, u64), LedgerError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = at(path, Connection::open_with_flags(path, flags))?;
    at(path, connection.busy_timeout(BUSY_WAIT))?;
    let (binding, version) = read_binding(path, &connection)?;
    Ok((connection, binding, version))
}

/// Whose ledger the file at `path` is, whatever its version.
pub(super) fn binding_of(path: &Path) -> Result<LedgerBinding, LedgerError> {
    let (_, binding, version) = open_any(path)?;
    refuse_newer(path, version)?;
    Ok(binding)
}

/// Copies one moment of a ledger of any version into the empty file `to`.
pub(super) fn copy_any(from: &Path, to: &Path) -> Result<(), LedgerError> {
    let (connection, _, version) = open_any(from)?;
    refuse_newer(from, version)?;
    at(from, connection.execute("VACUUM INTO ?1", [&*to.to_string_lossy()])).map(drop)
}

/// Moves what the write-ahead log holds into the file.
pub(super) fn empty_log(path: &Path) -> Result<(), LedgerError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = at(path, Connection::open_with_flags(path, flags))?;
    at(path, connection.busy_timeout(BUSY_WAIT))?;
    let empty = "PRAGMA wal_checkpoint(TRUNCATE)";
    at(path, connection.query_row(empty, [], |_| Ok(())))
}

/// Marks a file that came out of a backup, or takes the mark away.
pub(super) fn mark_restored(path: &Path, is_restored: bool) -> Result<(), LedgerError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = at(path, Connection::open_with_flags(path, flags))?;
    at(path, connection.busy_timeout(BUSY_WAIT))?;
    at(path, connection.pragma_update(None, "synchronous", "FULL"))?;
    let sql = if is_restored {
        "INSERT OR REPLACE INTO meta (name, value) VALUES (?1, 'yes')"
    } else {
        "DELETE FROM meta WHERE name = ?1"
    };
    at(path, connection.execute(sql, [RESTORED])).map(drop)
}

/// Reads every page once: a node must not go on appending behind damage it could have seen.
pub(super) fn check_pages(path: &Path, connection: &Connection) -> Result<(), LedgerError> {
    let verdict: String =
        at(path, connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(refuse(path, &format!("{}; {DAMAGED}", verdict.replace('\n', " "))))
}

fn set_pragmas(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        let why = format!("the file system allows no write-ahead log (journal mode {mode})");
        return Err(rusqlite::Error::InvalidParameterName(why));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    // A page that many commits change is moved into the file once for all of them.
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES_MAX)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB_MAX)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn refuse_newer(path: &Path, version: u64) -> Result<(), LedgerError> {
    if version <= SCHEMA_VERSION {
        return Ok(());
    }
    let why = format!(
        "its schema is version {version}, this program knows {SCHEMA_VERSION}: a newer Tally \
         wrote it"
    );
    Err(refuse(path, &why))
}

fn refuse_stranger(
    path: &Path,
    ours: LedgerBinding,
    theirs: LedgerBinding,
) -> Result<(), LedgerError> {
    let differences = [
        ("chain", ours.chain_id.to_string(), theirs.chain_id.to_string()),
        ("contract", ours.contract.to_string(), theirs.contract.to_string()),
        ("wallet", ours.wallet.to_string(), theirs.wallet.to_string()),
    ];
    for (what, ours, theirs) in differences {
        if ours != theirs {
            return Err(LedgerError::Store(format!(
                "ledger {} belongs to {what} {theirs}, this node serves {what} {ours}; \
                 `tally ledger retire` puts a finished ledger away",
                path.display()
            )));
        }
    }
    Ok(())
}
