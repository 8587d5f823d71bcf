//! Pacing: an answer whose job has too much unclaimed goes on at the rate that can be claimed.
//!
//! The contract lets a host claim so many tokens a second (docs/spec/contract.md section 2, rule
//! 5), and an engine makes many times that: without a bound, a client that ends its session takes
//! the difference for free. Never waits for the chain: only the clock is asked.

use super::tracker::Turn;
use super::turn::Books;
use crate::units::{JobId, Millis, TokenCount};
use std::time::Duration;

/// What a host does where a job's unclaimed tokens pass its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// Answers go on at the claimable rate.
    Slow,
    /// New prompts are refused until claims have caught up.
    Refuse,
}

/// How much of a job's work may be unclaimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExposureRule {
    /// Tokens delivered and in no block that a job may have.
    pub tokens_max: TokenCount,
    /// What happens beyond it.
    pub beyond: Beyond,
}

/// One answer's place in its job's pace.
pub(super) struct Pace {
    books: Books,
    job: JobId,
    tokens_max: TokenCount,
    /// When the next token may go; kept over a cancelled wait, so that none is waited for twice.
    slot: Option<Millis>,
}

impl Pace {
    pub fn new(books: Books, job: JobId, tokens_max: TokenCount) -> Self {
        Self { books, job, tokens_max, slot: None }
    }

    /// Waits for the next token's turn, where the job is beyond its limit. Cancel-safe. How many
    /// tokens may go now: one where they take turns, else what is left of the limit.
    pub async fn turn(&mut self) -> TokenCount {
        let now = self.books.clock.now();
        if self.slot.is_none() {
            match self.books.tracker.pace(self.job, self.tokens_max, now) {
                Turn::Now(room) => return room,
                Turn::At(slot) => self.slot = Some(slot),
            }
        }
        let wait = self.slot.map_or(Millis::ZERO, |slot| slot.saturating_sub(now));
        if wait > Millis::ZERO {
            self.books.clock.sleep(Duration::from_millis(wait.get())).await;
        }
        TokenCount::new(1)
    }

    /// A token went.
    pub fn went(&mut self) {
        self.slot = None;
    }
}
