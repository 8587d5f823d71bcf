//! What settlement remembers between ticks, and may forget: patience, not facts.
//!
//! Never decides about money: losing all of this at a restart costs some blocks of waiting.

use std::collections::{BTreeMap, BTreeSet};

use crate::units::{Address, BlockNumber, JobId, Millis, WalletNonce};

/// What a dry run was for: a completion that the chain refuses must not hold up claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A claim.
    Claim,
    /// The completion.
    Complete,
}

/// Patience by job and by transaction.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Since which block ledger and chain disagree about a job.
    differs_since: BTreeMap<JobId, (BlockNumber, u32)>,
    /// Since which block a job is over on chain.
    ended_since: BTreeMap<JobId, BlockNumber>,
    /// Since which block a nonce is used by none of our attempts.
    foreign_since: BTreeMap<WalletNonce, BlockNumber>,
    /// Since when a transaction waits at its present fees.
    waits_since: BTreeMap<WalletNonce, Millis>,
    /// Since which block a nonce below our last is held by nothing of ours.
    gap_since: BTreeMap<WalletNonce, BlockNumber>,
    /// Currencies of which the marketplace held too little at the last sweep.
    pub short_of: BTreeSet<Address>,
    /// Jobs whose difference was told.
    alarmed: BTreeSet<JobId>,
    /// Refused dry runs in a row, and the block before which none is tried again.
    refused: BTreeMap<(JobId, Step), (u32, BlockNumber)>,
    /// The highest block seen.
    head_max: BlockNumber,
    /// A jump of the wallet's nonce, and how often in a row it was seen.
    jump: Option<(WalletNonce, u32)>,
    /// A head far above all others that was seen once.
    leapt: Option<BlockNumber>,
}

impl Watch {
    /// Blocks for which ledger and chain have disagreed about `job`.
    pub fn differs_for(&mut self, job: JobId, head: BlockNumber) -> u64 {
        let (since, looks) = self.differs_since.entry(job).or_insert((head, 0));
        *looks = looks.saturating_add(1);
        age(*since, head)
    }

    /// How many looks in a row they have disagreed.
    pub fn looks(&self, job: JobId) -> u32 {
        self.differs_since.get(&job).map_or(0, |(_, looks)| *looks)
    }

    /// They agree.
    pub fn agrees(&mut self, job: JobId) {
        self.differs_since.remove(&job);
        self.alarmed.remove(&job);
    }

    /// True the first time since they last agreed.
    pub fn alarm_once(&mut self, job: JobId) -> bool {
        self.alarmed.insert(job)
    }

    /// A reading at this block was taken.
    pub fn saw_head(&mut self, head: BlockNumber) {
        self.head_max = self.head_max.max(head);
    }

    /// Whether a reading is older than one we had. A head far above all others was a wrong answer.
    pub fn is_behind(&self, head: BlockNumber) -> bool {
        (1..=LAG_BLOCKS_MAX).contains(&age(head, self.head_max))
    }

    /// How often in a row the wallet's nonce was seen at `nonce` or further, this time included: a
    /// key that signs elsewhere moves on between two looks.
    pub fn jumped(&mut self, nonce: WalletNonce) -> u32 {
        let (least, seen) = match self.jump {
            Some((least, seen)) if nonce >= least => (least, seen.saturating_add(1)),
            Some(_) | None => (nonce, 1),
        };
        self.jump = Some((least, seen));
        seen
    }

    /// Whether a head lies so far above all others that it must be seen twice.
    pub fn leaps(&mut self, head: BlockNumber) -> bool {
        let is_far = self.head_max > BlockNumber::ZERO && age(self.head_max, head) > LEAP_BLOCKS;
        let is_news = self.leapt.is_none_or(|at| head < at);
        self.leapt = is_far.then_some(head);
        is_far && is_news
    }

    /// Whether `job` was seen to be over.
    pub fn has_ended(&self, job: JobId) -> bool {
        self.ended_since.contains_key(&job)
    }

    /// The nonce stands where it is explained.
    pub fn no_jump(&mut self) {
        self.jump = None;
    }

    /// Blocks for which `nonce` has been held by nothing of ours.
    pub fn gap_for(&mut self, nonce: WalletNonce, head: BlockNumber) -> u64 {
        age(*self.gap_since.entry(nonce).or_insert(head), head)
    }

    /// It is held.
    pub fn no_gap(&mut self, nonce: WalletNonce) {
        self.gap_since.remove(&nonce);
    }

    /// Blocks for which `job` has been over on chain.
    pub fn ended_for(&mut self, job: JobId, head: BlockNumber) -> u64 {
        age(*self.ended_since.entry(job).or_insert(head), head)
    }

    /// It runs.
    pub fn runs(&mut self, job: JobId) {
        self.ended_since.remove(&job);
    }

    /// Blocks for which `nonce` has been used by none of our attempts.
    pub fn foreign_for(&mut self, nonce: WalletNonce, head: BlockNumber) -> u64 {
        age(*self.foreign_since.entry(nonce).or_insert(head), head)
    }

    /// An attempt of ours may still be mined: whatever was seen of a foreign one was a lagging
    /// endpoint.
    pub fn is_ours(&mut self, nonce: WalletNonce) {
        self.foreign_since.remove(&nonce);
    }

    /// Milliseconds for which a transaction has waited at its present fees.
    pub fn waits_for(&mut self, nonce: WalletNonce, now: Millis) -> Millis {
        now.saturating_sub(*self.waits_since.entry(nonce).or_insert(now))
    }

    /// A transaction moved or has new fees.
    pub fn moved(&mut self, nonce: WalletNonce) {
        self.foreign_since.remove(&nonce);
        self.waits_since.remove(&nonce);
        self.gap_since.remove(&nonce);
    }

    /// Forgets all jobs but these, which are in order.
    pub fn keep(&mut self, jobs: &[JobId]) {
        let is_kept = |job: &JobId| jobs.binary_search(job).is_ok();
        self.differs_since.retain(|job, _| is_kept(job));
        self.ended_since.retain(|job, _| is_kept(job));
        self.alarmed.retain(is_kept);
        self.refused.retain(|(job, _), _| is_kept(job));
    }

    /// Dry runs refused in a row.
    pub fn refusals(&self, job: JobId, step: Step) -> u32 {
        self.refused.get(&(job, step)).map_or(0, |(count, _)| *count)
    }

    /// Whether a dry run may be tried at this head.
    pub fn may_try(&self, job: JobId, step: Step, head: BlockNumber) -> bool {
        self.refused.get(&(job, step)).is_none_or(|(_, until)| head >= *until)
    }

    /// A dry run was refused: the next waits 1, 2, 4 … 64 blocks.
    pub fn refuse(&mut self, job: JobId, step: Step, head: BlockNumber) {
        let count = self.refusals(job, step).saturating_add(1);
        let pause = BlockNumber::new(1 << count.saturating_sub(1).min(6));
        self.refused.insert((job, step), (count, head.saturating_add(pause)));
    }

    /// A dry run passed.
    pub fn accept(&mut self, job: JobId, step: Step) {
        self.refused.remove(&(job, step));
    }
}

/// Blocks that a chain does not make between two looks, but for a long outage.
const LEAP_BLOCKS: u64 = 64;

/// An endpoint further behind than this follows another chain.
const LAG_BLOCKS_MAX: u64 = 256;

/// Blocks since `since`; a head that fell back by a reorg counts as none.
fn age(since: BlockNumber, head: BlockNumber) -> u64 {
    head.saturating_sub(since).get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_dry_runs_wait_longer_each_time_and_start_anew_after_a_pass() {
        let mut watch = Watch::default();
        let (job, at) = (JobId::new(1).unwrap(), BlockNumber::new);
        watch.refuse(job, Step::Claim, at(10));
        assert!(
            !watch.may_try(job, Step::Claim, at(10)) && watch.may_try(job, Step::Claim, at(11))
        );
        watch.refuse(job, Step::Claim, at(11));
        assert!(
            !watch.may_try(job, Step::Claim, at(12)) && watch.may_try(job, Step::Claim, at(13))
        );
        for _ in 0..100 {
            watch.refuse(job, Step::Claim, at(20));
        }
        assert!(watch.may_try(job, Step::Claim, at(84)));
        assert!(watch.may_try(job, Step::Complete, at(0)), "the other step is free");
        watch.accept(job, Step::Claim);
        assert!(watch.may_try(job, Step::Claim, at(0)));
    }

    #[test]
    fn patience_counts_blocks_and_survives_a_falling_head() {
        let mut watch = Watch::default();
        let (job, at) = (JobId::new(1).unwrap(), BlockNumber::new);
        assert_eq!(watch.differs_for(job, at(10)), 0);
        assert_eq!(watch.differs_for(job, at(8)), 0);
        assert_eq!(watch.differs_for(job, at(13)), 3);
        watch.agrees(job);
        assert_eq!(watch.differs_for(job, at(14)), 0);
    }
}
