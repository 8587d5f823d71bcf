//! Transcripts and proof bytes.

use crate::units::{Hash32, TurnNo};

/// How a turn's tokens were chosen, as hashed into `decodeSpec`.
pub struct DecodeSpec<'a> {
    /// Temperature.
    pub temperature: f32,
    /// Top-k; 0 keeps all.
    pub top_k: u32,
    /// Top-p.
    pub top_p: f32,
    /// Min-p.
    pub min_p: f32,
    /// Repetition penalty.
    pub repetition_penalty: f32,
    /// The client's bound on generated tokens.
    pub max_tokens: u32,
    /// Stop strings.
    pub stop: &'a [String],
}

/// Placeholder until the ledger branch lands.
#[must_use]
pub fn seed_from_client(_seed: u64) -> Hash32 {
    Hash32::ZERO
}
/// Placeholder until the ledger branch lands.
#[must_use]
pub fn seed(_host: Hash32, _user: Hash32, _turn: TurnNo) -> Hash32 {
    Hash32::ZERO
}
/// Placeholder until the ledger branch lands.
#[must_use]
pub fn model_spec(_weights: Hash32, _quantisation: &str, _architecture: &str) -> Hash32 {
    Hash32::ZERO
}
/// Placeholder until the ledger branch lands.
#[must_use]
pub fn tokenizer_spec(_weights: Hash32) -> Hash32 {
    Hash32::ZERO
}
/// Placeholder until the ledger branch lands.
#[must_use]
pub fn decode_spec(_spec: &DecodeSpec<'_>) -> Hash32 {
    Hash32::ZERO
}
