//! What gas costs: what to offer, and what was paid.
//!
//! Never pays a fixed tip: chains differ by a factor of a million. Relies on EIP-1559.

use alloy::primitives::U256;
use serde_json::json;

use super::pool::At;
use super::rpc::{Rpc, RpcFailure};
use super::wire::{FeeHistory, Receipt, u128_of};
use crate::chain::{ChainError, Fees};
use crate::units::Amount;

/// Smallest tip offered, wei per gas: the lowest that op-geth's own oracle ever suggests
/// (0.001 gwei); on dearer chains the oracle's answer is far above it.
const TIP_FLOOR: u128 = 1_000_000;

/// Room for a rising base fee: it grows by at most 1/8 a block (EIP-1559), so twice today's covers
/// the next five blocks. What is not needed is not charged.
const BASE_FEE_ROOM: u128 = 2;

/// Blocks over which the median tip is taken where the endpoint has no oracle.
const HISTORY_BLOCKS: &str = "0xa";

/// What one endpoint suggests.
pub(super) async fn on(rpc: &Rpc) -> Result<Fees, ChainError> {
    let (block, tip) = tokio::try_join!(rpc.block(At::Latest), tip(rpc))?;
    with_room(block.base_fee_per_gas, tip)
}

/// The endpoint's suggested tip, else the median of what recent blocks paid, never below the floor.
async fn tip(rpc: &Rpc) -> Result<Amount, ChainError> {
    let suggested = match rpc.call::<U256>("eth_maxPriorityFeePerGas", json!([])).await {
        Ok(tip) => tip,
        Err(RpcFailure::Refused(_)) => {
            let params = json!([HISTORY_BLOCKS, "latest", [50]]);
            let history: FeeHistory = rpc.call("eth_feeHistory", params).await?;
            median(history)
        }
        Err(failure) => return Err(failure.into()),
    };
    Ok(Amount::new(u128_of(suggested, "tip")?.max(TIP_FLOOR)))
}

/// Twice the base fee plus the tip.
///
/// # Errors
/// [`ChainError::Unexpected`] without a base fee (a chain before London) or for an absurd one.
fn with_room(base_fee: Option<U256>, tip: Amount) -> Result<Fees, ChainError> {
    let none = || ChainError::Unexpected("blocks have no base fee: EIP-1559 is needed".into());
    let base_fee = u128_of(base_fee.ok_or_else(none)?, "base fee")?;
    let absurd = || ChainError::Unexpected(format!("base fee {base_fee} is absurd"));
    let room = base_fee.checked_mul(BASE_FEE_ROOM).ok_or_else(absurd)?;
    let fee_max = Amount::new(room).checked_add(tip).ok_or_else(absurd)?;
    Ok(Fees { fee_max, tip_max: tip })
}

/// Gas used × effective price, plus what a rollup charged for its data; `None` without a price or
/// past u128.
pub(super) fn paid(receipt: &Receipt) -> Option<Amount> {
    let gas = u128::try_from(receipt.gas_used).ok()?;
    let price = u128::try_from(receipt.effective_gas_price?).ok()?;
    let data = u128::try_from(receipt.l1_fee.unwrap_or_default()).ok()?;
    gas.checked_mul(price)?.checked_add(data).map(Amount::new)
}

/// The upper median of the blocks' rewards; zero without any.
fn median(history: FeeHistory) -> U256 {
    let mut rewards: Vec<U256> =
        history.reward.into_iter().filter_map(|block| block.first().copied()).collect();
    rewards.sort_unstable();
    let middle = rewards.len().checked_div(2).unwrap_or_default();
    rewards.get(middle).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offer_leaves_room_for_a_doubled_base_fee() {
        let fees = with_room(Some(U256::from(50)), Amount::new(7)).unwrap();
        assert_eq!((fees.fee_max.get(), fees.tip_max.get()), (107, 7));
        assert!(with_room(None, Amount::new(7)).is_err());
        assert!(with_room(Some(U256::from(u128::MAX)), Amount::new(7)).is_err());
        assert!(with_room(Some(U256::MAX), Amount::new(7)).is_err());
    }

    #[test]
    fn the_median_of_history_is_robust_against_one_generous_block() {
        let history = |tips: &[u64]| FeeHistory {
            reward: tips.iter().map(|tip| vec![U256::from(*tip)]).collect(),
        };
        assert_eq!(median(history(&[5, 1_000_000, 4])), U256::from(5));
        assert_eq!(median(history(&[])), U256::ZERO);
        assert_eq!(median(FeeHistory { reward: vec![vec![]] }), U256::ZERO);
    }
}
