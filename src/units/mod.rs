//! Numbers and ids as types: what a `u64` means is in its name.
//!
//! Never converts silently: no `From`, no `Deref`, no operator overloads. Values are built at the
//! edge with `new`, opened at the edge with `get`; arithmetic is `checked_*` and the caller
//! decides what overflow means. Relies on nothing.

mod hash;
mod job_id;
mod money;

pub use hash::{Address, BlockHash, Hash32, Signature, TxHash};
pub use job_id::{JobId, JobIdError};
pub use money::{Amount, PricePerToken, PriceUnit};

/// Declares a newtype over an unsigned integer with checked arithmetic.
macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($inner);

        impl $name {
            /// Zero of this quantity.
            pub const ZERO: Self = Self(0);

            /// Wraps a raw value at the edge of the system.
            #[must_use]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The raw value, for the edge of the system.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// Sum, or `None` on overflow.
            #[must_use]
            pub fn checked_add(self, other: Self) -> Option<Self> {
                self.0.checked_add(other.0).map(Self)
            }

            /// Difference, or `None` below zero.
            #[must_use]
            pub fn checked_sub(self, other: Self) -> Option<Self> {
                self.0.checked_sub(other.0).map(Self)
            }

            /// Difference, or zero where `other` is the larger.
            #[must_use]
            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }

            /// Sum, capped at the type's maximum.
            #[must_use]
            pub fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}
pub(crate) use quantity;

quantity! {
    /// A number of generated LLM tokens. Never the payment token.
    TokenCount(u64)
}
quantity! {
    /// Seconds since the Unix epoch by the **chain's** clock (block timestamps), never the wall's.
    ChainTime(u64)
}
quantity! {
    /// A span of chain time, in seconds.
    ChainSeconds(u64)
}
quantity! {
    /// A block's height.
    BlockNumber(u64)
}
quantity! {
    /// The wallet's transaction number; a chain accepts each one once.
    WalletNonce(u64)
}
quantity! {
    /// Number of a claim within its job, from 1 (`seq` of docs/spec/proof.md).
    ClaimSeq(u32)
}
quantity! {
    /// Number of a turn (one prompt and its answer) within its job, from 0.
    TurnNo(u32)
}
quantity! {
    /// Gas units of the chain.
    Gas(u64)
}
quantity! {
    /// Milliseconds: wall-clock instants since the Unix epoch, or monotonic spans.
    Millis(u64)
}

impl ChainTime {
    /// This instant moved later by `span`, capped at the type's maximum.
    #[must_use]
    pub fn after(self, span: ChainSeconds) -> Self {
        Self(self.0.saturating_add(span.get()))
    }

    /// Seconds from `earlier` to this instant, zero where it lies in the future.
    #[must_use]
    pub fn since(self, earlier: Self) -> ChainSeconds {
        ChainSeconds::new(self.0.saturating_sub(earlier.0))
    }
}

impl BlockNumber {
    /// Confirmations of a block at this height when the head stands at `head`: 1 for the head
    /// itself, 0 where the block lies above it.
    #[must_use]
    pub fn confirmations_at(self, head: Self) -> u64 {
        head.0.checked_sub(self.0).map_or(0, |depth| depth.saturating_add(1))
    }
}

impl WalletNonce {
    /// The next transaction number, or `None` past the last.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_never_wraps() {
        let max = TokenCount::new(u64::MAX);
        assert_eq!(max.checked_add(TokenCount::new(1)), None);
        assert_eq!(TokenCount::ZERO.checked_sub(TokenCount::new(1)), None);
        assert_eq!(TokenCount::ZERO.saturating_sub(max), TokenCount::ZERO);
    }

    #[test]
    fn the_head_block_counts_as_one_confirmation() {
        let at = BlockNumber::new(10);
        assert_eq!(at.confirmations_at(BlockNumber::new(9)), 0);
        assert_eq!(at.confirmations_at(BlockNumber::new(10)), 1);
        assert_eq!(at.confirmations_at(BlockNumber::new(12)), 3);
    }
}
