//! The money, end to end: sessions, ledger and settlement on a real EVM, under an auditor.

mod auditor;
mod harness;
mod mistakes;
mod tap;
