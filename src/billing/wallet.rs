//! The wallet's own account: transactions that belong to no job.
//!
//! Never edited otherwise than by its ledger entries, as a job's account.

use std::collections::BTreeMap;

use super::txs::Txs;
use super::{AccountFault, Entry, Errand, ErrandKind, Purpose, Subject, Tx, TxState};
use crate::units::{Address, Amount};

/// Fills and errands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WalletAccount {
    txs: Txs,
}

impl WalletAccount {
    /// Its transactions.
    #[must_use]
    pub const fn txs(&self) -> &Txs {
        &self.txs
    }

    /// What was withdrawn for good and is not on its way to its cold address, by currency and
    /// address. A forward counts from its signature on, unless it was rejected.
    #[must_use]
    pub fn to_forward(&self) -> BTreeMap<(Address, Address), Amount> {
        let mut due = BTreeMap::new();
        for tx in self.txs.all() {
            if let Some((token, Some(cold), amount)) = withdrawn(tx) {
                let sum: &mut Amount = due.entry((token, cold)).or_default();
                *sum = sum.saturating_add(amount);
            }
        }
        for tx in self.txs.all() {
            if let Some((token, cold, amount)) = forwarded(tx)
                && let Some(sum) = due.get_mut(&(token, cold))
            {
                *sum = sum.saturating_sub(amount);
            }
        }
        due.retain(|_, amount| *amount > Amount::ZERO);
        due
    }

    /// Adds one fact.
    ///
    /// # Errors
    /// [`AccountFault`] when the fact does not fit; the account is unchanged then.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), AccountFault> {
        let fault = |what| AccountFault { subject: Subject::Wallet, what };
        match self.txs.apply(&entry.fact).map_err(fault)? {
            true => Ok(()),
            false => Err(fault(format!("{} is a job's business", entry.key()))),
        }
    }
}

/// Currency, destination and amount of a withdrawal that is final.
fn withdrawn(tx: &Tx) -> Option<(Address, Option<Address>, Amount)> {
    match &tx.purpose {
        Purpose::Errand(Errand { kind: ErrandKind::Withdraw { token, amount, cold }, .. })
            if tx.state == TxState::Confirmed =>
        {
            Some((*token, *cold, *amount))
        }
        Purpose::Errand(_) | Purpose::Claim(_) | Purpose::Complete | Purpose::Fill => None,
    }
}

/// Currency, destination and amount of a forward that may count.
fn forwarded(tx: &Tx) -> Option<(Address, Address, Amount)> {
    match &tx.purpose {
        Purpose::Errand(Errand { kind: ErrandKind::Forward { token, amount, cold }, .. })
            if !matches!(tx.state, TxState::Rejected(_)) =>
        {
            Some((*token, *cold, *amount))
        }
        Purpose::Errand(_) | Purpose::Claim(_) | Purpose::Complete | Purpose::Fill => None,
    }
}
