//! The live view of every job: one place, shared by all front-ends and by settlement.
//!
//! Never hands out a guard: every method takes and returns values, so nothing is locked across an
//! await. Never resets a count: what was recorded only grows, over prompts, connections and
//! protocols, and a restart rebuilds it from the ledger. Relies on the map being private here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use super::live::{Conversation, Grace, LastClose, Live, Phase, Snapshot};
use crate::billing::{Account, AccountFault, Entry, Subject, WalletAccount};
use crate::chain::JobStatus;
use crate::units::{Address, Amount, JobId, Millis, TokenCount, TurnNo};

/// When the next token of a job may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Go {
    /// So many at once, at least 1.
    Now(TokenCount),
    /// One, at this monotonic time.
    At(Millis),
}

/// Tokens a request may make, and whether that is fewer than asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub tokens: TokenCount,
    pub is_short: bool,
}

/// What an admitted request was given.
#[derive(Debug)]
pub(super) struct Reservation {
    pub hold: Hold,
    pub turn: TurnNo,
    pub credit: Arc<Semaphore>,
    pub ended: CancellationToken,
}

/// Why nothing was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReserveError {
    /// The session is over or being completed.
    Closed,
    /// A human must look first.
    Halted,
    /// The deposit buys nothing beyond what is held.
    Spent,
    /// The plain-access cap is reached.
    Capped,
    /// Too much of the job is unclaimed.
    Exposed,
    /// The marketplace could not pay this session.
    Unfunded,
}

/// All live jobs, and the wallet's own account.
#[derive(Default)]
pub struct Tracker {
    live: DashMap<JobId, Live>,
    wallet: Mutex<WalletAccount>,
    /// Monotonic milliseconds of settlement's last whole look at the chain, plus 1; 0 for none.
    chain_seen_at: AtomicU64,
    /// Unclaimed tokens of a job that wake settlement; 0 for never.
    wake_at: AtomicU64,
    claim_due: Notify,
}

impl Tracker {
    /// Takes over an account rebuilt from the ledger.
    pub fn restore(&self, account: Account, now: Millis) {
        self.live.insert(account.job(), Live::new(account, now));
    }

    /// Takes over the wallet's account rebuilt from the ledger.
    pub fn restore_wallet(&self, account: WalletAccount) {
        *self.lock_wallet() = account;
    }

    /// A copy of the wallet's own account.
    #[must_use]
    pub fn wallet(&self) -> WalletAccount {
        self.lock_wallet().clone()
    }

    fn lock_wallet(&self) -> MutexGuard<'_, WalletAccount> {
        self.wallet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All jobs, in order.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<JobId> = self.live.iter().map(|entry| *entry.key()).collect();
        jobs.sort_unstable();
        jobs
    }

    /// Jobs whose account a question picks, in order. The question also hears whether the session
    /// has been quiet for its grace period. Nothing may be locked by it.
    pub fn jobs_where(
        &self,
        now: Millis,
        grace: Grace,
        wanted: impl Fn(&Account, bool) -> bool,
    ) -> Vec<JobId> {
        let picked =
            self.live.iter().filter(|live| wanted(&live.account, live.is_quiet(now, grace)));
        let mut jobs: Vec<JobId> = picked.map(|live| *live.key()).collect();
        jobs.sort_unstable();
        jobs
    }

    /// Shows every account, in no order. Nothing may be locked by `each`.
    pub fn each(&self, mut each: impl FnMut(&Account)) {
        self.live.iter().for_each(|live| each(&live.account));
    }

    /// The sum of a count over all accounts.
    #[must_use]
    pub fn sum(&self, count: impl Fn(&Account) -> usize) -> usize {
        self.live.iter().map(|live| count(&live.account)).sum()
    }

    /// Settlement has read everything up to the newest block: what no event spoke of stands.
    pub fn chain_seen(&self, now: Millis) {
        self.chain_seen_at.store(now.get().saturating_add(1), Ordering::Release);
    }

    /// When settlement last did; `None` before its first look.
    pub(super) fn chain_seen_at(&self) -> Option<Millis> {
        self.chain_seen_at.load(Ordering::Acquire).checked_sub(1).map(Millis::new)
    }

    /// Unclaimed tokens of a job from which settlement wants to be woken.
    pub fn wake_at(&self, tokens: TokenCount) {
        self.wake_at.store(tokens.get(), Ordering::Release);
    }

    /// Completes when a job has come to have so many.
    pub async fn claim_due(&self) {
        self.claim_due.notified().await;
    }

    /// Tokens of a job that are recorded and in no claim.
    #[must_use]
    pub fn unclaimed(&self, job: JobId) -> Option<TokenCount> {
        self.live.get(&job).map(|live| live.account.unclaimed())
    }

    /// A copy of a job's account.
    #[must_use]
    pub fn account(&self, job: JobId) -> Option<Account> {
        self.live.get(&job).map(|live| live.account.clone())
    }

    /// The job's state on chain, as last read; `None` where the chain spoke of it since.
    #[must_use]
    pub fn snapshot(&self, job: JobId) -> Option<Snapshot> {
        let live = self.live.get(&job)?;
        live.snapshot.clone().filter(|_| !live.is_outdated)
    }

    /// The chain spoke of a job: what was read of it before is not relied on.
    pub fn outdate(&self, job: JobId) {
        if let Some(mut live) = self.live.get_mut(&job) {
            live.is_outdated = true;
        }
    }

    /// Keeps a reading of the chain, unless a newer one is held. Only jobs that are tracked have
    /// one.
    pub fn observe(&self, snapshot: Snapshot) {
        if let Some(mut live) = self.live.get_mut(&snapshot.job.id) {
            if live.snapshot.as_ref().is_some_and(|held| held.read_at > snapshot.read_at) {
                return;
            }
            match snapshot.job.status {
                // A reorg may bring a session back to life.
                JobStatus::Active if live.phase() != Phase::Halted => {
                    if live.ended.is_cancelled() {
                        live.ended = CancellationToken::new();
                    }
                }
                JobStatus::Active => {}
                JobStatus::Completed | JobStatus::TimedOut | JobStatus::Ended(_) => {
                    live.ended.cancel();
                }
            }
            live.snapshot = Some(snapshot);
            live.is_outdated = false;
        }
    }

    /// Where the session stands.
    #[must_use]
    pub fn phase(&self, job: JobId) -> Option<Phase> {
        self.live.get(&job).map(|live| live.phase())
    }

    /// Sessions that are not over.
    #[must_use]
    pub fn count_open(&self) -> usize {
        self.live.iter().filter(|live| !live.account.is_closed()).count()
    }

    /// Tokens the deposit still buys beyond everything spent or promised.
    #[must_use]
    pub fn left(&self, job: JobId, affordable: TokenCount) -> TokenCount {
        let committed = self.live.get(&job).map_or(TokenCount::ZERO, |live| live.committed());
        affordable.saturating_sub(committed)
    }

    /// Whether the session has been quiet for its grace period, so that it may be completed.
    #[must_use]
    pub fn is_quiet(&self, job: JobId, now: Millis, grace: Grace) -> bool {
        self.live.get(&job).is_some_and(|live| live.is_quiet(now, grace))
    }

    /// Whether an answer runs, or tokens are on their way to the ledger.
    #[must_use]
    pub fn is_busy(&self, job: JobId) -> bool {
        let of = |live: dashmap::mapref::one::Ref<'_, JobId, Live>| {
            live.running > 0 || live.in_flight > TokenCount::ZERO
        };
        self.live.get(&job).is_some_and(of)
    }

    /// Closes the door for new requests before a completion is signed. False where a request
    /// runs: the session is alive again.
    pub fn begin_settling(&self, job: JobId) -> bool {
        let Some(mut live) = self.live.get_mut(&job) else { return false };
        live.settling = live.running == 0 && live.in_flight == TokenCount::ZERO;
        live.settling
    }

    /// Opens the door again: no completion was signed.
    pub fn abort_settling(&self, job: JobId) {
        if let Some(mut live) = self.live.get_mut(&job) {
            live.settling = false;
        }
    }

    /// A WebSocket connection speaks for the job. False where the job is not tracked yet; the
    /// connection is not counted then and must not be given back.
    pub(super) fn connect(&self, job: JobId) -> bool {
        let Some(mut live) = self.live.get_mut(&job) else { return false };
        live.connections = live.connections.saturating_add(1);
        true
    }

    /// A WebSocket connection of the job is gone.
    pub(super) fn disconnect(&self, job: JobId, clean: bool, now: Millis) {
        if let Some(mut live) = self.live.get_mut(&job) {
            live.connections = live.connections.saturating_sub(1);
            live.quiet_since = now;
            live.last_close = if clean { LastClose::Clean } else { LastClose::Dropped };
        }
    }

    /// Reserves up to `wanted` tokens for one request; never more than the deposit buys.
    pub(super) fn reserve(
        &self,
        job: JobId,
        wanted: TokenCount,
        limits: ReserveLimits,
    ) -> Result<Reservation, ReserveError> {
        let Some(mut live) = self.live.get_mut(&job) else { return Err(ReserveError::Closed) };
        match live.phase() {
            Phase::Active | Phase::Draining => {}
            Phase::Settling | Phase::Completed => return Err(ReserveError::Closed),
            Phase::Halted => return Err(ReserveError::Halted),
        }
        if live.ended.is_cancelled() {
            return Err(ReserveError::Closed);
        }
        if live.is_unfunded {
            return Err(ReserveError::Unfunded);
        }
        if limits.exposure_max.is_some_and(|max| live.exposure().saturating_add(live.held) >= max) {
            return Err(ReserveError::Exposed);
        }
        let committed = live.committed();
        let mut left = limits.affordable.saturating_sub(committed);
        if left == TokenCount::ZERO {
            return Err(ReserveError::Spent);
        }
        if let Some(cap) = limits.cap {
            left = left.min(cap.saturating_sub(committed));
            if left == TokenCount::ZERO {
                return Err(ReserveError::Capped);
            }
        }
        let tokens = wanted.min(left);
        live.held = live.held.saturating_add(tokens);
        live.running = live.running.saturating_add(1);
        let turn = TurnNo::new(live.turn_next);
        live.turn_next = live.turn_next.saturating_add(1);
        let hold = Hold { tokens, is_short: tokens < wanted };
        let (credit, ended) = (Arc::clone(&live.credit), live.ended.clone());
        Ok(Reservation { hold, turn, credit, ended })
    }

    /// When the job's next token may go, where `max` is what may be unclaimed, unsent tokens
    /// counted. Each slot is given out once.
    pub(super) fn pace(&self, job: JobId, max: TokenCount, now: Millis) -> Go {
        let Some(mut live) = self.live.get_mut(&job) else { return Go::Now(TokenCount::new(1)) };
        let room = max.saturating_sub(live.exposure().saturating_add(live.unsent));
        if room > TokenCount::ZERO {
            return Go::Now(room);
        }
        let rate = live.snapshot.as_ref().map_or(1, |seen| seen.job.rate_per_second).max(1);
        let slot_us = live.pace_next_us.max(now.get().saturating_mul(1_000));
        live.pace_next_us = slot_us.saturating_add(1_000_000_u64.div_ceil(rate));
        Go::At(Millis::new(slot_us.div_ceil(1_000)))
    }

    /// Whether the marketplace holds what this session would be paid from.
    /// True where that is news.
    pub fn set_funded(&self, job: JobId, is_funded: bool) -> bool {
        let Some(mut live) = self.live.get_mut(&job) else { return false };
        std::mem::replace(&mut live.is_unfunded, !is_funded) == is_funded
    }

    /// Deposits of sessions that run, by currency, with the jobs.
    #[must_use]
    pub fn deposits_at_stake(&self) -> BTreeMap<Address, (Amount, Vec<JobId>)> {
        let mut deposits: BTreeMap<Address, (Amount, Vec<JobId>)> = BTreeMap::new();
        for live in &self.live {
            let is_running = !live.ended.is_cancelled() && !live.account.is_closed();
            if let Some(terms) = live.account.terms().filter(|_| is_running) {
                let (sum, jobs) = deposits.entry(terms.payment_token).or_default();
                *sum = sum.saturating_add(terms.deposit);
                jobs.push(*live.key());
            }
        }
        deposits
    }

    /// Tokens of a request's hold are in a frame, on their way to the client.
    pub(super) fn framed(&self, job: JobId, tokens: TokenCount) {
        if let Some(mut live) = self.live.get_mut(&job) {
            live.unsent = live.unsent.saturating_add(tokens);
        }
    }

    /// Tokens moved from a request's hold to the client.
    pub fn deliver(&self, job: JobId, tokens: TokenCount) {
        if let Some(mut live) = self.live.get_mut(&job) {
            live.held = live.held.saturating_sub(tokens);
            live.unsent = live.unsent.saturating_sub(tokens);
            live.in_flight = live.in_flight.saturating_add(tokens);
        }
    }

    /// A group is durable at `now`: the account moves, and `tokens` are no longer in flight. A job
    /// that becomes known by it has been quiet since then, not since the node's start.
    ///
    /// # Errors
    /// [`AccountFault`] where an entry does not fit. The job is halted from then on; the next
    /// start meets the same entry and refuses the ledger.
    pub fn record(
        &self,
        entries: &[Entry],
        tokens: TokenCount,
        now: Millis,
    ) -> Result<(), AccountFault> {
        for entry in entries {
            let Subject::Job(job) = entry.subject else {
                self.lock_wallet().apply(entry)?;
                continue;
            };
            let new = || Live::new(Account::new(job), now);
            let mut live = self.live.entry(job).or_insert_with(new);
            let unclaimed_before = live.account.unclaimed();
            let applied = live.account.apply(entry);
            let wake_at = TokenCount::new(self.wake_at.load(Ordering::Acquire));
            if unclaimed_before < wake_at && live.account.unclaimed() >= wake_at {
                self.claim_due.notify_one();
            }
            if let Err(fault) = applied {
                live.is_faulty = true;
                live.in_flight = live.in_flight.saturating_sub(tokens);
                live.ended.cancel();
                return Err(fault);
            }
            if live.is_over() {
                live.ended.cancel();
                live.conversation = Conversation::default();
            }
            live.turn_next = live.turn_next.max(live.account.turn_next().get());
        }
        if let Some(job) = entries.first().and_then(Entry::job)
            && let Some(mut live) = self.live.get_mut(&job)
        {
            live.in_flight = live.in_flight.saturating_sub(tokens);
        }
        Ok(())
    }

    /// Tokens that were delivered never reached the ledger's queue: the host's loss.
    pub(super) fn give_away(&self, job: JobId, tokens: TokenCount) {
        if let Some(mut live) = self.live.get_mut(&job) {
            live.in_flight = live.in_flight.saturating_sub(tokens);
            live.given_away = live.given_away.saturating_add(tokens);
        }
    }

    /// Tokens of the job could not be recorded: no answer of it says more, and none begins.
    pub(super) fn ledger_lost(&self, subject: Subject) {
        if let Some(live) = subject.job().and_then(|job| self.live.get(&job)) {
            live.credit.close();
        }
    }

    /// A request is over: what it held and did not deliver is free again, `unsent` of it in
    /// frames.
    pub(super) fn turn_over(
        &self,
        job: JobId,
        unused: TokenCount,
        unsent: TokenCount,
        now: Millis,
    ) {
        if let Some(mut live) = self.live.get_mut(&job) {
            live.held = live.held.saturating_sub(unused);
            live.unsent = live.unsent.saturating_sub(unsent);
            live.running = live.running.saturating_sub(1);
            live.quiet_since = now;
        }
    }

    /// Ids of the job's WebSocket conversation with this model so far; none if the last turn was
    /// another model's, whose ids mean other words.
    pub(super) fn conversation(&self, job: JobId, model: &str) -> Vec<u32> {
        let live = self.live.get(&job);
        let conversation = live.map(|live| live.conversation.clone()).unwrap_or_default();
        if conversation.model == model { conversation.ids } else { Vec::new() }
    }

    /// Replaces the conversation by one that ends with the turn just spoken.
    pub(super) fn set_conversation(&self, job: JobId, conversation: Conversation) {
        if let Some(mut live) = self.live.get_mut(&job) {
            live.conversation = conversation;
        }
    }
}

/// Bounds of a reservation, on the scale of the contract's `tokensUsed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ReserveLimits {
    /// Tokens the whole deposit buys.
    pub affordable: TokenCount,
    /// Tokens a plain client may spend of it.
    pub cap: Option<TokenCount>,
    /// Unclaimed tokens from which prompts are refused.
    pub exposure_max: Option<TokenCount>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_goes_on_with_the_model_that_it_was_held_with() {
        let (tracker, job) = (Tracker::default(), JobId::new(7).unwrap());
        tracker.restore(Account::new(job), Millis::new(0));
        assert!(tracker.conversation(job, "one").is_empty());
        let said = Conversation { model: "one".into(), ids: vec![3, 1, 4] };
        tracker.set_conversation(job, said);
        assert_eq!(tracker.conversation(job, "one"), [3, 1, 4]);
        assert!(tracker.conversation(job, "other").is_empty(), "its ids mean other words");
        assert!(tracker.conversation(JobId::new(8).unwrap(), "one").is_empty());
    }
}
