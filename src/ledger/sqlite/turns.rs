//! Guards deliveries: no position of a turn is recorded by two different entries.
//!
//! Keys alone cannot see it, since a group that starts elsewhere has another key. Remembers where
//! each live turn ends and asks the store only for turns it does not know or when a group starts
//! before that end. Relies on being told when a group was rolled back.

use std::collections::HashMap;

use rusqlite::Statement;

use super::stored::Delivery;

/// Positions and token counts of a turn's deliveries.
pub(super) const DELIVERED_IN_TURN: &str =
    "SELECT position, tokens FROM deliveries WHERE job = ?1 AND turn = ?2";
/// Turns remembered; past this all are forgotten and read again, which costs one lookup each.
const TURNS_MAX: usize = 4096;

/// A stretch of one turn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// As stored.
    pub job: u64,
    /// Its number.
    pub turn: u32,
    /// Tokens of the turn before it.
    pub start: u64,
    /// Its length.
    pub count: u64,
}

impl Span {
    pub(super) fn of(delivery: &Delivery<'_>) -> Self {
        Self {
            job: delivery.job,
            turn: delivery.turn,
            start: u64::from(delivery.position),
            count: delivery.tokens(),
        }
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.count)
    }
}

/// The first position that a delivery leaves free. An empty one takes its start all the same,
/// which is its key.
fn taken_to(start: u64, count: u64) -> u64 {
    start.saturating_add(count.max(1))
}

/// Where each live turn ends: the first position after all that is recorded of it.
#[derive(Debug, Default)]
pub(super) struct TurnEnds {
    ends: HashMap<(u64, u32), u64>,
}

impl TurnEnds {
    /// Whether `span` starts behind everything recorded of its turn: then no entry has its key
    /// and none overlaps it.
    pub(super) fn is_next(&self, span: Span) -> bool {
        self.ends.get(&(span.job, span.turn)).is_some_and(|end| span.start >= *end)
    }

    /// Whether `span` covers a position that an entry already holds.
    ///
    /// `in_turn` is [`DELIVERED_IN_TURN`], prepared.
    pub(super) fn overlaps(
        &mut self,
        in_turn: &mut Statement<'_>,
        span: Span,
    ) -> rusqlite::Result<bool> {
        let recorded = recorded(in_turn, span)?;
        let end = recorded.iter().map(|(start, count)| taken_to(*start, *count)).max();
        self.remember(span, end.unwrap_or(0));
        Ok(recorded
            .iter()
            .any(|(start, count)| span.start < start.saturating_add(*count) && *start < span.end()))
    }

    /// `span` was inserted.
    pub(super) fn extend(&mut self, span: Span) {
        if let Some(end) = self.ends.get_mut(&(span.job, span.turn)) {
            *end = taken_to(span.start, span.count).max(*end);
        }
    }

    /// Nothing is known of this turn any more: it ended, or its group was rolled back.
    pub(super) fn forget(&mut self, job: u64, turn: u32) {
        self.ends.remove(&(job, turn));
    }

    fn remember(&mut self, span: Span, end: u64) {
        if self.ends.len() >= TURNS_MAX {
            self.ends.clear();
        }
        self.ends.insert((span.job, span.turn), end);
    }
}

/// Start and length of every delivery of the span's turn, in no order.
fn recorded(in_turn: &mut Statement<'_>, span: Span) -> rusqlite::Result<Vec<(u64, u64)>> {
    let mut rows = in_turn.query((span.job.cast_signed(), span.turn))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let start: u32 = row.get(0)?;
        found.push((u64::from(start), row.get::<_, i64>(1)?.cast_unsigned()));
    }
    Ok(found)
}
