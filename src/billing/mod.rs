//! Accounting rules: what was delivered, held, claimed and is left.
//!
//! Never does I/O and never looks at a clock: a function of its arguments.

mod account;
mod entry;
mod tx;

pub use account::{Account, AccountFault, Terms};
pub use entry::{
    Attempt, ClaimBody, Entry, Fact, Purpose, RejectReason, SeedOrigin, TurnEnd, TurnHeader,
};
pub use tx::{Tx, TxState};
