//! The money, end to end: sessions, ledger and settlement on a real EVM, under an auditor.

pub mod auditor;
mod claims;
mod completion;
mod crashes;
pub mod harness;
mod mistakes;
mod random;
mod session;
mod sim;
pub mod tap;
