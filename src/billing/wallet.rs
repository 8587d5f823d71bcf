//! The wallet's own account: transactions that belong to no job.
//!
//! Never edited otherwise than by its ledger entries, as a job's account.

use super::txs::Txs;
use super::{AccountFault, Entry, ErrandKind, Purpose, Subject};
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

    /// What was withdrawn of `token` for good and is not on its way to the cold address: the
    /// amount of a forward that is due. Forwards count from their signature on.
    #[must_use]
    pub fn to_forward(&self, token: Address) -> Amount {
        let mut withdrawn = Amount::ZERO;
        let mut forwarded = Amount::ZERO;
        for tx in self.txs.all() {
            let Purpose::Errand(errand) = &tx.purpose else { continue };
            match &errand.kind {
                ErrandKind::Withdraw { token: of, amount }
                    if *of == token && tx.state == super::TxState::Confirmed =>
                {
                    withdrawn = withdrawn.saturating_add(*amount);
                }
                ErrandKind::Forward { token: of, amount }
                    if *of == token && (tx.is_open() || tx.is_mined()) =>
                {
                    forwarded = forwarded.saturating_add(*amount);
                }
                ErrandKind::Withdraw { .. }
                | ErrandKind::Forward { .. }
                | ErrandKind::Registry { .. } => {}
            }
        }
        withdrawn.saturating_sub(forwarded)
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
