//! Opening the ledger's file: pragmas, tables, and whose ledger it is.
//!
//! Never repairs and never guesses: a file that is damaged, foreign, newer, or bound to another
//! chain, contract or wallet is refused by name and left as it is; an older one is migrated by
//! `migrate`. Append-only is enforced inside the database, so that no program, ours included,
//! edits an entry by accident.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use super::{LedgerBinding, migrate};
use crate::ledger::LedgerError;
use crate::units::Address;

/// Version of the tables that this program writes.
pub(super) const SCHEMA_VERSION: u64 = 2;
/// "TLLY": how `file` and a reader of hex recognise the database.
const APPLICATION_ID: i64 = 0x544c_4c59;
/// How long a statement waits for another process, such as a backup, to release the file.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Pages in the write-ahead log before they are moved into the file: 16 MB, which a start after a
/// crash reads in some ten milliseconds.
const LOG_PAGES_MAX: u32 = 4_000;
/// Transcripts and keys of claims are the owner's alone.
const FILE_MODE: u32 = 0o600;

/// Whose ledger it is.
const META: &str = "
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
";

/// Deliveries are nearly all of a ledger: their columns are numbers and their key is a place, not
/// a text. Row ids run through both tables: they are the order of all entries. `crc` is over a
/// row's own id and content.
///
/// The triggers refuse UPDATE and DELETE; those on INSERT close `INSERT OR REPLACE`, which deletes
/// without running delete triggers.
pub(super) const TABLES: &str = "
CREATE TABLE entries (
    id    INTEGER PRIMARY KEY,
    key   TEXT    NOT NULL UNIQUE,
    job   INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    kind  TEXT    NOT NULL,
    body  TEXT    NOT NULL,
    crc   INTEGER NOT NULL
) STRICT;
CREATE INDEX entries_by_job ON entries (job, id);
CREATE TRIGGER entries_never_change BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_never_go BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER entries_are_never_replaced BEFORE INSERT ON entries
WHEN EXISTS (SELECT 1 FROM entries WHERE id = NEW.id)
  OR EXISTS (SELECT 1 FROM entries WHERE key = NEW.key)
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TABLE deliveries (
    id       INTEGER PRIMARY KEY,
    job      INTEGER NOT NULL,
    turn     INTEGER NOT NULL,
    position INTEGER NOT NULL,
    tokens   INTEGER NOT NULL CHECK (length(ids) = 4 * tokens),
    at_ms    INTEGER NOT NULL,
    ids      BLOB    NOT NULL,
    crc      INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX deliveries_by_place ON deliveries (job, turn, position);
CREATE TRIGGER deliveries_never_change BEFORE UPDATE ON deliveries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER deliveries_never_go BEFORE DELETE ON deliveries
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER deliveries_are_never_replaced BEFORE INSERT ON deliveries
WHEN EXISTS (SELECT 1 FROM deliveries WHERE id = NEW.id)
  OR EXISTS (SELECT 1 FROM deliveries
             WHERE job = NEW.job AND turn = NEW.turn AND position = NEW.position)
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
";

/// What an operator does about a file that makes no sense (docs/ledger.md).
const DAMAGED: &str = "the file is damaged: `tally ledger check` looks at all of it, `tally ledger \
                       restore` puts a backup in its place";

/// Name in `meta` of a mark: this file came out of a backup, and entries may have been written
/// after it that are lost.
const RESTORED: &str = "restored_behind";

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

/// The version of the file's tables.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT value FROM meta WHERE name = 'schema_version'";
    let found: Option<String> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
    Ok(found.and_then(|text| text.parse().ok()))
}

/// Whether the file came out of a backup and nobody has yet looked what the chain knows of it.
pub(super) fn is_restored(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM meta WHERE name = ?1";
    Ok(connection.query_row(sql, [RESTORED], |_| Ok(())).optional()?.is_some())
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

/// Names the file in an error of SQLite.
pub(super) fn at<T>(path: &Path, result: rusqlite::Result<T>) -> Result<T, LedgerError> {
    result.map_err(|error| refuse(path, &in_words(&error)))
}

/// A refusal that names the file.
pub(super) fn refuse(path: &Path, why: &str) -> LedgerError {
    LedgerError::Store(format!("ledger {}: {why}", path.display()))
}

/// Whether SQLite met a page that makes no sense.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// What SQLite said, and what it means for the operator.
pub(super) fn in_words(error: &rusqlite::Error) -> String {
    let remedy = match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => "the disk is full: make room, then start again",
        Some(ErrorCode::ReadOnly) => "the file or its folder may not be written",
        Some(ErrorCode::CannotOpen) => "the file or its folder is missing or may not be written",
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => DAMAGED,
        Some(ErrorCode::SystemIoFailure) => "the disk refused: is it full, or broken?",
        _ => return error.to_string(),
    };
    format!("{error}; {remedy}")
}

fn holds_data(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(meta.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates the file before SQLite does, which would let the process's umask decide who reads it.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    let is_new = !path.try_exists()?;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    if is_new {
        sync_folder(path)?;
    }
    Ok(())
}

/// The name of a new file is durable only once its folder was synced.
pub(super) fn sync_folder(of: &Path) -> io::Result<()> {
    let folder = of.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
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
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)
}

fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    let count: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(count == 0)
}

fn create(connection: &mut Connection, ours: LedgerBinding) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(META)?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    let facts = [
        ("schema_version", SCHEMA_VERSION.to_string()),
        ("chain_id", ours.chain_id.to_string()),
        ("contract", ours.contract.to_string()),
        ("wallet", ours.wallet.to_string()),
    ];
    for (name, value) in facts {
        transaction.execute("INSERT INTO meta (name, value) VALUES (?1, ?2)", (name, value))?;
    }
    transaction.commit()
}

fn read_binding(path: &Path, connection: &Connection) -> Result<(LedgerBinding, u64), LedgerError> {
    let refuse = |why: String| refuse(path, &why);
    let id: i64 = at(path, connection.query_row("PRAGMA application_id", [], |row| row.get(0)))?;
    if id != APPLICATION_ID {
        return Err(refuse("this database is no Tally ledger".into()));
    }
    let text = |name: &str| -> Result<String, LedgerError> {
        let sql = "SELECT value FROM meta WHERE name = ?1";
        at(path, connection.query_row(sql, [name], |row| row.get(0)).optional())?
            .ok_or_else(|| refuse(format!("its {name} is missing")))
    };
    let number = |name: &str| {
        let found = text(name)?;
        found.parse::<u64>().map_err(|_| refuse(format!("its {name} is {found:?}, no number")))
    };
    let address = |name: &str| {
        let found = text(name)?;
        Address::parse(&found).ok_or_else(|| refuse(format!("its {name} is {found:?}")))
    };
    let binding = LedgerBinding {
        chain_id: number("chain_id")?,
        contract: address("contract")?,
        wallet: address("wallet")?,
    };
    Ok((binding, number("schema_version")?))
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
