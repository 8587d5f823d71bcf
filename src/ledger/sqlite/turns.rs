//! Guards deliveries: no position of a turn is recorded by two different entries.
//!
//! Keys alone cannot see it, since a group that starts elsewhere has another key. Remembers where
//! each live turn ends and asks the store only for turns it does not know or when a group starts
//! before that end. Relies on being told when a group was rolled back.

use std::collections::HashMap;

use rusqlite::Statement;

use crate::billing::Subject;
use crate::units::TurnNo;

/// Keys and token counts of the entries between two keys.
pub(super) const DELIVERED_IN_RANGE: &str =
    "SELECT key, tokens FROM entries WHERE key >= ?1 AND key < ?2";
/// Turns remembered; past this all are forgotten and read again, which costs one lookup each.
const TURNS_MAX: usize = 4096;

/// A stretch of one turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub subject: Subject,
    pub turn: TurnNo,
    /// Tokens of the turn before it.
    pub start: u64,
    /// Its length.
    pub count: u64,
}

impl Span {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.count)
    }
}

/// Where each live turn ends: the first position after all that is recorded of it.
#[derive(Debug, Default)]
pub(super) struct TurnEnds {
    ends: HashMap<(Subject, TurnNo), u64>,
}

impl TurnEnds {
    /// Whether `span` covers a position that an entry already holds.
    ///
    /// `in_range` is [`DELIVERED_IN_RANGE`], prepared.
    pub(super) fn overlaps(
        &mut self,
        in_range: &mut Statement<'_>,
        span: Span,
    ) -> rusqlite::Result<bool> {
        let known = self.ends.get(&(span.subject, span.turn)).copied();
        if known.is_some_and(|end| span.start >= end) {
            return Ok(false);
        }
        let recorded = recorded(in_range, span)?;
        let end = recorded.iter().map(|(start, count)| start.saturating_add(*count)).max();
        self.remember(span, end.unwrap_or(0));
        Ok(recorded
            .iter()
            .any(|(start, count)| span.start < start.saturating_add(*count) && *start < span.end()))
    }

    /// `span` was inserted.
    pub(super) fn extend(&mut self, span: Span) {
        if let Some(end) = self.ends.get_mut(&(span.subject, span.turn)) {
            *end = span.end().max(*end);
        }
    }

    /// Nothing is known of this turn any more: it ended, or its group was rolled back.
    pub(super) fn forget(&mut self, subject: Subject, turn: TurnNo) {
        self.ends.remove(&(subject, turn));
    }

    fn remember(&mut self, span: Span, end: u64) {
        if self.ends.len() >= TURNS_MAX {
            self.ends.clear();
        }
        self.ends.insert((span.subject, span.turn), end);
    }
}

/// Start and length of every delivery of the span's turn, in no order.
fn recorded(in_range: &mut Statement<'_>, span: Span) -> rusqlite::Result<Vec<(u64, u64)>> {
    // '0' follows '/' in ASCII: the range holds exactly the keys with this prefix.
    let stem = format!("{}/turn/{}/at", span.subject, span.turn);
    let (first, last) = (format!("{stem}/"), format!("{stem}0"));
    let mut rows = in_range.query((&first, last))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let key: String = row.get(0)?;
        let start = key.strip_prefix(&first).and_then(|text| text.parse().ok());
        let start = start.ok_or(rusqlite::Error::InvalidParameterName(key))?;
        found.push((start, row.get::<_, i64>(1)?.cast_unsigned()));
    }
    Ok(found)
}
