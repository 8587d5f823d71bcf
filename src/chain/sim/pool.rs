//! Transactions of the host's key that wait for a block, with a common client's pool rules.
//!
//! Never holds two transactions of one nonce: a replacement must raise both fees by a tenth.

use std::collections::BTreeMap;

use super::contract::Deed;
use crate::units::TxHash;

/// Source: the default `PriceBump` of go-ethereum's pool, percent.
const REPLACE_PERCENT: u128 = 110;

/// A signed transaction of the host's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SimTx {
    pub hash: TxHash,
    pub nonce: u64,
    /// Wei per gas.
    pub fee_max: u128,
    /// Wei per gas.
    pub tip_max: u128,
    pub gas_limit: u64,
    pub deed: Deed,
    /// Another process with the same key signed it.
    pub is_foreign: bool,
}

/// What the pool says to a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    Taken,
    Known,
    NonceUsed,
    Underpriced,
    Unfunded,
}

/// What a pool judges by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Market {
    pub nonce_mined: u64,
    pub balance: u128,
    pub base_fee: u128,
    /// Whether what cannot pay the present base fee is refused, and thrown out.
    pub is_strict: bool,
}

/// The pool.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    txs: BTreeMap<u64, SimTx>,
}

impl Pool {
    pub fn offer(&mut self, tx: SimTx, market: Market) -> Offer {
        if tx.nonce < market.nonce_mined {
            return Offer::NonceUsed;
        }
        let known = self.txs.get(&tx.nonce);
        if known.is_some_and(|known| known.hash == tx.hash) {
            return Offer::Known;
        }
        if u128::from(tx.gas_limit).saturating_mul(tx.fee_max) > market.balance {
            return Offer::Unfunded;
        }
        if market.is_strict && tx.fee_max < market.base_fee {
            return Offer::Underpriced;
        }
        let is_raised = |new: u128, old: u128| new * 100 >= old.saturating_mul(REPLACE_PERCENT);
        let is_replacement = known.is_none_or(|known| {
            is_raised(tx.fee_max, known.fee_max) && is_raised(tx.tip_max, known.tip_max)
        });
        if !is_replacement {
            return Offer::Underpriced;
        }
        self.txs.insert(tx.nonce, tx);
        Offer::Taken
    }

    /// Forgets used nonces, and what cannot pay where the pool is strict.
    pub fn purge(&mut self, market: Market) {
        self.txs.retain(|nonce, tx| {
            let can_pay = !market.is_strict || tx.fee_max >= market.base_fee;
            *nonce >= market.nonce_mined && can_pay
        });
    }

    pub fn get(&self, nonce: u64) -> Option<&SimTx> {
        self.txs.get(&nonce)
    }

    pub fn drop_nonce(&mut self, nonce: u64) -> Option<SimTx> {
        self.txs.remove(&nonce)
    }

    pub fn contains(&self, hash: TxHash) -> bool {
        self.txs.values().any(|tx| tx.hash == hash)
    }

    /// The first number from `nonce` on that no transaction holds.
    pub fn next_free(&self, nonce: u64) -> u64 {
        (nonce..).find(|nonce| !self.txs.contains_key(nonce)).unwrap_or(nonce)
    }

    pub fn txs(&self) -> impl Iterator<Item = &SimTx> {
        self.txs.values()
    }
}
