//! The money, end to end: sessions, ledger and settlement on a real EVM, under an auditor.

pub mod auditor;
mod calls;
mod cancel;
mod claims;
mod completion;
mod crashes;
mod deaths;
mod deep;
mod exposure;
pub mod harness;
mod latency;
mod line;
mod mistakes;
mod ordering;
mod orders;
mod outage;
mod restored;
mod session;
mod storm;
pub mod tap;
mod terms;
