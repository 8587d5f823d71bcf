//! The bits that every way of computing must give, for the model that `TALLY_TEST_MODEL` names.
//!
//! Shared by the tests of the engine's face (`sameness.rs`) and those inside of it.
#![allow(dead_code)]

use sha3::{Digest, Keccak256};

/// What is read.
pub const TEXT: &str = "Tally counts every token that it delivers, records it, and claims it on \
    chain once a hundred are there. 1234567890 is a number; 中文 and é are text.";

/// Keccak-256 of the hidden states' and of the logits' bits of [`TEXT`]'s first 36 ids, row by row,
/// little-endian. Any other value is another engine: raise `ENGINE_SPEC_VERSION` and say why.
pub const GOLDEN_STATES: &str = "9cb099c061745aaea6baca2db886922bc84f1073bc42d6d7c6c9ae6382cb59ef";
pub const GOLDEN_LOGITS: &str = "fca65fbd15ca550e8c8cc43d939486393e8ba93ab5b1d9360b517ab6ccca4cb8";

/// The logits with keys and values in single precision.
pub const GOLDEN_LOGITS_F32: &str =
    "84c5333f101de8885aa7d77fb905d17e0d17ba0dc2ceb9abf854cbfc1ce3675c";

/// Keccak-256 of the ids that four seeded sequences are answered with, little-endian, and of the
/// digests of the states that they were drawn from.
pub const GOLDEN_IDS: &str = "87eca12418bc86b1af4aeaeb3fe32396cb258ab772619c20ff0f21a8f5dad4e4";

/// Keccak-256 of the hidden states that those ids were drawn from.
pub const GOLDEN_ANSWER_STATES: &str =
    "86b6f6c31f87d6483b245aa11f5ce522e56b5fda5e04ff46e81659ccf72c4529";

/// Keccak-256 of the values, little-endian.
pub fn digest(values: impl IntoIterator<Item = u32>) -> String {
    let mut hash = Keccak256::new();
    values.into_iter().for_each(|value| hash.update(value.to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
