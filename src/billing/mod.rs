//! Accounting rules: what was delivered, held, claimed and is left.
//!
//! Never does I/O and never looks at a clock: a function of its arguments.

mod entry;

pub use entry::{
    Attempt, ClaimBody, Entry, Fact, Purpose, RejectReason, SeedOrigin, TurnEnd, TurnHeader,
};
