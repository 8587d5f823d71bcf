//! GPT-2's `config.json`.
//!
//! For: GPT-2 of every size, as HuggingFace's class `GPT2LMHeadModel` describes it.
//! Must never: pass over a setting that changes numbers: what isn't done is refused by name.
//! Relies on: the defaults of `GPT2Config` (transformers 4.51).

use serde_json::Value;

use super::{Family, Keys, ModelConfig, Pairing, RopeScaling, unsupported};
use crate::error::LoadError;

/// Whether it is GPT-2 with an output head. Files older than the key `architectures` say what
/// they are by `model_type` alone.
pub(super) fn is_gpt2(config: &Value) -> bool {
    match &config["architectures"] {
        Value::Null => config["model_type"] == "gpt2",
        architectures => architectures[0] == "GPT2LMHeadModel",
    }
}

/// Reads and checks the configuration.
///
/// # Errors
/// [`LoadError`] names the key that is missing or bad, or what isn't supported.
pub(super) fn read(config: &Value) -> Result<ModelConfig, LoadError> {
    let keys = Keys { config, family: Family::Gpt2 };
    refuse_unknown_habits(&keys)?;
    let (width, heads) = (keys.size("n_embd")?, keys.size("n_head")?);
    if !width.is_multiple_of(heads) {
        let what = format!("with n_embd {width}, which is no multiple of n_head {heads}");
        return Err(unsupported(Family::Gpt2, &what));
    }
    let vocab_size = keys.size("vocab_size")?;
    let config = ModelConfig {
        family: Family::Gpt2,
        layers: keys.size("n_layer")?,
        width,
        ff_width: if keys.is_there("n_inner") { keys.size("n_inner")? } else { 4 * width },
        query_heads: heads,
        kv_heads: heads,
        head_dim: width / heads,
        // Each has a row of weights: none may be cut off.
        context_length: keys.size("n_positions")? as u32,
        vocab_size,
        norm_eps: keys.single("layer_norm_epsilon", Some(1e-5))?,
        // Nothing turns; the value only has to be one that the checks allow.
        rope_base: 10_000.0,
        pairing: Pairing::None,
        rope_scaling: RopeScaling::None,
        window: None,
        has_qkv_bias: true,
        has_qk_norm: false,
        is_tied: keys.flag("tie_word_embeddings", true)?,
    };
    config.check(vocab_size)?;
    Ok(config)
}

/// Refuses what the keys announce and the forward pass doesn't do.
fn refuse_unknown_habits(keys: &Keys<'_>) -> Result<(), LoadError> {
    let (no, yes) = (Value::Bool(false), Value::Bool(true));
    let rules = [
        ("activation_function", Value::from("gelu_new")),
        ("scale_attn_weights", yes),
        ("scale_attn_by_inverse_layer_idx", no.clone()),
        ("reorder_and_upcast_attn", no.clone()),
        ("add_cross_attention", no.clone()),
        ("is_encoder_decoder", no),
        ("pruned_heads", Value::Object(serde_json::Map::new())),
        ("quantization_config", Value::Null),
    ];
    let is_kept = |key: &str, value: &Value| !keys.is_there(key) || keys.config[key] == *value;
    match rules.iter().find(|(key, value)| !is_kept(key, value)) {
        Some((key, _)) => Err(keys.refuse(key)),
        None => Ok(()),
    }
}
