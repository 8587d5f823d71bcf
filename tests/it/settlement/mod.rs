//! The money, end to end: sessions, ledger and settlement on a real EVM, under an auditor.

pub mod auditor;
mod claims;
mod completion;
mod crashes;
mod harness;
mod mistakes;
mod random;
mod restored;
mod session;
mod sim;
mod tap;
