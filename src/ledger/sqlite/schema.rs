//! Opening the ledger's file: pragmas, tables, and whose ledger it is.
//!
//! Never repairs and never migrates by guess: a file that is damaged, foreign, newer, or bound to
//! another chain, contract or wallet is refused by name. Append-only is enforced inside the
//! database, so that no program, ours included, edits an entry by accident.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::LedgerBinding;
use crate::ledger::LedgerError;
use crate::units::Address;

/// Version of the tables.
const SCHEMA_VERSION: u64 = 1;
/// "TLLY": how `file` and a reader of hex recognise the database.
const APPLICATION_ID: i64 = 0x544c_4c59;
/// How long a statement waits for another process, such as a backup, to release the file.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Transcripts and keys of claims are the owner's alone.
const FILE_MODE: u32 = 0o600;

/// The triggers refuse UPDATE and DELETE; the one on INSERT closes `INSERT OR REPLACE`, which
/// deletes without running delete triggers.
const TABLES: &str = "
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
CREATE TABLE entries (
    id     INTEGER PRIMARY KEY,
    key    TEXT    NOT NULL UNIQUE,
    job    INTEGER NOT NULL,
    at_ms  INTEGER NOT NULL,
    kind   TEXT    NOT NULL,
    tokens INTEGER NOT NULL DEFAULT 0,
    body   TEXT    NOT NULL
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
";

/// The writer's connection; creates the ledger where there is none.
pub(super) fn open_writer(path: &Path, ours: LedgerBinding) -> Result<Connection, LedgerError> {
    create_private(path)
        .map_err(|error| LedgerError::Store(format!("ledger {}: {error}", path.display())))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = at(path, Connection::open_with_flags(path, flags))?;
    at(path, connection.busy_timeout(BUSY_WAIT))?;
    check_pages(path, &connection)?;
    let is_new = at(path, is_empty(&connection))?;
    if !is_new {
        // Before any pragma that writes: a stranger's database stays as it is.
        refuse_stranger(path, ours, read_binding(path, &connection)?)?;
    }
    at(path, set_pragmas(&connection))?;
    if is_new {
        at(path, create(&mut connection, ours))?;
    }
    Ok(connection)
}

/// A connection that cannot write, usable while a node runs.
pub(super) fn open_reader(path: &Path) -> Result<(Connection, LedgerBinding), LedgerError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = at(path, Connection::open_with_flags(path, flags))?;
    at(path, connection.busy_timeout(BUSY_WAIT))?;
    let binding = read_binding(path, &connection)?;
    Ok((connection, binding))
}

/// Names the file in an error of SQLite.
pub(super) fn at<T>(path: &Path, result: rusqlite::Result<T>) -> Result<T, LedgerError> {
    result.map_err(|error| LedgerError::Store(format!("ledger {}: {error}", path.display())))
}

/// Creates the file before SQLite does, which would let the process's umask decide who reads it.
fn create_private(path: &Path) -> io::Result<()> {
    let is_new = !path.try_exists()?;
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(FILE_MODE))?;
    if is_new {
        // The name of a new file is durable only once its folder was synced.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

/// Reads every page once: a node must not start to append behind damage it could have seen.
fn check_pages(path: &Path, connection: &Connection) -> Result<(), LedgerError> {
    let verdict: String =
        at(path, connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)))?;
    if verdict == "ok" {
        return Ok(());
    }
    Err(LedgerError::Store(format!("ledger {} is damaged: {verdict}", path.display())))
}

fn set_pragmas(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        let why = format!("the file system allows no write-ahead log (journal mode {mode})");
        return Err(rusqlite::Error::InvalidParameterName(why));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
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

fn read_binding(path: &Path, connection: &Connection) -> Result<LedgerBinding, LedgerError> {
    let refuse = |why: String| LedgerError::Store(format!("ledger {}: {why}", path.display()));
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
    let version = number("schema_version")?;
    if version != SCHEMA_VERSION {
        return Err(refuse(format!(
            "its schema is version {version}, this program knows {SCHEMA_VERSION}"
        )));
    }
    Ok(LedgerBinding {
        chain_id: number("chain_id")?,
        contract: address("contract")?,
        wallet: address("wallet")?,
    })
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
                "ledger {} belongs to {what} {theirs}, this node serves {what} {ours}",
                path.display()
            )));
        }
    }
    Ok(())
}
