//! Fixed-width byte strings: hashes, addresses, signatures.
//!
//! Never interprets the bytes; checksums, recovery and hashing belong to the layers above.

/// Declares a byte-string newtype shown and parsed as 0x-hex.
macro_rules! bytes_type {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Wraps raw bytes.
            #[must_use]
            pub const fn new(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            #[must_use]
            pub const fn bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// Parses hex with or without `0x`; `None` on another length or a non-hex digit.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.strip_prefix("0x").unwrap_or(text);
                let mut bytes = [0; $len];
                hex::decode_to_slice(digits, &mut bytes).ok()?;
                Some(Self(bytes))
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "0x{}", hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

bytes_type! {
    /// A 32-byte digest (keccak256 or SHA-256, as its field says).
    Hash32, 32
}
bytes_type! {
    /// A transaction's hash.
    TxHash, 32
}
bytes_type! {
    /// A block's hash.
    BlockHash, 32
}
bytes_type! {
    /// An EVM account or contract address; shown in lower case.
    Address, 20
}
bytes_type! {
    /// A recoverable secp256k1 signature: r (32 bytes) | s (32) | v (1, 27 or 28).
    Signature, 65
}

impl Hash32 {
    /// All zeros: "none" wherever docs/spec/proof.md allows it.
    pub const ZERO: Self = Self([0; 32]);
}

impl Address {
    /// The zero address: native currency as a payment token, or an unset host.
    pub const ZERO: Self = Self([0; 20]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_accepted_with_and_without_prefix_and_nothing_else() {
        let text = "0x00000000000000000000000000000000000000ff";
        let address = Address::parse(text).unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!(Address::parse(&text[2..]), Some(address));
        for bad in ["", "0x", "0xff", "zz", &format!("{text}00")] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
    }
}
