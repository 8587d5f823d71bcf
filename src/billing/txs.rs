//! The transactions of one account: the fold of its `Tx…` facts.
//!
//! Never forgets one, never lets two open ones share a nonce, never confirms what was not in a
//! block. A fact that does not fit is refused and changes nothing.

use super::tx::{Tx, TxState};
use super::{Attempt, Fact, Purpose, RejectReason};
use crate::units::{Amount, TokenCount, TxHash, WalletNonce};

/// Transactions, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txs(Vec<Tx>);

impl Txs {
    /// No transactions.
    pub(super) const NONE: Self = Self(Vec::new());

    /// All of them, oldest first.
    #[must_use]
    pub fn all(&self) -> &[Tx] {
        &self.0
    }

    /// Those whose fate is not final.
    pub fn open(&self) -> impl Iterator<Item = &Tx> {
        self.0.iter().filter(|tx| tx.is_open())
    }

    /// The last one of a nonce.
    #[must_use]
    pub fn at(&self, nonce: WalletNonce) -> Option<&Tx> {
        self.0.iter().rev().find(|tx| tx.nonce == nonce)
    }

    /// Tokens of claims in states that count.
    pub(super) fn claimed(&self, counts: impl Fn(&TxState) -> bool) -> TokenCount {
        let claims = self.0.iter().filter(|tx| counts(&tx.state)).filter_map(Tx::claim);
        claims.fold(TokenCount::ZERO, |sum, claim| sum.saturating_add(claim.tokens))
    }

    /// Adds a fact about a transaction; false for any other fact.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub(super) fn apply(&mut self, fact: &Fact) -> Result<bool, String> {
        match fact {
            Fact::TxPrepared { nonce, purpose, attempt } => {
                self.prepare(*nonce, purpose, attempt)?;
            }
            Fact::TxRepriced { nonce, attempt } => {
                self.open_tx(*nonce)?.attempts.push(attempt.clone());
            }
            Fact::TxCancelled { nonce, attempt } => self.cancel(*nonce, attempt)?,
            Fact::TxIncluded { nonce, hash, sighting, block, block_hash, fee } => {
                let state =
                    TxState::Included { hash: *hash, block: *block, block_hash: *block_hash };
                self.include(*nonce, *hash, (*sighting, *fee))?.state = state;
            }
            Fact::TxReorged { nonce, .. } => self.reorg(*nonce)?,
            Fact::TxConfirmed { nonce, .. } => self.confirm(*nonce)?,
            Fact::TxRejected { nonce, reason, fee, .. } => self.reject(*nonce, *reason, *fee)?,
            Fact::JobOpened { .. }
            | Fact::OwnerProven
            | Fact::TurnStarted(_)
            | Fact::Delivered { .. }
            | Fact::TurnEnded { .. }
            | Fact::JobClosed { .. }
            | Fact::JobReopened { .. }
            | Fact::JobHalted { .. } => return Ok(false),
        }
        Ok(true)
    }

    fn prepare(
        &mut self,
        nonce: WalletNonce,
        purpose: &Purpose,
        attempt: &Attempt,
    ) -> Result<(), String> {
        if self.open().any(|tx| tx.nonce == nonce) {
            return Err(format!("nonce {nonce} prepared twice"));
        }
        self.0.push(Tx {
            nonce,
            purpose: purpose.clone(),
            attempts: vec![attempt.clone()],
            cancelled_from: None,
            state: TxState::Prepared,
            sightings: 0,
            mined: None,
            fee: Amount::ZERO,
        });
        Ok(())
    }

    fn cancel(&mut self, nonce: WalletNonce, attempt: &Attempt) -> Result<(), String> {
        let tx = self.open_tx(nonce)?;
        tx.cancelled_from.get_or_insert(tx.attempts.len());
        tx.attempts.push(attempt.clone());
        Ok(())
    }

    fn include(
        &mut self,
        nonce: WalletNonce,
        hash: TxHash,
        (sighting, fee): (u32, Amount),
    ) -> Result<&mut Tx, String> {
        let tx = self.open_tx(nonce)?;
        tx.sightings = sighting.saturating_add(1);
        tx.fee = fee;
        tx.mined = Some(hash);
        Ok(tx)
    }

    fn reorg(&mut self, nonce: WalletNonce) -> Result<(), String> {
        let mined = self.0.iter_mut().rev().find(|tx| tx.nonce == nonce && tx.is_mined());
        let tx = mined.ok_or_else(|| format!("nonce {nonce} left a block it was not in"))?;
        tx.state = TxState::Prepared;
        Ok(())
    }

    fn confirm(&mut self, nonce: WalletNonce) -> Result<(), String> {
        let tx = self.open_tx(nonce)?;
        if !tx.is_mined() {
            return Err(format!("nonce {nonce} confirmed without inclusion"));
        }
        tx.state = TxState::Confirmed;
        Ok(())
    }

    fn reject(
        &mut self,
        nonce: WalletNonce,
        reason: RejectReason,
        fee: Amount,
    ) -> Result<(), String> {
        let tx = self.open_tx(nonce)?;
        tx.fee = fee;
        tx.state = TxState::Rejected(reason);
        Ok(())
    }

    fn open_tx(&mut self, nonce: WalletNonce) -> Result<&mut Tx, String> {
        let open = self.0.iter_mut().find(|tx| tx.nonce == nonce && tx.is_open());
        open.ok_or_else(|| format!("no open transaction with nonce {nonce}"))
    }
}
