//! All accounts of a ledger: what a replay gives.
//!
//! Never decides what a fault means: it says whose entry does not fit.

use std::collections::BTreeMap;

use super::{Account, AccountFault, Entry, Subject, WalletAccount};
use crate::units::JobId;

/// Every job's account, and the wallet's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accounts {
    /// By job.
    pub jobs: BTreeMap<JobId, Account>,
    /// The wallet's own.
    pub wallet: WalletAccount,
}

impl Accounts {
    /// Adds one fact to the account it belongs to.
    ///
    /// # Errors
    /// [`AccountFault`] when the fact does not fit; that account is unchanged then.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), AccountFault> {
        match entry.subject {
            Subject::Wallet => self.wallet.apply(entry),
            Subject::Job(job) => {
                self.jobs.entry(job).or_insert_with(|| Account::new(job)).apply(entry)
            }
        }
    }
}
