//! Reading the ledger, from the node or from another process while the node runs.
//!
//! Never writes: its connection is read-only. Sees committed entries only, hence durable ones.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Params};

use super::schema::{at, open_reader};
use super::{LedgerBinding, stored};
use crate::billing::Entry;
use crate::ledger::LedgerError;
use crate::units::JobId;

/// A read-only view of a ledger file. Every method blocks on disk.
pub struct SqliteReader {
    path: PathBuf,
    connection: Connection,
    binding: LedgerBinding,
}

impl SqliteReader {
    /// Opens an existing ledger for reading; any number of readers beside one writer.
    ///
    /// # Errors
    /// [`LedgerError::Store`] where there is no file, or it is no ledger of this version.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let (connection, binding) = open_reader(path)?;
        Ok(Self { path: path.to_owned(), connection, binding })
    }

    /// The chain, contract and wallet the ledger was created for.
    #[must_use]
    pub fn binding(&self) -> LedgerBinding {
        self.binding
    }

    /// All entries of one moment, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Store`], naming the entry where one cannot be read.
    pub fn replay(&self, each: &mut dyn FnMut(Entry)) -> Result<(), LedgerError> {
        let sql = "SELECT id, key, job, at_ms, kind, tokens, body FROM entries ORDER BY id";
        self.rows(sql, [], each)
    }

    /// The entries of one job at one moment, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Store`], naming the entry where one cannot be read.
    pub fn job_entries(&self, job: JobId) -> Result<Vec<Entry>, LedgerError> {
        let mut entries = Vec::new();
        let sql = "SELECT id, key, job, at_ms, kind, tokens, body FROM entries \
                   WHERE job = ?1 ORDER BY id";
        self.rows(sql, [job.get().cast_signed()], &mut |entry| entries.push(entry))?;
        Ok(entries)
    }

    fn rows(
        &self,
        sql: &str,
        parameters: impl Params,
        each: &mut dyn FnMut(Entry),
    ) -> Result<(), LedgerError> {
        let mut statement = at(&self.path, self.connection.prepare(sql))?;
        let mut rows = at(&self.path, statement.query(parameters))?;
        while let Some(row) = at(&self.path, rows.next())? {
            let (id, row) = at(&self.path, read_row(row))?;
            each(stored::decode(id, &row)?);
        }
        Ok(())
    }
}

/// Columns in the order id, key, job, at_ms, kind, tokens, body.
///
/// SQLite's integers are signed: a `u64` is kept bit for bit, so ids past 2^63 read as negative
/// in other tools and as themselves here.
pub(super) fn read_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<(i64, stored::Row)> {
    let unsigned = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    let stored = stored::Row {
        key: row.get(1)?,
        job: unsigned(2)?,
        at_ms: unsigned(3)?,
        kind: row.get(4)?,
        tokens: unsigned(5)?,
        body: row.get(6)?,
    };
    Ok((row.get(0)?, stored))
}
