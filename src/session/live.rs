//! One job's live view: its account, what is on its way, and where its session stands.
//!
//! Never touched but under the tracker's guard, and never across an await. Relies on `tracker` for
//! both.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::billing::Account;
use crate::chain::ChainJob;
use crate::units::{Millis, TokenCount};

/// Tokens of a job that may be delivered but not yet durable
/// (docs/spec/marketplace-api.md, "What is billed"). Also the most ids a frame may hold.
pub const CREDIT_TOKENS: usize = 8;

/// What was said over a job's WebSocket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conversation {
    /// Catalog name of the model that it was said with.
    pub model: String,
    /// Ids of prompts and answers; never retokenised.
    pub ids: Vec<u32>,
}

/// Where a session stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Work is accepted.
    Active,
    /// The last connection closed; completion follows after the grace period.
    Draining,
    /// The completion is signed: no more work.
    Settling,
    /// Over on chain.
    Completed,
    /// Stopped until a human looked.
    Halted,
}

/// How long a session may be quiet before it is completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace {
    /// After the last WebSocket connection dropped.
    pub dropped: Millis,
    /// After it closed with code 1000.
    pub closed: Millis,
    /// Where the job never had a WebSocket connection.
    pub idle: Millis,
}

/// A session's state on chain, and when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// As read.
    pub job: ChainJob,
    /// Monotonic time of the reading.
    pub read_at: Millis,
}

/// What the last WebSocket connection's end was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastClose {
    NeverConnected,
    Dropped,
    Clean,
}

pub(super) struct Live {
    pub account: Account,
    pub snapshot: Option<Snapshot>,
    /// The chain spoke of the job since its state was read.
    pub is_outdated: bool,
    /// Delivered and not yet durable.
    pub in_flight: TokenCount,
    /// Delivered and lost before the ledger took them: the client has them, so the deposit buys no
    /// others in their place.
    pub given_away: TokenCount,
    /// Reserved by running requests and not yet delivered.
    pub held: TokenCount,
    /// Those of them that are in frames.
    pub unsent: TokenCount,
    pub credit: Arc<Semaphore>,
    /// Ends running answers: the session is over on chain, or halted.
    pub ended: CancellationToken,
    pub running: u32,
    pub connections: u32,
    pub quiet_since: Millis,
    pub last_close: LastClose,
    pub settling: bool,
    /// The marketplace holds less than this session's deposit: it may never be paid.
    pub is_unfunded: bool,
    /// When the next token of a paced answer may go, monotonic microseconds: a rate of hundreds a
    /// second is no whole number of milliseconds.
    pub pace_next_us: u64,
    /// An entry did not fit the account: what it says is not to be trusted any more.
    pub is_faulty: bool,
    pub turn_next: u32,
    /// The WebSocket conversation so far.
    pub conversation: Conversation,
}

impl Live {
    pub fn new(account: Account, now: Millis) -> Self {
        let turn_next = account.turn_next().get();
        Self {
            account,
            snapshot: None,
            is_outdated: false,
            in_flight: TokenCount::ZERO,
            given_away: TokenCount::ZERO,
            held: TokenCount::ZERO,
            unsent: TokenCount::ZERO,
            credit: Arc::new(Semaphore::new(CREDIT_TOKENS)),
            ended: CancellationToken::new(),
            running: 0,
            connections: 0,
            quiet_since: now,
            last_close: LastClose::NeverConnected,
            settling: false,
            is_unfunded: false,
            pace_next_us: 0,
            is_faulty: false,
            turn_next,
            conversation: Conversation::default(),
        }
    }

    /// Tokens delivered that no block pays for.
    pub fn exposure(&self) -> TokenCount {
        let made = self.account.recorded().saturating_add(self.in_flight);
        made.saturating_sub(self.account.included())
    }

    /// Tokens that are spent or promised, on the scale of the contract's `tokensUsed`.
    pub fn committed(&self) -> TokenCount {
        let before = self.account.terms().map_or(TokenCount::ZERO, |terms| terms.tokens_before);
        let ours = before
            .saturating_add(self.account.recorded())
            .saturating_add(self.in_flight)
            .saturating_add(self.given_away);
        let chain = self.snapshot.as_ref().map_or(TokenCount::ZERO, |seen| seen.job.tokens_used);
        ours.max(chain).saturating_add(self.held)
    }

    pub fn is_quiet(&self, now: Millis, grace: Grace) -> bool {
        let wait = match self.last_close {
            LastClose::NeverConnected => grace.idle,
            LastClose::Dropped => grace.dropped,
            LastClose::Clean => grace.closed,
        };
        let quiet = now.saturating_sub(self.quiet_since);
        self.running == 0 && self.connections == 0 && quiet >= wait
    }

    /// Whether nothing more is done for it: halted, or over on chain. Asked for with every token,
    /// so it looks at no transaction.
    pub fn is_over(&self) -> bool {
        self.is_faulty || self.account.halted().is_some() || self.account.is_closed()
    }

    pub fn phase(&self) -> Phase {
        if self.is_faulty || self.account.halted().is_some() {
            Phase::Halted
        } else if self.account.is_closed() {
            Phase::Completed
        } else if self.settling || self.account.completion().is_some() {
            Phase::Settling
        } else if self.running == 0
            && self.connections == 0
            && self.last_close != LastClose::NeverConnected
        {
            Phase::Draining
        } else {
            Phase::Active
        }
    }
}
