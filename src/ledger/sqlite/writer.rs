//! The writer thread: takes what is queued, commits it as one transaction, then acknowledges.
//!
//! Never acknowledges before the commit returned, never lets one group's conflict touch another,
//! never goes on after the store failed. Groups are written and acknowledged in queue order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;

use rusqlite::{Connection, OptionalExtension, Statement, Transaction, TransactionBehavior};

use super::reader::read_row;
use super::turns::{DELIVERED_IN_RANGE, Span, TurnEnds};
use super::{LedgerCounts, stored};
use crate::billing::{Entry, Fact};
use crate::ledger::{LedgerError, OnDurable};
use crate::telemetry::LEDGER_GROUPS;

/// One submitted group.
pub(super) struct Group {
    pub entries: Vec<Entry>,
    pub on_durable: OnDurable,
}

/// What the writer tells the rest of the process.
#[derive(Debug)]
pub(super) struct Shared {
    healthy: AtomicBool,
    commits: AtomicU64,
    groups: AtomicU64,
    entries: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            healthy: AtomicBool::new(true),
            commits: AtomicU64::new(0),
            groups: AtomicU64::new(0),
            entries: AtomicU64::new(0),
        }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    pub(super) fn counts(&self) -> LedgerCounts {
        LedgerCounts {
            commits: self.commits.load(Ordering::Relaxed),
            groups: self.groups.load(Ordering::Relaxed),
            entries: self.entries.load(Ordering::Relaxed),
        }
    }
}

/// State of the writer thread.
pub(super) struct Writer {
    turns: TurnEnds,
    group_max: usize,
    shared: Arc<Shared>,
}

/// The writer's statements, prepared once.
struct Statements<'c> {
    find: Statement<'c>,
    in_range: Statement<'c>,
    insert: Statement<'c>,
    savepoint: Statement<'c>,
    release: Statement<'c>,
    roll_back: Statement<'c>,
}

impl<'c> Statements<'c> {
    fn prepare(db: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            find: db.prepare(
                "SELECT id, key, job, at_ms, kind, tokens, body FROM entries WHERE key = ?1",
            )?,
            in_range: db.prepare(DELIVERED_IN_RANGE)?,
            insert: db.prepare(
                "INSERT INTO entries (key, job, at_ms, kind, tokens, body) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?,
            savepoint: db.prepare("SAVEPOINT entry_group")?,
            release: db.prepare("RELEASE entry_group")?,
            roll_back: db.prepare("ROLLBACK TO entry_group")?,
        })
    }

    fn find(&mut self, key: &str) -> rusqlite::Result<Option<(i64, stored::Row)>> {
        self.find.query_row([key], read_row).optional()
    }

    fn insert(&mut self, row: &stored::Row) -> rusqlite::Result<()> {
        let (job, at_ms, tokens) =
            (row.job.cast_signed(), row.at_ms.cast_signed(), row.tokens.cast_signed());
        self.insert.execute((&row.key, job, at_ms, &row.kind, tokens, &row.body)).map(drop)
    }
}

/// Marks the ledger broken when the thread ends in any way but an ordered shutdown.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.healthy.store(false, Ordering::Release);
        }
    }
}

/// What became of a group that the store could handle.
enum Fate {
    Written { new: u64 },
    Conflict { key: String },
}

impl Writer {
    pub(super) fn new(group_max: usize, shared: Arc<Shared>) -> Self {
        Self { turns: TurnEnds::default(), group_max: group_max.max(1), shared }
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self, connection: &Connection, queue: &Receiver<Group>) {
        let _alarm = Alarm(Arc::clone(&self.shared));
        let mut statements = Statements::prepare(connection).map_err(|error| error.to_string());
        while let Ok(first) = queue.recv() {
            // Whatever waited during the last sync shares the next one.
            let mut groups = vec![first];
            while groups.len() < self.group_max {
                let Ok(group) = queue.try_recv() else { break };
                groups.push(group);
            }
            let written = match &mut statements {
                Ok(statements) => self.write(connection, statements, &groups),
                Err(error) => Err(error.clone()),
            };
            self.answer(groups, written);
        }
    }

    fn answer(&self, groups: Vec<Group>, written: Result<Vec<Fate>, String>) {
        match written {
            Ok(fates) => self.acknowledge(groups, fates),
            Err(why) => {
                if self.shared.healthy.swap(false, Ordering::AcqRel) {
                    tracing::error!(why, groups = groups.len(), "the ledger cannot be written");
                }
                let error = LedgerError::Store(why);
                for group in groups {
                    (group.on_durable)(Err(error.clone()));
                }
            }
        }
    }

    fn acknowledge(&self, groups: Vec<Group>, fates: Vec<Fate>) {
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        self.shared.groups.fetch_add(fates.len() as u64, Ordering::Relaxed);
        metrics::counter!(LEDGER_GROUPS).increment(fates.len() as u64);
        for (group, fate) in groups.into_iter().zip(fates) {
            match fate {
                Fate::Written { new } => {
                    self.shared.entries.fetch_add(new, Ordering::Relaxed);
                    (group.on_durable)(Ok(()));
                }
                Fate::Conflict { key } => (group.on_durable)(Err(LedgerError::Conflict { key })),
            }
        }
    }

    /// One transaction, hence one sync, for all groups.
    fn write(
        &mut self,
        connection: &Connection,
        statements: &mut Statements<'_>,
        groups: &[Group],
    ) -> Result<Vec<Fate>, String> {
        if !self.shared.is_healthy() {
            return Err("the store failed earlier".into());
        }
        let transaction =
            Transaction::new_unchecked(connection, TransactionBehavior::Immediate).map_err(text)?;
        let mut fates = Vec::with_capacity(groups.len());
        for group in groups {
            fates.push(append(statements, &mut self.turns, &group.entries)?);
        }
        transaction.commit().map_err(text)?;
        Ok(fates)
    }
}

fn text(error: rusqlite::Error) -> String {
    error.to_string()
}

/// Appends one group, all or nothing.
fn append(db: &mut Statements<'_>, turns: &mut TurnEnds, group: &[Entry]) -> Result<Fate, String> {
    db.savepoint.execute([]).map_err(text)?;
    let mut new = 0;
    for entry in group {
        match append_entry(db, turns, entry)? {
            Appended::New => new += 1,
            Appended::Known => {}
            Appended::Conflict => {
                // What the group taught us about its turns goes with it.
                db.roll_back.execute([]).map_err(text)?;
                db.release.execute([]).map_err(text)?;
                forget(turns, group);
                return Ok(Fate::Conflict { key: entry.key() });
            }
        }
    }
    db.release.execute([]).map_err(text)?;
    Ok(Fate::Written { new })
}

enum Appended {
    New,
    Known,
    Conflict,
}

fn append_entry(
    db: &mut Statements<'_>,
    turns: &mut TurnEnds,
    entry: &Entry,
) -> Result<Appended, String> {
    let row = stored::encode(entry).map_err(|error| error.to_string())?;
    if let Some((id, known)) = db.find(&row.key).map_err(text)? {
        let known = stored::decode(id, &known).map_err(|error| error.to_string())?;
        // The time of a repeat differs and means nothing: the first one stands.
        let same = known.fact == entry.fact;
        return Ok(if same { Appended::Known } else { Appended::Conflict });
    }
    let span = delivered_span(entry);
    if let Some(span) = span
        && turns.overlaps(&mut db.in_range, span).map_err(text)?
    {
        return Ok(Appended::Conflict);
    }
    db.insert(&row).map_err(text)?;
    if let Some(span) = span {
        turns.extend(span);
    }
    if let Fact::TurnEnded { turn, .. } = &entry.fact {
        turns.forget(entry.subject, *turn);
    }
    Ok(Appended::New)
}

fn delivered_span(entry: &Entry) -> Option<Span> {
    let Fact::Delivered { turn, position, ids } = &entry.fact else { return None };
    let count = u64::try_from(ids.len()).unwrap_or(u64::MAX);
    Some(Span { subject: entry.subject, turn: *turn, start: u64::from(*position), count })
}

fn forget(turns: &mut TurnEnds, group: &[Entry]) {
    for span in group.iter().filter_map(delivered_span) {
        turns.forget(span.subject, span.turn);
    }
}
