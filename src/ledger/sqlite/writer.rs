//! The writer thread: takes what is queued, commits it as one transaction, then acknowledges.
//!
//! Never acknowledges before the commit returned, never lets one group's conflict touch another,
//! never goes on after the store failed. Groups are written and acknowledged in queue order.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};

use rusqlite::{Connection, OptionalExtension, Statement, Transaction, TransactionBehavior};

use super::LedgerCounts;
use super::file::in_words;
use super::rows::{self, delivery_columns, text_columns};
use super::stored::{self, Delivery};
use super::turns::{DELIVERED_IN_TURN, Span, TurnEnds};
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
    failure: OnceLock<String>,
    commits: AtomicU64,
    groups: AtomicU64,
    entries: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            healthy: AtomicBool::new(true),
            failure: OnceLock::new(),
            commits: AtomicU64::new(0),
            groups: AtomicU64::new(0),
            entries: AtomicU64::new(0),
        }
    }

    /// No entry is taken any more, for this reason. True for the first who says so.
    pub(super) fn fail(&self, why: &str) -> bool {
        let is_first = self.failure.set(why.to_owned()).is_ok();
        self.healthy.store(false, Ordering::Release);
        is_first
    }

    /// Why no entry is taken any more.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
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

/// The writer's statements, prepared once, and the row id that comes next.
struct Statements<'c> {
    find_text: Statement<'c>,
    find_delivery: Statement<'c>,
    in_turn: Statement<'c>,
    insert_text: Statement<'c>,
    insert_delivery: Statement<'c>,
    savepoint: Statement<'c>,
    release: Statement<'c>,
    roll_back: Statement<'c>,
    id_next: i64,
}

impl<'c> Statements<'c> {
    fn prepare(db: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            find_text: db.prepare(concat!(text_columns!(), " WHERE key = ?1"))?,
            find_delivery: db.prepare(concat!(
                delivery_columns!(),
                " WHERE job = ?1 AND turn = ?2 AND position = ?3"
            ))?,
            in_turn: db.prepare(DELIVERED_IN_TURN)?,
            insert_text: db.prepare(rows::INSERT_TEXT)?,
            insert_delivery: db.prepare(rows::INSERT_DELIVERY)?,
            savepoint: db.prepare("SAVEPOINT entry_group")?,
            release: db.prepare("RELEASE entry_group")?,
            roll_back: db.prepare("ROLLBACK TO entry_group")?,
            id_next: rows::last_id(db)?.saturating_add(1),
        })
    }

    fn find_text(&mut self, key: &str) -> Result<Option<Entry>, String> {
        let found = self.find_text.query_row([key], rows::text_entry).optional();
        known(found)
    }

    fn find_delivery(&mut self, wanted: &Delivery<'_>) -> Result<Option<Entry>, String> {
        let place = (wanted.job.cast_signed(), wanted.turn, wanted.position);
        let found = self.find_delivery.query_row(place, rows::delivery_entry).optional();
        known(found)
    }

    fn insert_text(&mut self, row: &stored::Row<'_>) -> Result<(), String> {
        rows::insert_text(&mut self.insert_text, self.id_next, row).map_err(text)?;
        self.id_next = self.id_next.saturating_add(1);
        Ok(())
    }

    fn insert_delivery(&mut self, row: &Delivery<'_>) -> Result<(), String> {
        rows::insert_delivery(&mut self.insert_delivery, self.id_next, row).map_err(text)?;
        self.id_next = self.id_next.saturating_add(1);
        Ok(())
    }
}

type Found = rusqlite::Result<Option<(i64, Result<Entry, LedgerError>)>>;

fn known(found: Found) -> Result<Option<Entry>, String> {
    let found = found.map_err(text)?.map(|(_, entry)| entry);
    found.transpose().map_err(|error| error.to_string())
}

/// Marks the ledger broken when the thread ends in any way but an ordered shutdown.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail("its writer panicked");
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
        let mut statements = Statements::prepare(connection).map_err(text);
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
                if self.shared.fail(&why) {
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
    in_words(&error)
}

/// Appends one group, all or nothing.
fn append(db: &mut Statements<'_>, turns: &mut TurnEnds, group: &[Entry]) -> Result<Fate, String> {
    // A group of one is refused before it wrote anything: there is nothing to take back.
    let may_roll_back = group.len() > 1;
    if may_roll_back {
        db.savepoint.execute([]).map_err(text)?;
    }
    let (mut new, id_before) = (0, db.id_next);
    for entry in group {
        match append_entry(db, turns, entry)? {
            Appended::New => new += 1,
            Appended::Known => {}
            Appended::Conflict => {
                if may_roll_back {
                    db.roll_back.execute([]).map_err(text)?;
                    db.release.execute([]).map_err(text)?;
                }
                // What the group taught us about its turns goes with it.
                db.id_next = id_before;
                forget(turns, group);
                return Ok(Fate::Conflict { key: entry.key() });
            }
        }
    }
    if may_roll_back {
        db.release.execute([]).map_err(text)?;
    }
    Ok(Fate::Written { new })
}

enum Appended {
    New,
    Known,
    Conflict,
}

impl Appended {
    /// The time of a repeat differs and means nothing: the first one stands.
    fn again(known: &Entry, entry: &Entry) -> Self {
        if known.fact == entry.fact { Self::Known } else { Self::Conflict }
    }
}

fn append_entry(
    db: &mut Statements<'_>,
    turns: &mut TurnEnds,
    entry: &Entry,
) -> Result<Appended, String> {
    if let Some(delivery) = Delivery::of(entry) {
        return append_delivery(db, turns, (entry, &delivery));
    }
    let row = stored::encode(entry).map_err(|error| error.to_string())?;
    if let Some(known) = db.find_text(&row.key)? {
        return Ok(Appended::again(&known, entry));
    }
    db.insert_text(&row)?;
    if let Fact::TurnEnded { turn, .. } = &entry.fact {
        turns.forget(row.job, turn.get());
    }
    Ok(Appended::New)
}

fn append_delivery(
    db: &mut Statements<'_>,
    turns: &mut TurnEnds,
    (entry, delivery): (&Entry, &Delivery<'_>),
) -> Result<Appended, String> {
    let span = Span::of(delivery);
    // Nearly every delivery continues its turn: nothing need be looked up then.
    if !turns.is_next(span) {
        if let Some(known) = db.find_delivery(delivery)? {
            return Ok(Appended::again(&known, entry));
        }
        if turns.overlaps(&mut db.in_turn, span).map_err(text)? {
            return Ok(Appended::Conflict);
        }
    }
    db.insert_delivery(delivery)?;
    turns.extend(span);
    Ok(Appended::New)
}

fn forget(turns: &mut TurnEnds, group: &[Entry]) {
    for delivery in group.iter().filter_map(Delivery::of) {
        turns.forget(delivery.job, delivery.turn);
    }
}
