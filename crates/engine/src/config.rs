//! The architecture that a GGUF file describes.
//!
//! For: sizes and constants of the forward pass, checked once at load.
//! Must never: guess: what the forward pass doesn't do is refused here by name.
//! Relies on: GGUF's `llama.*` keys (GGUF specification).

use crate::error::LoadError;
use crate::gguf::Gguf;
use crate::kernels::attention::Heads;

/// Sizes and constants of a Llama-architecture model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream; a multiple of 32.
    pub width: usize,
    /// Width of the feed-forward layer; a multiple of 32.
    pub ff_width: usize,
    /// Query heads.
    pub query_heads: usize,
    /// Key/value heads; divides `query_heads`.
    pub kv_heads: usize,
    /// Size of a head; a multiple of 16.
    pub head_dim: usize,
    /// Tokens of context.
    pub context_length: u32,
    /// Tokens of vocabulary.
    pub vocab_size: usize,
    /// Added to the mean square in rms-norm.
    pub norm_eps: f32,
    /// Base of the rotary angles.
    pub rope_base: f64,
}

impl ModelConfig {
    /// Reads and checks the configuration.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<ModelConfig, LoadError> {
        let architecture = gguf.text("general.architecture").unwrap_or("unnamed");
        if architecture != "llama" {
            return Err(LoadError::UnsupportedArchitecture(architecture.into()));
        }
        if let Some(kind) = gguf.text("llama.rope.scaling.type")
            && kind != "none"
        {
            let what = format!("llama with rope scaling {kind:?}");
            return Err(LoadError::UnsupportedArchitecture(what));
        }
        let vocab = gguf.texts("tokenizer.ggml.tokens")?.len();
        let query_heads = size(gguf, "llama.attention.head_count")?;
        let width = size(gguf, "llama.embedding_length")?;
        let head_dim = width.checked_div(query_heads).unwrap_or(0);
        let or = |key: &str, default: usize| match gguf.value(key) {
            Some(_) => size(gguf, key),
            None => Ok(default),
        };
        let config = ModelConfig {
            layers: size(gguf, "llama.block_count")?,
            width,
            ff_width: size(gguf, "llama.feed_forward_length")?,
            query_heads,
            kv_heads: or("llama.attention.head_count_kv", query_heads)?,
            head_dim: or("llama.attention.key_length", head_dim)?,
            context_length: size(gguf, "llama.context_length")?.min(1_000_000) as u32,
            vocab_size: or("llama.vocab_size", vocab)?,
            norm_eps: number(gguf, "llama.attention.layer_norm_rms_epsilon", None)? as f32,
            // GGUF's default base when the key is absent.
            rope_base: number(gguf, "llama.rope.freq_base", Some(10_000.0))?,
        };
        config.check(gguf, vocab)?;
        Ok(config)
    }

    fn check(&self, gguf: &Gguf, tokens: usize) -> Result<(), LoadError> {
        let rotated = gguf.integer("llama.rope.dimension_count");
        let rules = [
            (self.layers > 0 && self.layers <= 1024, "1 to 1024 layers"),
            (self.width.is_multiple_of(32), "a width that is a multiple of 32"),
            (self.ff_width.is_multiple_of(32), "a feed-forward width that is a multiple of 32"),
            (self.head_dim > 0 && self.head_dim.is_multiple_of(16), "heads of a multiple of 16"),
            (
                self.kv_heads > 0 && self.query_heads.is_multiple_of(self.kv_heads),
                "query heads that are a multiple of the key heads",
            ),
            (
                rotated.is_none_or(|n| n == self.head_dim as u64),
                "rotary embedding over the whole head",
            ),
            (self.vocab_size == tokens, "one token text to each row of the vocabulary"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, rule)) => {
                let what = format!("llama without {rule} ({self:?})");
                Err(LoadError::UnsupportedArchitecture(what))
            }
        }
    }

    /// The attention's shapes.
    pub(crate) fn heads(&self) -> Heads {
        Heads { query: self.query_heads, kv: self.kv_heads, dim: self.head_dim }
    }

    /// The configuration as one fixed text, for a digest: keys in fixed order, floats as bits.
    pub fn canonical_text(&self) -> String {
        format!(
            "llama layers={} width={} ff={} heads={} kv_heads={} head_dim={} context={} vocab={} \
             eps_bits={:08x} rope_base_bits={:016x}",
            self.layers,
            self.width,
            self.ff_width,
            self.query_heads,
            self.kv_heads,
            self.head_dim,
            self.context_length,
            self.vocab_size,
            self.norm_eps.to_bits(),
            self.rope_base.to_bits(),
        )
    }
}

fn size(gguf: &Gguf, key: &str) -> Result<usize, LoadError> {
    let found = gguf.integer(key).and_then(|n| usize::try_from(n).ok());
    // Larger sizes than any real model's are damage, and products of them could overflow.
    found.filter(|n| (1..=1 << 24).contains(n)).ok_or_else(|| LoadError::Metadata {
        key: key.into(),
        reason: format!("an integer from 1 to 2^24 is needed, found {:?}", gguf.value(key)),
    })
}

fn number(gguf: &Gguf, key: &str, default: Option<f64>) -> Result<f64, LoadError> {
    let found = gguf.number(key).or(default).filter(|x| x.is_finite() && *x > 0.0);
    found.ok_or_else(|| LoadError::Metadata {
        key: key.into(),
        reason: format!("a positive number is needed, found {:?}", gguf.value(key)),
    })
}
