//! Money: amounts, prices, and the two conversions between money and tokens.
//!
//! Never rounds in the host's favour: costs and affordable counts round down, as the contract
//! does (docs/spec/contract.md sections 1 and 2, rule 6).

use super::TokenCount;
use super::quantity;

quantity! {
    /// An amount of the payment token's smallest unit (wei for native sessions).
    Amount(u128)
}
quantity! {
    /// The price of one token in the contract's price unit; see [`PriceUnit`].
    PricePerToken(u128)
}

/// How many price units make one payment unit: 1 up to v4, 1000 (`PRICE_PRECISION`) later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PriceUnit(u64);

impl PriceUnit {
    /// Prices are whole payment units per token (v3).
    pub const ONE: Self = Self(1);

    /// Wraps the contract's precision; `None` for 0.
    #[must_use]
    pub const fn new(per_payment_unit: u64) -> Option<Self> {
        if per_payment_unit == 0 { None } else { Some(Self(per_payment_unit)) }
    }

    /// The raw precision.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// What `tokens` cost at `price`, rounded down; `None` on overflow.
    #[must_use]
    pub fn cost(self, tokens: TokenCount, price: PricePerToken) -> Option<Amount> {
        let gross = u128::from(tokens.get()).checked_mul(price.get())?;
        gross.checked_div(u128::from(self.0)).map(Amount::new)
    }

    /// How many tokens `deposit` buys at `price`, rounded down and capped at `u64::MAX`.
    /// A price of 0 buys nothing: such a session could never pay.
    #[must_use]
    pub fn affordable(self, deposit: Amount, price: PricePerToken) -> TokenCount {
        let Some(scaled) = deposit.get().checked_mul(u128::from(self.0)) else {
            return TokenCount::new(u64::MAX);
        };
        let count = scaled.checked_div(price.get()).unwrap_or(0);
        TokenCount::new(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affordable(deposit: u128, price: u128, unit: u64) -> u64 {
        let unit = PriceUnit::new(unit).unwrap();
        unit.affordable(Amount::new(deposit), PricePerToken::new(price)).get()
    }

    #[test]
    fn what_a_deposit_buys_rounds_down() {
        assert_eq!(affordable(999, 10, 1), 99);
        assert_eq!(affordable(1000, 10, 1), 100);
        assert_eq!(affordable(10, 3, 1000), 3333);
        assert_eq!(affordable(5, 0, 1), 0);
        assert_eq!(affordable(u128::MAX, 1, 1000), u64::MAX);
    }

    #[test]
    fn cost_rounds_down_and_never_wraps() {
        let unit = PriceUnit::new(1000).unwrap();
        let cost = |tokens, price| unit.cost(TokenCount::new(tokens), PricePerToken::new(price));
        assert_eq!(cost(3, 500), Some(Amount::new(1)));
        assert_eq!(cost(u64::MAX, u128::MAX), None);
    }
}
