//! Reading the ledger, from the node or from another process while the node runs.
//!
//! Never writes: its connection is read-only. Sees committed entries only, hence durable ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, Params, Rows};

use super::file::{self, is_damage};
use super::open::open_reader;
use super::rows::{
    Read, delivery_columns, delivery_entry, text_columns, text_entry, text_entry_anew,
};
use super::schema;
use super::writer::Shared;
use super::{LedgerBinding, LedgerSums};
use crate::billing::Entry;
use crate::ledger::LedgerError;
use crate::units::{JobId, TokenCount};

/// A read-only view of a ledger file. Every method blocks on disk.
pub struct SqliteReader {
    path: PathBuf,
    connection: Connection,
    binding: LedgerBinding,
    /// Who must know when the file turns out to be damaged.
    alarm: Option<Arc<Shared>>,
    read_text: fn(&rusqlite::Row<'_>) -> Read,
}

impl SqliteReader {
    /// Opens an existing ledger for reading; any number of readers beside one writer.
    ///
    /// # Errors
    /// [`LedgerError::Store`] where there is no file, or it is no ledger of this version.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let (connection, binding) = open_reader(path)?;
        Ok(Self { path: path.to_owned(), connection, binding, alarm: None, read_text: text_entry })
    }

    /// As [`SqliteReader::open`]; a page that turns out to be damaged stops the writer too.
    pub(super) fn watched(path: &Path, alarm: &Arc<Shared>) -> Result<Self, LedgerError> {
        Ok(Self { alarm: Some(Arc::clone(alarm)), ..Self::open(path)? })
    }

    /// As [`SqliteReader::open`], for a reader that trusts no column it can make again.
    pub(super) fn thorough(path: &Path) -> Result<Self, LedgerError> {
        Ok(Self { read_text: text_entry_anew, ..Self::open(path)? })
    }

    /// The chain, contract and wallet the ledger was created for.
    #[must_use]
    pub fn binding(&self) -> LedgerBinding {
        self.binding
    }

    pub(super) fn is_restored(&self) -> Result<bool, LedgerError> {
        self.at(schema::is_restored(&self.connection))
    }

    /// All entries of one moment, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Store`], naming the entry where one cannot be read.
    pub fn replay(&self, each: &mut dyn FnMut(Entry)) -> Result<(), LedgerError> {
        self.replay_upto(i64::MAX, each)
    }

    /// As [`SqliteReader::replay`], to the entry of row `last`.
    pub(super) fn replay_upto(
        &self,
        last: i64,
        each: &mut dyn FnMut(Entry),
    ) -> Result<(), LedgerError> {
        let texts = concat!(text_columns!(), " WHERE id <= ?1 ORDER BY id");
        let deliveries = concat!(delivery_columns!(), " WHERE id <= ?1 ORDER BY id");
        self.merged([texts, deliveries], [last], each)
    }

    /// The entries of one job at one moment, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::Store`], naming the entry where one cannot be read.
    pub fn job_entries(&self, job: JobId) -> Result<Vec<Entry>, LedgerError> {
        let texts = concat!(text_columns!(), " WHERE job = ?1 ORDER BY id");
        let deliveries = concat!(delivery_columns!(), " WHERE job = ?1 ORDER BY id");
        let mut entries = Vec::new();
        let mut each = |entry| entries.push(entry);
        self.merged([texts, deliveries], [job.get().cast_signed()], &mut each)?;
        Ok(entries)
    }

    /// What the ledger holds, or held when `upto` was its last entry.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub fn sums(&self, upto: Option<i64>) -> Result<LedgerSums, LedgerError> {
        let sql = "SELECT coalesce(max(a.last, b.last), a.last, b.last, 0), a.n, b.n, b.tokens, \
             a.crc + b.crc FROM \
             (SELECT max(id) AS last, count(*) AS n, coalesce(sum(crc), 0) AS crc \
                FROM entries WHERE id <= ?1) AS a, \
             (SELECT max(id) AS last, count(*) AS n, coalesce(sum(crc), 0) AS crc, \
                coalesce(sum(tokens), 0) AS tokens FROM deliveries WHERE id <= ?1) AS b";
        let read = |row: &rusqlite::Row<'_>| {
            let count = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
            Ok(LedgerSums {
                last: row.get(0)?,
                facts: count(1)?,
                deliveries: count(2)?,
                tokens: TokenCount::new(count(3)?),
                checksums: count(4)?,
            })
        };
        self.at(self.connection.query_row(sql, [upto.unwrap_or(i64::MAX)], read))
    }

    /// Every page and index, by SQLite's own check; faults in its words, none where all is well.
    pub(super) fn damages(&self) -> Result<Vec<String>, LedgerError> {
        let mut check = self.at(self.connection.prepare("PRAGMA integrity_check(20)"))?;
        let found = self.at(check.query_map([], |row| row.get::<_, String>(0)))?;
        let found: Vec<String> = self.at(found.collect())?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    /// Writes a compact copy of one moment into the empty or missing file `to`.
    pub(super) fn copy_into(&self, to: &Path) -> Result<(), LedgerError> {
        let name = to.to_string_lossy();
        self.at(self.connection.execute("VACUUM INTO ?1", [&*name])).map(drop)
    }

    /// The rows of both tables by id, at one moment.
    fn merged(
        &self,
        [texts, deliveries]: [&str; 2],
        parameters: impl Params + Clone,
        each: &mut dyn FnMut(Entry),
    ) -> Result<(), LedgerError> {
        // Both cursors must see the same commit. Ends, unread, with the transaction.
        let moment = self.at(self.connection.unchecked_transaction())?;
        let mut texts = self.at(moment.prepare(texts))?;
        let mut deliveries = self.at(moment.prepare(deliveries))?;
        let mut texts = self.at(texts.query(parameters.clone()))?;
        let mut deliveries = self.at(deliveries.query(parameters))?;
        let mut text = self.next(&mut texts, self.read_text)?;
        let mut delivery = self.next(&mut deliveries, delivery_entry)?;
        loop {
            let is_text = match (&text, &delivery) {
                (None, None) => return Ok(()),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((id, _)), Some((other, _))) if id == other => {
                    let why = format!("entry {id} is there twice");
                    return Err(file::refuse(&self.path, &why));
                }
                (Some((id, _)), Some((other, _))) => id < other,
            };
            let due = if is_text {
                std::mem::replace(&mut text, self.next(&mut texts, self.read_text)?)
            } else {
                std::mem::replace(&mut delivery, self.next(&mut deliveries, delivery_entry)?)
            };
            if let Some((_, entry)) = due {
                each(entry?);
            }
        }
    }

    #[allow(clippy::type_complexity)]
    fn next(
        &self,
        rows: &mut Rows<'_>,
        read: impl Fn(&rusqlite::Row<'_>) -> Read,
    ) -> Result<Option<(i64, Result<Entry, LedgerError>)>, LedgerError> {
        let row = self.at(rows.next())?;
        row.map(|row| self.at(read(row))).transpose()
    }

    fn at<T>(&self, result: rusqlite::Result<T>) -> Result<T, LedgerError> {
        if let (Err(error), Some(alarm)) = (&result, &self.alarm)
            && is_damage(error)
            && alarm.fail(&file::in_words(error))
        {
            tracing::error!(%error, ledger = %self.path.display(), "the ledger is damaged");
        }
        file::at(&self.path, result)
    }
}
