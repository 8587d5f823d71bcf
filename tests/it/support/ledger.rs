//! What a test asks of a ledger.

use tally::billing::Fact;
use tally::ledger::memory::MemoryLedger;
use tally::units::JobId;

/// Readings of what is durable.
pub trait Tallied {
    /// Everything known of a job, oldest first.
    fn facts(&self, job: JobId) -> Vec<Fact>;

    /// Ids recorded for a job, in order.
    fn ids(&self, job: JobId) -> Vec<u32> {
        let facts = self.facts(job).into_iter();
        let ids = facts.filter_map(|fact| match fact {
            Fact::Delivered { ids, .. } => Some(ids),
            _ => None,
        });
        ids.flatten().collect()
    }

    /// Tokens recorded for a job.
    fn recorded(&self, job: JobId) -> u64 {
        self.ids(job).len() as u64
    }

    /// Turns of a job that have ended.
    fn turns_ended(&self, job: JobId) -> usize {
        let facts = self.facts(job);
        facts.iter().filter(|fact| matches!(fact, Fact::TurnEnded { .. })).count()
    }
}

impl Tallied for MemoryLedger {
    fn facts(&self, job: JobId) -> Vec<Fact> {
        let own = self.entries().into_iter().filter(|entry| entry.job() == Some(job));
        own.map(|entry| entry.fact).collect()
    }
}
