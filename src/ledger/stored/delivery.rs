//! The stored form of a delivery: plain columns, since nearly all entries are deliveries.
//!
//! Never versioned by itself: its form changes only together with the tables' version. Ids are
//! 32-bit little-endian, four bytes each, so that any tool can read them.

use std::borrow::Cow;

use super::checksum::Checksum;
use super::{WALLET, subject};
use crate::billing::{Entry, Fact};
use crate::ledger::LedgerError;
use crate::units::{Hash32, JobId, Millis, TurnNo};

/// The columns of one delivery besides its row id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ledger) struct Delivery<'a> {
    /// The job; 0 for the wallet, which delivers nothing.
    pub job: u64,
    /// The turn.
    pub turn: u32,
    /// Tokens of the turn before these.
    pub position: u32,
    /// Wall-clock milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The ids, four bytes each.
    pub ids: Cow<'a, [u8]>,
    /// Digests of their hidden states, 32 bytes each, or nothing.
    pub states: Cow<'a, [u8]>,
}

impl Delivery<'_> {
    /// The delivery that `entry` is; `None` for every other fact.
    pub fn of(entry: &Entry) -> Option<Delivery<'static>> {
        let Fact::Delivered { turn, position, ids, states } = &entry.fact else { return None };
        Some(Delivery {
            job: entry.job().map_or(WALLET, JobId::get),
            turn: turn.get(),
            position: *position,
            at_ms: entry.at.get(),
            ids: ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>().into(),
            states: states.iter().flat_map(|state| *state.bytes()).collect::<Vec<u8>>().into(),
        })
    }

    /// How many tokens it holds.
    pub fn tokens(&self) -> u64 {
        u64::try_from(self.ids.len() / 4).unwrap_or(u64::MAX)
    }

    /// What its row `id` must have for a checksum.
    pub fn checksum(&self, id: i64) -> u32 {
        Checksum::new()
            .number(id.cast_unsigned())
            .number(self.job)
            .number(u64::from(self.turn))
            .number(u64::from(self.position))
            .number(self.at_ms)
            .bytes(&self.ids)
            // Rows without them have the checksums of schema 2.
            .bytes(&self.states)
            .finish()
    }

    /// The entry of row `id`, whose checksum was `found`.
    ///
    /// # Errors
    /// [`LedgerError::Store`] naming the row where the checksum does not fit.
    pub fn entry(&self, id: i64, found: i64) -> Result<Entry, LedgerError> {
        let Self { job, turn, position, at_ms, ids, states } = self;
        let (ids, idle) = ids.as_chunks::<4>();
        let (states, rest) = states.as_chunks::<32>();
        let is_whole = idle.is_empty() && rest.is_empty();
        let is_paired = states.is_empty() || states.len() == ids.len();
        if i64::from(self.checksum(id)) != found || !is_whole || !is_paired {
            let place = format!("job {job}, turn {turn}, position {position}");
            let why = format!("entry {id} ({place}): its checksum does not fit its content");
            return Err(LedgerError::Store(why));
        }
        let ids = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
        let states = states.iter().map(|state| Hash32::new(*state)).collect();
        let fact = Fact::Delivered { turn: TurnNo::new(*turn), position: *position, ids, states };
        Ok(Entry { subject: subject(*job), at: Millis::new(*at_ms), fact })
    }
}
