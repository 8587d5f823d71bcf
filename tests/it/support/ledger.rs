//! A ledger in memory whose syncs a test may hold back.

use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tally::billing::{Entry, Fact};
use tally::ledger::{Ledger, LedgerError, OnDurable};
use tally::units::JobId;

#[derive(Default)]
struct Inner {
    entries: Vec<Entry>,
    withheld: Option<Vec<(Vec<Entry>, OnDurable)>>,
    is_broken: bool,
}

/// The ledger.
#[derive(Default)]
pub struct BookLedger {
    inner: Mutex<Inner>,
}

impl BookLedger {
    /// Nothing becomes durable until [`Self::sync`].
    pub fn withhold(&self) {
        self.lock().withheld.get_or_insert_default();
    }

    /// Everything is durable, now and from now on.
    pub fn sync(&self) {
        let withheld = self.lock().withheld.take().unwrap_or_default();
        for (entries, on_durable) in withheld {
            self.lock().entries.extend(entries);
            on_durable(Ok(()));
        }
    }

    /// Reports itself broken.
    pub fn break_down(&self) {
        self.lock().is_broken = true;
    }

    /// Ids recorded for a job, in order.
    pub fn ids(&self, job: JobId) -> Vec<u32> {
        let facts = self.facts(job).into_iter();
        let ids = facts.filter_map(|fact| match fact {
            Fact::Delivered { ids, .. } => Some(ids),
            _ => None,
        });
        ids.flatten().collect()
    }

    /// Tokens recorded for a job.
    pub fn recorded(&self, job: JobId) -> u64 {
        self.ids(job).len() as u64
    }

    /// Everything known of a job.
    pub fn facts(&self, job: JobId) -> Vec<Fact> {
        let inner = self.lock();
        let own = inner.entries.iter().filter(|entry| entry.job == job);
        own.map(|entry| entry.fact.clone()).collect()
    }

    /// Turns of a job that have ended.
    pub fn turns_ended(&self, job: JobId) -> usize {
        let facts = self.facts(job);
        facts.iter().filter(|fact| matches!(fact, Fact::TurnEnded { .. })).count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Ledger for BookLedger {
    fn submit(&self, entries: Vec<Entry>, on_durable: OnDurable) -> Result<(), LedgerError> {
        let mut inner = self.lock();
        if let Some(withheld) = &mut inner.withheld {
            withheld.push((entries, on_durable));
            return Ok(());
        }
        inner.entries.extend(entries);
        drop(inner);
        on_durable(Ok(()));
        Ok(())
    }

    fn replay(&self, each: &mut dyn FnMut(Entry)) -> Result<(), LedgerError> {
        let entries = self.lock().entries.clone();
        entries.into_iter().for_each(each);
        Ok(())
    }

    async fn job_entries(&self, job: JobId) -> Result<Vec<Entry>, LedgerError> {
        let inner = self.lock();
        Ok(inner.entries.iter().filter(|entry| entry.job == job).cloned().collect())
    }

    fn is_healthy(&self) -> bool {
        !self.lock().is_broken
    }
}
