//! The ledger's tables, and whose ledger they say it is.
//!
//! Append-only is enforced inside the database, so that no program, ours included, edits an entry
//! by accident.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension};

use super::LedgerBinding;
use super::file::{at, refuse};
use crate::ledger::LedgerError;
use crate::units::Address;

/// Version of the tables that this program writes.
pub(super) const SCHEMA_VERSION: u64 = 3;
/// "TLLY": how `file` and a reader of hex recognise the database.
const APPLICATION_ID: i64 = 0x544c_4c59;

/// Whose ledger it is.
const META: &str = "
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
";

/// The tables of schema 2.
///
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

/// What schema 3 adds: the digests of hidden states, of which claims carry one for each chunk.
pub(super) const STATES: &str = "
ALTER TABLE deliveries ADD COLUMN
    states BLOB NOT NULL DEFAULT x'' CHECK (length(states) IN (0, 32 * tokens));
";

/// Name in `meta` of a mark: this file came out of a backup, and entries may have been written
/// after it that are lost.
pub(super) const RESTORED: &str = "restored_behind";

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

pub(super) fn is_empty(connection: &Connection) -> rusqlite::Result<bool> {
    let count: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(count == 0)
}

pub(super) fn create(connection: &mut Connection, ours: LedgerBinding) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(META)?;
    transaction.execute_batch(TABLES)?;
    transaction.execute_batch(STATES)?;
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

pub(super) fn read_binding(
    path: &Path,
    connection: &Connection,
) -> Result<(LedgerBinding, u64), LedgerError> {
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
