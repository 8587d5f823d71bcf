//! The ledger in memory, for tests only: the promises of the port, with crashes and failures on
//! demand.
//!
//! Never part of a release. Shares no code with the SQLite adapter, so that one conformance table
//! run over both says something. Acknowledges inside `submit`, or on `release` where it is held.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Ledger, LedgerError, OnDurable};
use crate::billing::{Entry, Fact, Subject};
use crate::units::{JobId, TurnNo};

/// Groups that may wait while the ledger is held, unless told otherwise.
const QUEUE_CAPACITY: usize = 8192;

/// A ledger that forgets when it is dropped.
pub struct MemoryLedger {
    state: Mutex<State>,
}

struct State {
    durable: Vec<Entry>,
    by_key: HashMap<String, usize>,
    spans: HashMap<(Subject, TurnNo), Vec<(u64, u64)>>,
    waiting: VecDeque<(Vec<Entry>, OnDurable)>,
    queue_capacity: usize,
    held: bool,
    draining: bool,
    /// Groups that are still written before one fails; `None` where none is to fail.
    fails_after: Option<usize>,
    healthy: bool,
}

impl Default for MemoryLedger {
    fn default() -> Self {
        Self::with(Vec::new(), Hold::No)
    }
}

enum Hold {
    Yes,
    No,
}

impl MemoryLedger {
    /// An empty ledger that acknowledges inside `submit`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty ledger that acknowledges nothing until [`MemoryLedger::release`].
    #[must_use]
    pub fn held() -> Self {
        Self::with(Vec::new(), Hold::Yes)
    }

    /// Lets at most `groups` wait; one more is refused as full.
    #[must_use]
    pub fn queue_capacity(self, groups: usize) -> Self {
        self.lock().queue_capacity = groups;
        self
    }

    /// Makes durable and acknowledges everything that waits, in order; the ledger stays held.
    pub fn release(&self) {
        self.drain(usize::MAX);
    }

    /// Makes durable and acknowledges the oldest `groups` that wait.
    pub fn release_some(&self, groups: usize) {
        self.drain(groups);
    }

    /// Nothing waits any more: from now on groups are acknowledged inside `submit`.
    pub fn let_go(&self) {
        self.lock().held = false;
        self.drain(usize::MAX);
    }

    /// From now on at most `groups` wait; one more is refused as full.
    pub fn set_queue_capacity(&self, groups: usize) {
        self.lock().queue_capacity = groups;
    }

    /// From now on every group waits for [`MemoryLedger::release`].
    pub fn hold(&self) {
        self.lock().held = true;
    }

    /// The next group that would be written fails as a store does; so does all after it.
    pub fn fail_next(&self) {
        self.fail_after(0);
    }

    /// So many groups are still written, then it fails as a store does.
    pub fn fail_after(&self, groups: usize) {
        self.lock().fails_after = Some(groups);
    }

    /// Groups that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Everything durable, oldest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        self.lock().durable.clone()
    }

    /// What a restart after a crash finds: acknowledged entries and nothing that waited.
    #[must_use]
    pub fn crash(&self) -> Self {
        Self::with(self.entries(), Hold::No)
    }

    /// What a restart after a crash finds where the disk had taken the oldest `groups` that wait
    /// and nobody had been told. Each is there as a whole or not at all: one that was torn is not.
    /// Groups that the store would have refused are not there either. The ledger is held again.
    #[must_use]
    pub fn crash_keeping(&self, groups: usize) -> Self {
        let (durable, waiting) = {
            let state = self.lock();
            let kept = if state.healthy { groups } else { 0 };
            let kept = kept.min(state.fails_after.unwrap_or(usize::MAX));
            let waiting = state.waiting.iter().take(kept).map(|(group, _)| group.clone());
            (state.durable.clone(), waiting.collect::<Vec<_>>())
        };
        let found = Self::with(durable, Hold::Yes);
        for group in waiting {
            // A conflict takes the group away, as it would have.
            drop(found.lock().append(group));
        }
        found
    }

    /// Durable entries from the `at`-th on.
    #[must_use]
    pub fn entries_from(&self, at: usize) -> Vec<Entry> {
        self.lock().durable.get(at..).map_or_else(Vec::new, <[Entry]>::to_vec)
    }

    fn with(entries: Vec<Entry>, hold: Hold) -> Self {
        let mut state = State {
            durable: Vec::new(),
            by_key: HashMap::new(),
            spans: HashMap::new(),
            waiting: VecDeque::new(),
            queue_capacity: QUEUE_CAPACITY,
            held: matches!(hold, Hold::Yes),
            draining: false,
            fails_after: None,
            healthy: true,
        };
        for entry in entries {
            state.insert(entry);
        }
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs callbacks without the lock, so that one may submit again; whoever drains first drains
    /// for all, so that the order of acknowledgements is that of submission.
    fn drain(&self, groups: usize) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.draining, true) {
            return;
        }
        for _ in 0..groups {
            let Some((group, on_durable)) = state.waiting.pop_front() else { break };
            let result = state.append(group);
            drop(state);
            on_durable(result);
            state = self.lock();
        }
        state.draining = false;
    }
}

impl State {
    fn append(&mut self, group: Vec<Entry>) -> Result<(), LedgerError> {
        self.healthy &= self.fails_after != Some(0);
        self.fails_after = self.fails_after.and_then(|left| left.checked_sub(1));
        if !self.healthy {
            return Err(LedgerError::Store("the store failed on demand".into()));
        }
        let before = self.durable.len();
        for entry in group {
            let key = entry.key();
            if let Some(known) = self.by_key.get(&key).and_then(|at| self.durable.get(*at)) {
                if known.fact == entry.fact {
                    continue;
                }
                self.roll_back(before);
                return Err(LedgerError::Conflict { key });
            }
            if self.overlaps(&entry) {
                self.roll_back(before);
                return Err(LedgerError::Conflict { key });
            }
            self.insert(entry);
        }
        Ok(())
    }

    fn overlaps(&self, entry: &Entry) -> bool {
        let Some((turn, start, end)) = span(entry) else { return false };
        let recorded =
            self.spans.get(&(entry.subject, turn)).map(Vec::as_slice).unwrap_or_default();
        recorded.iter().any(|(from, to)| start < *to && *from < end)
    }

    fn insert(&mut self, entry: Entry) {
        if let Some((turn, start, end)) = span(&entry) {
            self.spans.entry((entry.subject, turn)).or_default().push((start, end));
        }
        self.by_key.insert(entry.key(), self.durable.len());
        self.durable.push(entry);
    }

    fn roll_back(&mut self, len: usize) {
        for entry in self.durable.split_off(len) {
            self.by_key.remove(&entry.key());
            let Some((turn, start, end)) = span(&entry) else { continue };
            if let Some(spans) = self.spans.get_mut(&(entry.subject, turn)) {
                spans.retain(|known| *known != (start, end));
            }
        }
    }
}

/// Turn, first position and the one after the last, of a delivery.
fn span(entry: &Entry) -> Option<(TurnNo, u64, u64)> {
    let Fact::Delivered { turn, position, ids, .. } = &entry.fact else { return None };
    let start = u64::from(*position);
    Some((*turn, start, start.saturating_add(u64::try_from(ids.len()).unwrap_or(u64::MAX))))
}

#[async_trait]
impl Ledger for MemoryLedger {
    fn submit(&self, entries: Vec<Entry>, on_durable: OnDurable) -> Result<(), LedgerError> {
        let mut state = self.lock();
        if !state.healthy {
            return Err(LedgerError::Store("the store failed on demand".into()));
        }
        if state.waiting.len() >= state.queue_capacity {
            return Err(LedgerError::Full);
        }
        state.waiting.push_back((entries, on_durable));
        let held = state.held;
        drop(state);
        if !held {
            self.drain(usize::MAX);
        }
        Ok(())
    }

    fn replay(&self, each: &mut dyn FnMut(Entry)) -> Result<(), LedgerError> {
        self.entries().into_iter().for_each(each);
        Ok(())
    }

    async fn job_entries(&self, job: JobId) -> Result<Vec<Entry>, LedgerError> {
        Ok(self.entries().into_iter().filter(|entry| entry.job() == Some(job)).collect())
    }

    fn is_healthy(&self) -> bool {
        self.lock().healthy
    }
}
