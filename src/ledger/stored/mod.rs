//! The stored form of an entry: one row whose body is versioned JSON.
//!
//! Never shared with a wire protocol: these types change only together with [`VERSION`], and a
//! row once written must be readable for ever. Never guesses: an unknown kind, version, field or
//! a key that does not match its body is an error that names the row. Relies on nothing but serde.

mod fact;
mod parts;
#[cfg(test)]
mod tests;
mod text;

use serde::{Deserialize, Serialize};

use crate::billing::{Entry, Fact, Subject};
use crate::ledger::LedgerError;
use crate::units::{JobId, Millis};
use fact::StoredFact;

/// Version of the bodies this program writes, and the only one it reads.
const VERSION: u32 = 1;

/// The columns of one entry besides its row id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// [`Entry::key`].
    pub key: String,
    /// The job; 0 for the wallet.
    pub job: u64,
    /// Wall-clock milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Name of the fact.
    pub kind: String,
    /// Tokens this entry adds to what was delivered; 0 for all but deliveries.
    pub tokens: u64,
    /// The fact as versioned JSON.
    pub body: String,
}

/// The row of `entry`.
///
/// # Errors
/// [`LedgerError::Store`] when JSON refuses, which no fact makes it do.
pub(super) fn encode(entry: &Entry) -> Result<Row, LedgerError> {
    let body = Body { v: VERSION, fact: StoredFact::from(&entry.fact) };
    let key = entry.key();
    let body = serde_json::to_string(&body)
        .map_err(|error| LedgerError::Store(format!("entry {key} has no stored form: {error}")))?;
    Ok(Row {
        key,
        job: entry.job().map_or(WALLET, JobId::get),
        at_ms: entry.at.get(),
        kind: kind(&entry.fact).to_owned(),
        tokens: tokens(&entry.fact),
        body,
    })
}

/// The entry of row `id`.
///
/// # Errors
/// [`LedgerError::Store`] naming the row, for anything [`encode`] would not have written.
pub(super) fn decode(id: i64, row: &Row) -> Result<Entry, LedgerError> {
    let refuse = |why: String| LedgerError::Store(format!("entry {id} ({}): {why}", row.key));
    let body: Body = serde_json::from_str(&row.body).map_err(|error| match version(&row.body) {
        Some(found) if found != VERSION => {
            refuse(format!("stored as version {found}, this program reads {VERSION}"))
        }
        Some(_) | None => refuse(format!("malformed {} body: {error}", row.kind)),
    })?;
    if body.v != VERSION {
        return Err(refuse(format!("stored as version {}, this program reads {VERSION}", body.v)));
    }
    let fact = Fact::from(body.fact);
    if kind(&fact) != row.kind {
        return Err(refuse(format!("kind {:?} holds a {:?} body", row.kind, kind(&fact))));
    }
    // The contract counts from 1: 0 is the wallet.
    let subject = JobId::new(row.job).map_or(Subject::Wallet, Subject::Job);
    let entry = Entry { subject, at: Millis::new(row.at_ms), fact };
    if entry.key() != row.key || tokens(&entry.fact) != row.tokens {
        return Err(refuse(format!("its body is that of {}", entry.key())));
    }
    Ok(entry)
}

/// The number under which the wallet's own entries stand.
const WALLET: u64 = 0;

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
