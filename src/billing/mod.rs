//! Accounting rules: what was delivered, held, claimed and is left.
//!
//! Never does I/O and never looks at a clock: a function of its arguments.

mod account;
mod accounts;
pub mod earnings;
mod entry;
mod subject;
mod tx;
mod txs;
mod wallet;

pub use account::{Account, AccountFault, Lost, Terms};
pub use accounts::Accounts;
pub use entry::{
    Attempt, ClaimBody, Decode, Entry, Errand, ErrandKind, Fact, Purpose, RejectReason, SeedOrigin,
    TurnEnd, TurnHeader, TurnNonces,
};
pub use subject::Subject;
pub use tx::{Tx, TxState};
pub use txs::Txs;
pub use wallet::WalletAccount;
