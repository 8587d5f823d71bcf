//! The wallet's nonce line: who holds which nonce, and what to do where the line has a hole.
//!
//! Never skips a nonce and never gives one out twice. The chain takes nonces in order, so a hole
//! below a transaction of ours holds up everything behind it: a block that is gone after it was
//! final, or a foreign transaction that took a nonce and vanished, must not stop the wallet.

use std::collections::BTreeMap;

use super::{Settlement, StepError, View};
use crate::billing::{Purpose, Subject, Tx, TxState};
use crate::chain::Call;
use crate::units::WalletNonce;

/// Nonces looked at in one pass: geth keeps 64 transactions of an account.
const NONCES_A_PASS: usize = 64;

/// Holes that are filled by themselves: more mean that an answer about the nonce was far off.
const HOLES_MAX: usize = 32;

/// Who held each nonce last.
#[derive(Debug, Default)]
pub(super) struct Line {
    holders: BTreeMap<WalletNonce, Subject>,
}

/// What the line needs at one nonce.
enum Repair {
    None,
    /// Its transaction was final and is in no block.
    Reopen {
        subject: Subject,
        tx: Box<Tx>,
    },
    /// Nothing of ours holds it.
    Fill,
}

impl Line {
    /// `subject` holds `nonce` from now on.
    pub fn take(&mut self, nonce: WalletNonce, subject: Subject) {
        self.holders.insert(nonce, subject);
    }

    /// The next free nonce: behind everything of ours and everything mined, so that a lagging
    /// endpoint cannot make us use one twice.
    pub fn next(&self, mined: WalletNonce) -> WalletNonce {
        let last = self.holders.last_key_value();
        last.and_then(|(nonce, _)| nonce.next()).unwrap_or_default().max(mined)
    }

    /// Nonces that the chain has not taken and that lie below our last, with their holders.
    fn not_mined(&self, mined: WalletNonce) -> Vec<(WalletNonce, Option<Subject>)> {
        let end = self.next(mined);
        let nonces = (mined.get()..end.get()).take(NONCES_A_PASS).map(WalletNonce::new);
        nonces.map(|nonce| (nonce, self.holders.get(&nonce).copied())).collect()
    }
}

impl Settlement {
    /// Mends holes of the line, oldest first. Not on a reading older than one we had: what it does
    /// not know yet is no hole.
    pub(super) async fn mend_line(&mut self, view: &View) -> Result<(), StepError> {
        if self.watch.is_behind(view.head.number) || !view.is_nonce_sure {
            return Ok(());
        }
        let not_mined = self.line.not_mined(view.wallet.nonce_mined);
        if not_mined.iter().filter(|(_, holder)| holder.is_none()).count() > HOLES_MAX {
            tracing::error!("the wallet's nonces have more holes than are filled unasked");
            return Ok(());
        }
        for (nonce, holder) in not_mined {
            match self.repair_at(nonce, holder).await? {
                Repair::None => self.watch.no_gap(nonce),
                Repair::Reopen { subject, tx } => self.reorged(subject, &tx).await?,
                Repair::Fill => self.fill(nonce, view).await?,
            }
        }
        Ok(())
    }

    async fn repair_at(
        &self,
        nonce: WalletNonce,
        holder: Option<Subject>,
    ) -> Result<Repair, StepError> {
        let Some((subject, tx)) =
            holder.and_then(|subject| Some((subject, self.tx(subject, nonce)?)))
        else {
            return Ok(Repair::Fill);
        };
        match tx.state {
            TxState::Prepared | TxState::Included { .. } => Ok(Repair::None),
            TxState::Rejected(_) => Ok(Repair::Fill),
            TxState::Confirmed if self.is_mined(&tx).await? => Ok(Repair::None),
            TxState::Confirmed => Ok(Repair::Reopen { subject, tx: Box::new(tx) }),
        }
    }

    /// Takes a nonce that nothing of ours holds, once it has been free for some blocks: whoever
    /// used it before may be about to use it again.
    async fn fill(&mut self, nonce: WalletNonce, view: &View) -> Result<(), StepError> {
        let is_ours = self.tx(Subject::Wallet, nonce).is_some_and(|tx| tx.is_open());
        if is_ours || self.watch.gap_for(nonce, view.head.number) < self.confirmations() {
            return Ok(());
        }
        tracing::warn!(%nonce, "a hole in the wallet's nonces is filled");
        let signed = self.sign_own(Some(nonce), (Call::Nothing, Purpose::Fill), view);
        signed.await.map(drop)
    }

    /// The last transaction that a subject has under a nonce.
    pub(super) fn tx(&self, subject: Subject, nonce: WalletNonce) -> Option<Tx> {
        match subject {
            Subject::Wallet => self.books.tracker.wallet().txs().at(nonce).cloned(),
            Subject::Job(job) => {
                let account = self.books.tracker.account(job)?;
                account.txs().iter().rev().find(|tx| tx.nonce == nonce).cloned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_nonce_lies_behind_ours_and_behind_the_chains() {
        let at = WalletNonce::new;
        let mut line = Line::default();
        assert_eq!(line.next(at(0)), at(0));
        assert_eq!(line.next(at(7)), at(7));
        line.take(at(4), Subject::Wallet);
        assert_eq!(line.next(at(0)), at(5), "a lagging endpoint frees nothing");
        assert_eq!(line.next(at(5)), at(5));
        assert_eq!(line.next(at(9)), at(9));
    }

    #[test]
    fn a_hole_is_a_nonce_below_our_last_that_nothing_of_ours_holds() {
        let at = WalletNonce::new;
        let mut line = Line::default();
        line.take(at(4), Subject::Wallet);
        line.take(at(6), Subject::Wallet);
        let holders = |mined| line.not_mined(at(mined));
        let held = Some(Subject::Wallet);
        assert_eq!(holders(4), vec![(at(4), held), (at(5), None), (at(6), held)]);
        assert_eq!(holders(7), vec![]);
        assert_eq!(holders(9), vec![]);
    }
}
