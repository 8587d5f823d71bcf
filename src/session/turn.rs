//! The meter of one turn: what was delivered becomes a ledger entry.
//!
//! Never records a token twice or out of order: positions are handed out under one lock together
//! with the ledger's queue place. Never waits. When the last frame and the reply are gone, the
//! turn ends by itself and gives its hold back, whatever way it ended.

use std::sync::{Arc, Mutex, PoisonError};

use metrics::{counter, histogram};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::live::Conversation;
use super::tracker::Tracker;
use crate::billing::{Entry, Fact, Subject, TurnEnd};
use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerError};
use crate::telemetry::LEDGER_APPEND;
use crate::units::{Hash32, JobId, Millis, TokenCount, TurnNo};

/// Where metered tokens go.
#[derive(Clone)]
pub(crate) struct Books {
    pub ledger: Arc<dyn Ledger>,
    pub tracker: Arc<Tracker>,
    pub clock: Arc<dyn Clock>,
}

impl Books {
    /// Appends facts of a job without waiting; the tracker follows once they are durable.
    /// `tokens` of them were in flight. `then` runs after that, whatever the outcome.
    pub fn submit(
        &self,
        job: JobId,
        facts: Vec<Fact>,
        tokens: TokenCount,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<(), LedgerError> {
        self.submit_entries(self.entries(job.into(), facts), tokens, move |result| {
            if let Err(error) = result {
                tracing::error!(%job, %error, "ledger group lost");
            }
            then();
        })
    }

    /// Appends facts of a job or of the wallet and waits until they are durable and the tracker
    /// knows them. Where the caller is cancelled, the tracker follows all the same.
    pub async fn append(
        &self,
        subject: impl Into<Subject>,
        facts: Vec<Fact>,
    ) -> Result<(), LedgerError> {
        let (done, wait) = oneshot::channel();
        let entries = self.entries(subject.into(), facts);
        self.submit_entries(entries, TokenCount::ZERO, move |result| {
            // Nobody waits any more where the caller was cancelled.
            drop(done.send(result));
        })?;
        wait.await.unwrap_or_else(|_| Err(LedgerError::Store("the writer is gone".into())))
    }

    fn submit_entries(
        &self,
        entries: Vec<Entry>,
        tokens: TokenCount,
        then: impl FnOnce(Result<(), LedgerError>) + Send + 'static,
    ) -> Result<(), LedgerError> {
        let (tracker, clock) = (Arc::clone(&self.tracker), Arc::clone(&self.clock));
        let durable = entries.clone();
        let submitted_at = clock.now();
        let on_durable = move |result: Result<(), LedgerError>| {
            histogram!(LEDGER_APPEND).record(seconds_since(submitted_at, clock.now()));
            match &result {
                Ok(()) => settle(&tracker, &durable, tokens, clock.now()),
                Err(LedgerError::Conflict { .. }) if tokens == TokenCount::ZERO => {}
                Err(_) => durable.iter().for_each(|entry| tracker.ledger_lost(entry.subject)),
            }
            then(result);
        };
        self.ledger.submit(entries, Box::new(on_durable))
    }

    fn entries(&self, subject: Subject, facts: Vec<Fact>) -> Vec<Entry> {
        let at = self.clock.unix();
        facts.into_iter().map(|fact| Entry { subject, at, fact }).collect()
    }
}

fn settle(tracker: &Tracker, entries: &[Entry], tokens: TokenCount, now: Millis) {
    counter!("tokens_recorded_total").increment(tokens.get());
    if let Err(fault) = tracker.record(entries, tokens, now) {
        tracing::error!(%fault, "ledger entry does not fit its account");
    }
}

/// A histogram's value; spans are far below 2^53 milliseconds.
#[allow(clippy::cast_precision_loss)]
fn seconds_since(earlier: Millis, now: Millis) -> f64 {
    now.saturating_sub(earlier).get() as f64 / 1_000.0
}

/// Tokens of a frame.
#[derive(Debug, Clone, Default)]
pub(super) struct Framed {
    pub ids: Vec<u32>,
    /// Digests of the states that produced them; none where the engine has none.
    pub states: Vec<Hash32>,
}

impl Framed {
    pub fn push(&mut self, id: u32, state: Option<Hash32>) {
        self.ids.push(id);
        self.states.extend(state);
    }
}

/// What a turn may still do.
#[derive(Debug)]
struct Progress {
    position: u32,
    hold_left: TokenCount,
    /// In frames that were not delivered.
    unsent: TokenCount,
    end: TurnEnd,
    /// Ids delivered, kept only where the turn belongs to a conversation.
    spoken: Vec<u32>,
}

/// The meter of one turn.
pub(super) struct TurnMeter {
    /// `None` in free mode: nothing is metered.
    paid: Option<PaidTurn>,
}

/// What metering needs to know of a paid turn.
pub(super) struct PaidTurn {
    pub books: Books,
    pub job: JobId,
    pub turn: TurnNo,
    /// The prompt, where the turn belongs to a conversation.
    pub conversation: Option<Conversation>,
    progress: Mutex<Progress>,
}

impl PaidTurn {
    pub fn new(books: Books, job: JobId, turn: TurnNo, hold: TokenCount) -> Self {
        let progress = Progress {
            position: 0,
            hold_left: hold,
            unsent: TokenCount::ZERO,
            // A turn that nobody ends was cut off: its client is gone.
            end: TurnEnd::Cancelled,
            spoken: Vec::new(),
        };
        Self { books, job, turn, conversation: None, progress: Mutex::new(progress) }
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TurnMeter {
    pub fn free() -> Arc<Self> {
        Arc::new(Self { paid: None })
    }

    pub fn paid(turn: PaidTurn) -> Arc<Self> {
        Arc::new(Self { paid: Some(turn) })
    }

    /// Tokens went into a frame.
    pub fn framed(&self, tokens: TokenCount) {
        let Some(paid) = &self.paid else { return };
        paid.books.tracker.framed(paid.job, tokens);
        let mut progress = paid.progress();
        progress.unsent = progress.unsent.saturating_add(tokens);
    }

    /// Delivered ids: counted now, recorded as soon as the ledger can. The credit is given back
    /// when they are durable.
    pub fn record(&self, tokens: Framed, credit: Option<OwnedSemaphorePermit>) {
        let Framed { ids, states } = tokens;
        let count = TokenCount::new(u64::try_from(ids.len()).unwrap_or(u64::MAX));
        counter!("tokens_delivered_total").increment(count.get());
        let Some(paid) = &self.paid else { return };
        let mut progress = paid.progress();
        let position = progress.position;
        let delivered = Fact::Delivered { turn: paid.turn, position, ids: ids.clone(), states };
        paid.books.tracker.deliver(paid.job, count);
        progress.hold_left = progress.hold_left.saturating_sub(count);
        progress.unsent = progress.unsent.saturating_sub(count);
        let queued = paid.books.submit(paid.job, vec![delivered], count, move || drop(credit));
        match queued {
            Ok(()) => {
                progress.position =
                    position.saturating_add(u32::try_from(ids.len()).unwrap_or(u32::MAX));
                if paid.conversation.is_some() {
                    progress.spoken.extend(ids);
                }
            }
            // The queue is bounded above all credits, so this means a broken store: the node
            // stops. These tokens are the host's loss, never the client's.
            Err(error) => {
                paid.books.tracker.give_away(paid.job, count);
                if error != LedgerError::Full {
                    paid.books.tracker.ledger_lost(paid.job.into());
                }
                tracing::error!(job = %paid.job, %error, "delivered tokens are lost");
            }
        }
    }

    /// The generation ended for this reason; it is written when the last frame is gone.
    pub fn ended(&self, end: TurnEnd) {
        if let Some(paid) = &self.paid {
            paid.progress().end = end;
        }
    }
}

impl Drop for TurnMeter {
    fn drop(&mut self) {
        let Some(paid) = &self.paid else { return };
        let (end, unused, unsent, spoken) = {
            let mut progress = paid.progress();
            let Progress { hold_left, unsent, end, .. } = *progress;
            (end, hold_left, unsent, std::mem::take(&mut progress.spoken))
        };
        let fact = Fact::TurnEnded { turn: paid.turn, end };
        if let Err(error) = paid.books.submit(paid.job, vec![fact], TokenCount::ZERO, || {}) {
            // The next start ends open turns: only the reason is lost.
            tracing::error!(job = %paid.job, %error, "end of turn not recorded");
        }
        // Where nothing was said the turn did not happen: the client will ask again.
        if let Some(prompt) = paid.conversation.as_ref().filter(|_| !spoken.is_empty()) {
            let ids = prompt.ids.iter().copied().chain(spoken).collect();
            let conversation = Conversation { model: prompt.model.clone(), ids };
            paid.books.tracker.set_conversation(paid.job, conversation);
        }
        let now: Millis = paid.books.clock.now();
        paid.books.tracker.turn_over(paid.job, unused, unsent, now);
    }
}
