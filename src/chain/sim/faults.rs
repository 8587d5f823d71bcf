//! How a node's endpoint misbehaves, for as long as a simulation leaves it so.
//!
//! Never lies about what several endpoints must agree on (receipts, the newest block): that the
//! node asks more than one of them is another layer's work. Each lie here passes: the same
//! question is answered truly the next time.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Chances are in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// Nothing is answered.
    pub is_down: bool,
    /// A question is not answered.
    pub errors: u64,
    /// Answers are this many blocks old, or fewer.
    pub lag_max: u64,
    /// All answers are `lag_max` blocks old: one slow endpoint, not several.
    pub lag_is_steady: bool,
    /// An answer is wrong: a job that is not known or as it was long ago, a transaction that is not
    /// found, a nonce from the future, an event that is not told.
    pub lies: u64,
    /// What is pending is not shown.
    pub hides_pool: bool,
    /// A call takes its time before it acts, and again before it answers.
    pub waits: u64,
    /// A broadcast is accepted and forgotten.
    pub loses: u64,
    /// A broadcast is taken, and the answer lost.
    pub times_out: u64,
    /// A broadcast is not taken, and the answer lost.
    pub is_silent: u64,
    /// A broadcast is accepted and reaches the pool some blocks later.
    pub delays: u64,
    /// A broadcast reaches the pool twice, the second time some blocks later.
    pub duplicates: u64,
    /// A broadcast is refused for no reason.
    pub refuses: u64,
}

/// Gives way this many times before it is ready: a place where a run may go another way.
pub(super) struct Wait(pub u64);

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
