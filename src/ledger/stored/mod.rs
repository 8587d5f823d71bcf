//! The stored form of an entry: columns of its own for a delivery, versioned JSON for the rest.
//!
//! Never shared with a wire protocol: these types change only together with [`VERSION`], and a
//! row once written must be readable for ever. Never guesses: an unknown kind, version, field or
//! a key that does not match its body is an error that names the row. Relies on nothing but serde.

mod checksum;
mod delivery;
mod fact;
mod parts;
#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::billing::{Entry, Fact, Subject};
use crate::ledger::LedgerError;
use crate::units::{JobId, Millis};
use checksum::Checksum;
pub(super) use delivery::Delivery;
use fact::StoredFact;

/// Version of the bodies this program writes, and the only one it reads.
const VERSION: u32 = 1;

/// The columns of one entry besides its row id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row<'a> {
    /// [`Entry::key`].
    pub key: Cow<'a, str>,
    /// The job; 0 for the wallet.
    pub job: u64,
    /// Wall-clock milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Name of the fact.
    pub kind: Cow<'a, str>,
    /// Tokens this entry adds to what was delivered; 0 for all but deliveries.
    pub tokens: u64,
    /// The fact as versioned JSON.
    pub body: Cow<'a, str>,
}

/// The row of `entry`.
///
/// # Errors
/// [`LedgerError::Store`] when JSON refuses, which no fact makes it do.
pub(super) fn encode(entry: &Entry) -> Result<Row<'static>, LedgerError> {
    let body = Body { v: VERSION, fact: StoredFact::from(&entry.fact) };
    let key = entry.key();
    let body = serde_json::to_string(&body)
        .map_err(|error| LedgerError::Store(format!("entry {key} has no stored form: {error}")))?;
    Ok(Row {
        key: key.into(),
        job: entry.job().map_or(WALLET, JobId::get),
        at_ms: entry.at.get(),
        kind: kind(&entry.fact).into(),
        tokens: tokens(&entry.fact),
        body: body.into(),
    })
}

/// The entry of row `id`, whose columns must be what [`encode`] makes of it.
///
/// # Errors
/// [`LedgerError::Store`] naming the row, for anything [`encode`] would not have written.
pub(super) fn decode(id: i64, row: &Row<'_>) -> Result<Entry, LedgerError> {
    let entry = parse(id, row)?;
    if kind(&entry.fact) != row.kind {
        let found = kind(&entry.fact);
        return Err(refuse(id, row, &format!("kind {:?} holds a {found:?} body", row.kind)));
    }
    if entry.key() != row.key || tokens(&entry.fact) != row.tokens {
        return Err(refuse(id, row, &format!("its body is that of {}", entry.key())));
    }
    Ok(entry)
}

/// The entry of row `id`, whose checksum was `found`. Where that fits, the other columns are what
/// was written with the body: they are not made again.
///
/// # Errors
/// [`LedgerError::Store`] naming the row.
pub(super) fn decode_checked(id: i64, row: &Row<'_>, found: i64) -> Result<Entry, LedgerError> {
    if i64::from(row.checksum(id)) != found {
        return Err(refuse(id, row, "its checksum does not fit its content"));
    }
    parse(id, row)
}

fn refuse(id: i64, row: &Row<'_>, why: &str) -> LedgerError {
    LedgerError::Store(format!("entry {id} ({}): {why}", row.key))
}

fn parse(id: i64, row: &Row<'_>) -> Result<Entry, LedgerError> {
    let other = |found| {
        refuse(id, row, &format!("stored as version {found}, this program reads {VERSION}"))
    };
    let body: Body = serde_json::from_str(&row.body).map_err(|error| match version(&row.body) {
        Some(found) if found != VERSION => other(found),
        Some(_) | None => refuse(id, row, &format!("malformed {} body: {error}", row.kind)),
    })?;
    if body.v != VERSION {
        return Err(other(body.v));
    }
    let fact = Fact::from(body.fact);
    Ok(Entry { subject: subject(row.job), at: Millis::new(row.at_ms), fact })
}

/// The number under which the wallet's own entries stand.
const WALLET: u64 = 0;

/// The contract counts from 1: 0 is the wallet.
fn subject(job: u64) -> Subject {
    JobId::new(job).map_or(Subject::Wallet, Subject::Job)
}

impl Row<'_> {
    /// What row `id` must have for a checksum.
    pub fn checksum(&self, id: i64) -> u32 {
        Checksum::new()
            .number(id.cast_unsigned())
            .number(self.job)
            .number(self.at_ms)
            .text(&self.key)
            .text(&self.kind)
            .text(&self.body)
            .finish()
    }
}

/// The name of a fact in the `kind` column.
pub(super) fn kind(fact: &Fact) -> &'static str {
    match fact {
        Fact::JobOpened { .. } => "job_opened",
        Fact::OwnerProven => "owner_proven",
        Fact::TurnStarted(_) => "turn_started",
        Fact::Delivered { .. } => "delivered",
        Fact::TurnEnded { .. } => "turn_ended",
        Fact::TxPrepared { .. } => "tx_prepared",
        Fact::TxRepriced { .. } => "tx_repriced",
        Fact::TxCancelled { .. } => "tx_cancelled",
        Fact::TxIncluded { .. } => "tx_included",
        Fact::TxReorged { .. } => "tx_reorged",
        Fact::TxConfirmed { .. } => "tx_confirmed",
        Fact::TxRejected { .. } => "tx_rejected",
        Fact::JobClosed { .. } => "job_closed",
        Fact::JobReopened { .. } => "job_reopened",
        Fact::JobHalted { .. } => "job_halted",
    }
}

fn tokens(fact: &Fact) -> u64 {
    let Fact::Delivered { ids, .. } = fact else { return 0 };
    u64::try_from(ids.len()).unwrap_or(u64::MAX)
}

fn version(body: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    serde_json::from_str::<Versioned>(body).ok().map(|found| found.v)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    v: u32,
    fact: StoredFact,
}
