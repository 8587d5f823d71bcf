//! Older tables become present ones, one version at a time.
//!
//! Never touches the only copy: the old file is copied and synced first. Each step is one
//! transaction, so a crash leaves the old tables or the new ones, and the next start goes on.
//! Relies on rows being readable for ever: every entry is decoded and written again, and sums are
//! compared before anything is committed.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::file::{self, at, refuse};
use super::rows;
use super::schema::{self, SCHEMA_VERSION, STATES, TABLES};
use super::stored::{self, Delivery};
use crate::ledger::LedgerError;

/// Brings the file to [`SCHEMA_VERSION`]; `keeps_older` makes a copy first.
pub(super) fn to_present(
    path: &Path,
    connection: &mut Connection,
    keeps_older: bool,
) -> Result<(), LedgerError> {
    let version = |db: &Connection| at(path, schema::version(db)).map(Option::unwrap_or_default);
    let found = version(connection)?;
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    let kept = keeps_older.then(|| keep_copy(path, connection, found)).transpose()?;
    let kept = kept.map_or_else(|| "none".into(), |kept| kept.display().to_string());
    tracing::warn!(from = found, to = SCHEMA_VERSION, copy = kept, "the ledger is being migrated");
    let immediate = TransactionBehavior::Immediate;
    while version(connection)? < SCHEMA_VERSION {
        let step = at(path, connection.transaction_with_behavior(immediate))?;
        match version(&step)? {
            1 => one_to_three(path, &step)?,
            2 => two_to_three(path, &step)?,
            other => return Err(refuse(path, &format!("its schema is version {other}"))),
        }
        at(path, step.commit())?;
    }
    tracing::warn!(version = SCHEMA_VERSION, "the ledger is migrated");
    Ok(())
}

/// Copies the whole file beside itself, durably; an earlier copy is never overwritten.
fn keep_copy(path: &Path, connection: &Connection, version: u64) -> Result<PathBuf, LedgerError> {
    let disk = |error: std::io::Error| refuse(path, &format!("no copy before migrating: {error}"));
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".schema-{version}"));
    let kept = file::free_name(Path::new(&name));
    let mut partial = kept.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    // Left by an attempt that a crash cut short.
    drop(std::fs::remove_file(&partial));
    file::create_private(&partial).map_err(disk)?;
    at(path, connection.execute("VACUUM INTO ?1", [&*partial.to_string_lossy()]))?;
    std::fs::File::open(&partial).and_then(|file| file.sync_all()).map_err(disk)?;
    std::fs::rename(&partial, &kept).map_err(disk)?;
    file::sync_folder(&kept).map_err(disk)?;
    Ok(kept)
}

/// Deliveries get a table of their own, with the column of schema 3, and every row a checksum. Row
/// ids stay.
fn one_to_three(path: &Path, db: &Transaction<'_>) -> Result<(), LedgerError> {
    let prepare = "
        DROP TRIGGER IF EXISTS entries_never_change;
        DROP TRIGGER IF EXISTS entries_never_go;
        DROP TRIGGER IF EXISTS entries_are_never_replaced;
        DROP INDEX IF EXISTS entries_by_job;
        ALTER TABLE entries RENAME TO entries_of_1;";
    at(path, db.execute_batch(prepare))?;
    at(path, db.execute_batch(TABLES))?;
    at(path, db.execute_batch(STATES))?;
    copy_rows(path, db)?;
    let sums = |sql: &str| -> Result<(i64, i64), LedgerError> {
        at(path, db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))))
    };
    let old = sums("SELECT count(*), coalesce(sum(tokens), 0) FROM entries_of_1")?;
    let new = sums(
        "SELECT (SELECT count(*) FROM entries) + count(*), coalesce(sum(tokens), 0) \
         FROM deliveries",
    )?;
    if old != new {
        let why = format!("migrating it gave {new:?} entries and tokens instead of {old:?}");
        return Err(refuse(path, &why));
    }
    let finish = "
        DROP TABLE entries_of_1;
        UPDATE meta SET value = '3' WHERE name = 'schema_version';";
    at(path, db.execute_batch(finish))
}

/// Deliveries get a column. Rows stay as they are, checksums included.
fn two_to_three(path: &Path, db: &Transaction<'_>) -> Result<(), LedgerError> {
    at(path, db.execute_batch(STATES))?;
    let finish = "UPDATE meta SET value = '3' WHERE name = 'schema_version';";
    at(path, db.execute_batch(finish))
}

fn copy_rows(path: &Path, db: &Transaction<'_>) -> Result<(), LedgerError> {
    let sql = "SELECT id, key, job, at_ms, kind, tokens, body FROM entries_of_1 ORDER BY id";
    let mut old = at(path, db.prepare(sql))?;
    let mut insert_text = at(path, db.prepare(rows::INSERT_TEXT))?;
    let mut insert_delivery = at(path, db.prepare(rows::INSERT_DELIVERY))?;
    let mut old = at(path, old.query([]))?;
    while let Some(row) = at(path, old.next())? {
        let (id, row) = at(path, row_of_1(row))?;
        let entry = stored::decode(id, &row)?;
        at(
            path,
            match Delivery::of(&entry) {
                Some(delivery) => rows::insert_delivery(&mut insert_delivery, id, &delivery),
                // The very text that was there, not what this program would write today.
                None => rows::insert_text(&mut insert_text, id, &row),
            },
        )?;
    }
    Ok(())
}

/// Columns in the order id, key, job, at_ms, kind, tokens, body.
fn row_of_1(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, stored::Row<'static>)> {
    let unsigned = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    let text = stored::Row {
        key: row.get::<_, String>(1)?.into(),
        job: unsigned(2)?,
        at_ms: unsigned(3)?,
        kind: row.get::<_, String>(4)?.into(),
        tokens: unsigned(5)?,
        body: row.get::<_, String>(6)?.into(),
    };
    Ok((row.get(0)?, text))
}
