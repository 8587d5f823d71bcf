//! Values that are stored as text inside a body.
//!
//! Never rounds: JSON readers other than ours cut numbers past 2^53, so large ones are texts.
//! Relies on the types' own parsers.

use std::marker::PhantomData;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::units::{Address, Amount, BlockHash, Hash32, PricePerToken, TxHash};

/// A value stored as text: hashes and addresses in 0x-hex, 128-bit amounts in decimal, since
/// JSON readers other than ours round numbers past 2^53.
pub(super) struct Text<T>(pub T);

pub(super) trait Parse: Sized {
    fn parse_text(text: &str) -> Option<Self>;
}

macro_rules! parse_by {
    ($($name:ident),*) => {
        $(impl Parse for $name {
            fn parse_text(text: &str) -> Option<Self> {
                Self::parse(text)
            }
        })*
    };
}
parse_by!(Hash32, TxHash, BlockHash, Address);

impl Parse for Amount {
    fn parse_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self::new)
    }
}

impl Parse for PricePerToken {
    fn parse_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self::new)
    }
}

/// Bytes of any length, as 0x-hex.
pub(super) struct Bytes(pub Vec<u8>);

impl Parse for Bytes {
    fn parse_text(text: &str) -> Option<Self> {
        hex::decode(text.strip_prefix("0x")?).ok().map(Self)
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{}", hex::encode(&self.0))
    }
}

impl<T: std::fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: Parse> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextOf(PhantomData)).map(Self)
    }
}

/// Parses the text where it lies: a start reads very many of them.
struct TextOf<T>(PhantomData<T>);

impl<T: Parse> Visitor<'_> for TextOf<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a text that is a {}", std::any::type_name::<T>())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let wanted = || E::custom(format!("{text:?} is no {}", std::any::type_name::<T>()));
        T::parse_text(text).ok_or_else(wanted)
    }
}
