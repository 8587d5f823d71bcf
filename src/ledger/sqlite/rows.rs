//! Rows of the two tables, to entries and back.
//!
//! Never trusts a row: each carries a checksum over its own id and content. SQLite's integers are
//! signed: a `u64` is kept bit for bit, so ids past 2^63 read as negative in other tools and as
//! themselves here.

use rusqlite::Row as SqlRow;
use rusqlite::{OptionalExtension, Statement};

use super::stored::{self, Delivery, Row};
use crate::billing::Entry;
use crate::ledger::LedgerError;

/// Columns of `entries`, in the order [`text_entry`] reads.
macro_rules! text_columns {
    () => {
        "SELECT id, key, job, at_ms, kind, body, crc FROM entries"
    };
}
/// Columns of `deliveries`, in the order [`delivery_entry`] reads.
macro_rules! delivery_columns {
    () => {
        "SELECT id, job, turn, position, at_ms, ids, states, crc FROM deliveries"
    };
}
pub(super) use {delivery_columns, text_columns};

/// Adds a row to `entries`.
pub(super) const INSERT_TEXT: &str = concat!(
    "INSERT INTO entries (id, key, job, at_ms, kind, body, crc) ",
    "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
);
/// Adds a row to `deliveries`.
pub(super) const INSERT_DELIVERY: &str = concat!(
    "INSERT INTO deliveries (id, job, turn, position, tokens, at_ms, ids, states, crc) ",
    "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
);

/// An entry with its row id, or why the row is none; `Err` outside where SQLite could not read.
pub(super) type Read = rusqlite::Result<(i64, Result<Entry, LedgerError>)>;

/// Reads a row of [`text_columns`].
pub(super) fn text_entry(row: &SqlRow<'_>) -> Read {
    let (id, text) = (row.get(0)?, text_row(row)?);
    Ok((id, stored::decode_checked(id, &text, row.get(6)?)))
}

/// As [`text_entry`], trusting nothing but the body: every other column is made again.
pub(super) fn text_entry_anew(row: &SqlRow<'_>) -> Read {
    let (id, text) = (row.get(0)?, text_row(row)?);
    let entry = stored::decode_checked(id, &text, row.get(6)?);
    Ok((id, entry.and_then(|_| stored::decode(id, &text))))
}

fn text_row<'r>(row: &'r SqlRow<'_>) -> rusqlite::Result<Row<'r>> {
    let text = |column| -> rusqlite::Result<&'r str> { Ok(row.get_ref(column)?.as_str()?) };
    Ok(Row {
        key: text(1)?.into(),
        job: unsigned(row, 2)?,
        at_ms: unsigned(row, 3)?,
        kind: text(4)?.into(),
        tokens: 0,
        body: text(5)?.into(),
    })
}

/// Reads a row of [`delivery_columns`].
pub(super) fn delivery_entry(row: &SqlRow<'_>) -> Read {
    let id = row.get(0)?;
    let delivery = Delivery {
        job: unsigned(row, 1)?,
        turn: row.get(2)?,
        position: row.get(3)?,
        at_ms: unsigned(row, 4)?,
        ids: row.get_ref(5)?.as_blob()?.into(),
        states: row.get_ref(6)?.as_blob()?.into(),
    };
    Ok((id, delivery.entry(id, row.get(7)?)))
}

fn unsigned(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

/// Adds a row to `entries` by [`INSERT_TEXT`].
pub(super) fn insert_text(
    statement: &mut Statement<'_>,
    id: i64,
    row: &Row<'_>,
) -> rusqlite::Result<()> {
    let (job, at_ms) = (row.job.cast_signed(), row.at_ms.cast_signed());
    let fields = (id, &row.key, job, at_ms, &row.kind, &row.body, row.checksum(id));
    statement.execute(fields).map(drop)
}

/// Adds a row to `deliveries` by [`INSERT_DELIVERY`].
pub(super) fn insert_delivery(
    statement: &mut Statement<'_>,
    id: i64,
    row: &Delivery<'_>,
) -> rusqlite::Result<()> {
    let (job, at_ms) = (row.job.cast_signed(), row.at_ms.cast_signed());
    let tokens = row.tokens().cast_signed();
    let (ids, states, crc) = (&row.ids, &row.states, row.checksum(id));
    let fields = (id, job, row.turn, row.position, tokens, at_ms, ids, states, crc);
    statement.execute(fields).map(drop)
}

/// The highest row id of both tables; 0 where they are empty.
pub(super) fn last_id(connection: &rusqlite::Connection) -> rusqlite::Result<i64> {
    let of = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, Option<i64>>(0));
    let texts = of("SELECT max(id) FROM entries").optional()?.flatten();
    let deliveries = of("SELECT max(id) FROM deliveries").optional()?.flatten();
    Ok(texts.max(deliveries).unwrap_or(0))
}
