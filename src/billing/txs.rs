//! The transactions of one account: the fold of its `Tx…` facts.
//!
//! Never forgets one, never lets two open ones share a nonce, never confirms what was not in a
//! block. A fact that does not fit is refused and changes nothing.

use std::sync::Arc;

use super::tx::{Tx, TxState};
use super::{Attempt, Fact, Purpose, RejectReason};
use crate::units::{Amount, TokenCount, WalletNonce};

/// Transactions, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txs {
    /// Shared: accounts are copied with every prompt, and their transactions hold signed bytes.
    all: Arc<Vec<Tx>>,
    claims: Claims,
}

/// Tokens of claims by how far they are, kept up to date: they are asked for with every token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Claims {
    /// In claims that are not rejected.
    pub claimed: TokenCount,
    /// In claims that are in a block, final or not.
    pub included: TokenCount,
    /// In claims that are final.
    pub confirmed: TokenCount,
}

impl Claims {
    /// These sums with one share in another's place.
    fn moved(self, from: Self, to: Self) -> Self {
        let of = |sum: TokenCount, from, to| sum.saturating_sub(from).saturating_add(to);
        Self {
            claimed: of(self.claimed, from.claimed, to.claimed),
            included: of(self.included, from.included, to.included),
            confirmed: of(self.confirmed, from.confirmed, to.confirmed),
        }
    }
}

impl Txs {
    /// All of them, oldest first.
    #[must_use]
    pub fn all(&self) -> &[Tx] {
        &self.all
    }

    /// Those whose fate is not final.
    pub fn open(&self) -> impl Iterator<Item = &Tx> {
        self.all.iter().filter(|tx| tx.is_open())
    }

    /// The last one of a nonce.
    #[must_use]
    pub fn at(&self, nonce: WalletNonce) -> Option<&Tx> {
        self.all.iter().rev().find(|tx| tx.nonce == nonce)
    }

    /// Sums over the claims.
    pub(super) const fn claims(&self) -> Claims {
        self.claims
    }

    /// What the last transaction of a nonce adds to the sums.
    fn share(&self, nonce: WalletNonce) -> Claims {
        let Some(tx) = self.at(nonce) else { return Claims::default() };
        let tokens = tx.claim().map_or(TokenCount::ZERO, |claim| claim.tokens);
        let of = |counts: bool| if counts { tokens } else { TokenCount::ZERO };
        Claims {
            claimed: of(!matches!(tx.state, TxState::Rejected(_))),
            included: of(tx.is_mined()),
            confirmed: of(tx.state == TxState::Confirmed),
        }
    }

    /// Adds a fact about a transaction; false for any other fact.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub(super) fn apply(&mut self, fact: &Fact) -> Result<bool, String> {
        let Some(nonce) = fact.nonce() else { return Ok(false) };
        // An earlier transaction of the nonce is rejected when another is prepared: only the
        // last one's share changes.
        let before = self.share(nonce);
        self.change(fact)?;
        self.claims = self.claims.moved(before, self.share(nonce));
        Ok(true)
    }

    fn change(&mut self, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::TxPrepared { nonce, purpose, attempt } => {
                self.prepare(*nonce, purpose, attempt)?;
            }
            Fact::TxRepriced { nonce, attempt } => {
                self.open_tx(*nonce)?.attempts.push(attempt.clone());
            }
            Fact::TxCancelled { nonce, attempt } => self.cancel(*nonce, attempt)?,
            Fact::TxIncluded { nonce, hash, sighting, block, block_hash, fee } => {
                let tx = self.open_tx(*nonce)?;
                tx.sightings = sighting.saturating_add(1);
                tx.fee = *fee;
                tx.mined = Some(*hash);
                tx.mined_in = Some(*block);
                tx.state =
                    TxState::Included { hash: *hash, block: *block, block_hash: *block_hash };
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
            | Fact::JobHalted { .. } => {}
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        nonce: WalletNonce,
        purpose: &Purpose,
        attempt: &Attempt,
    ) -> Result<(), String> {
        if self.at(nonce).is_some_and(Tx::is_open) {
            return Err(format!("nonce {nonce} prepared twice"));
        }
        // Sightings are counted by nonce, so that keys of two transactions never meet.
        let sightings = self.at(nonce).map_or(0, |earlier| earlier.sightings);
        Arc::make_mut(&mut self.all).push(Tx {
            nonce,
            purpose: purpose.clone(),
            attempts: vec![attempt.clone()],
            cancelled_from: None,
            state: TxState::Prepared,
            sightings,
            mined: None,
            mined_in: None,
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

    fn reorg(&mut self, nonce: WalletNonce) -> Result<(), String> {
        let mined = Arc::make_mut(&mut self.all)
            .iter_mut()
            .rev()
            .find(|tx| tx.nonce == nonce && tx.is_mined());
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
        let open = Arc::make_mut(&mut self.all)
            .iter_mut()
            .rev()
            .find(|tx| tx.nonce == nonce && tx.is_open());
        open.ok_or_else(|| format!("no open transaction with nonce {nonce}"))
    }
}
