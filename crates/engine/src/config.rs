//! The architecture that a model file describes.
//!
//! For: sizes and constants of the forward pass, checked once at load.
//! Must never: guess: what the forward pass doesn't do is refused here by name.
//! Relies on: GGUF's keys (GGUF specification); `config/huggingface.rs` reads `config.json`.

mod huggingface;

use crate::error::LoadError;
use crate::files::gguf::Gguf;
use crate::kernels::attention::Heads;
pub use crate::rope::{Pairing, RopeScaling};

/// Which family's names and habits a model has. Those that aren't candle's or GPT-2 share one
/// forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, SmolLM2, TinyLlama, Vicuna, Mistral.
    Llama,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3, without experts.
    Qwen3,
    /// GPT-2, which has a forward pass of its own (`gpt2.rs`).
    Gpt2,
    /// Gemma 3, by candle.
    Gemma3,
    /// Phi 2, by candle.
    Phi2,
    /// Phi 3, by candle.
    Phi3,
}

impl Family {
    /// The name that GGUF files give it, and the first part of their keys.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Gpt2 => "gpt2",
            Family::Gemma3 => "gemma3",
            Family::Phi2 => "phi2",
            Family::Phi3 => "phi3",
        }
    }

    /// Whether candle computes it: one sequence at a time, and not canonical.
    pub fn is_adapted(self) -> bool {
        match self {
            Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Gpt2 => false,
            Family::Gemma3 | Family::Phi2 | Family::Phi3 => true,
        }
    }
}

/// Sizes and constants of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub family: Family,
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
    /// Added to the mean square in rms-norm, in GPT-2 to the variance in layer norm.
    pub norm_eps: f32,
    /// Base of the rotary angles; of no meaning where nothing turns.
    pub rope_base: f64,
    /// Pairs of the rotary embedding.
    pub pairing: Pairing,
    /// Rotary angles for long contexts.
    pub rope_scaling: RopeScaling,
    /// Keys that a row sees, its own included; all of them if `None`.
    pub window: Option<usize>,
    /// Whether queries, keys and values have a bias; GPT-2 has one in every projection.
    pub has_qkv_bias: bool,
    /// Whether each head's query and key are normed before the rotary embedding.
    pub has_qk_norm: bool,
    /// Whether the embedding is the output head too.
    pub is_tied: bool,
}

impl ModelConfig {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// [`LoadError`] names the key that is missing or bad, or what isn't supported.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<ModelConfig, LoadError> {
        let architecture = gguf.text("general.architecture").unwrap_or("unnamed");
        let families = [Family::Llama, Family::Qwen2, Family::Qwen3];
        let family = families.into_iter().find(|family| family.name() == architecture);
        let Some(family) = family else {
            return Err(LoadError::UnsupportedArchitecture(architecture.into()));
        };
        let keys = Keys { gguf, family };
        keys.refuse_unknown_habits()?;
        let vocab = gguf.texts("tokenizer.ggml.tokens")?.len();
        let query_heads = keys.size("attention.head_count")?;
        let width = keys.size("embedding_length")?;
        let head_dim = width.checked_div(query_heads).unwrap_or(0);
        let head_dim = keys.size_or("attention.key_length", head_dim)?;
        let context_length = keys.size("context_length")?.min(1_000_000) as u32;
        let config = ModelConfig {
            family,
            layers: keys.size("block_count")?,
            width,
            ff_width: keys.size("feed_forward_length")?,
            query_heads,
            kv_heads: keys.size_or("attention.head_count_kv", query_heads)?,
            head_dim,
            context_length,
            vocab_size: keys.size_or("vocab_size", vocab)?,
            norm_eps: keys.number("attention.layer_norm_rms_epsilon")? as f32,
            // GGUF's default base when the key is absent.
            rope_base: keys.number_or("rope.freq_base", 10_000.0)?,
            pairing: if family == Family::Llama { Pairing::Neighbours } else { Pairing::Halves },
            rope_scaling: keys.rope_scaling(f64::from(context_length))?,
            window: match keys.integer("attention.sliding_window") {
                None | Some(0) => None,
                Some(_) => Some(keys.size("attention.sliding_window")?),
            },
            has_qkv_bias: gguf.has_tensor("blk.0.attn_q.bias"),
            has_qk_norm: family == Family::Qwen3,
            is_tied: !gguf.has_tensor("output.weight"),
        };
        keys.check_heads(&config)?;
        config.check(vocab)?;
        Ok(config)
    }

    /// Checks sizes against each other and against `tokens`, the tokenizer's tokens.
    fn check(&self, tokens: usize) -> Result<(), LoadError> {
        let query_width = self.query_heads.saturating_mul(self.head_dim);
        let rules = [
            (self.layers > 0 && self.layers <= 1024, "1 to 1024 layers"),
            (self.width.is_multiple_of(32), "a width that is a multiple of 32"),
            (self.ff_width.is_multiple_of(32), "a feed-forward width that is a multiple of 32"),
            (self.head_dim > 0 && self.head_dim.is_multiple_of(16), "heads of a multiple of 16"),
            (query_width.is_multiple_of(32), "query heads of a multiple of 32 in all"),
            (
                self.kv_heads > 0 && self.query_heads.is_multiple_of(self.kv_heads),
                "query heads that are a multiple of the key heads",
            ),
            (self.rope_base > 1.0, "a rotary base above 1"),
            (self.vocab_size == tokens, "one token text to each row of the vocabulary"),
        ];
        match rules.iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, rule)) => Err(unsupported(self.family, &format!("without {rule} ({self:?})"))),
        }
    }

    /// The attention's shapes.
    pub(crate) fn heads(&self) -> Heads {
        Heads { query: self.query_heads, kv: self.kv_heads, dim: self.head_dim }
    }

    /// The configuration as one fixed text, for a digest: keys in fixed order, floats as bits.
    ///
    /// A plain Llama of a GGUF file has the text that it had when there was nothing else; the
    /// options of others follow after it.
    pub fn canonical_text(&self) -> String {
        let sizes = format!(
            "{} layers={} width={} ff={} heads={} kv_heads={} head_dim={} context={} vocab={} \
             eps_bits={:08x} rope_base_bits={:016x}",
            self.family.name(),
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
        );
        let is_plain = self.family == Family::Llama
            && self.pairing == Pairing::Neighbours
            && self.rope_scaling == RopeScaling::None
            && self.window.is_none()
            && !self.has_qkv_bias
            && !self.has_qk_norm;
        if is_plain {
            return sizes;
        }
        if self.family.is_adapted() {
            return format!("{sizes} adapted=candle");
        }
        let pairs = match self.pairing {
            Pairing::Neighbours => "neighbours",
            Pairing::Halves => "halves",
            Pairing::None => return format!("{sizes} positions=learned tied={}", self.is_tied),
        };
        format!(
            "{sizes} pairs={pairs} rope={} window={} qkv_bias={} qk_norm={} tied={}",
            self.rope_scaling.canonical_text(),
            self.window.unwrap_or(0),
            self.has_qkv_bias,
            self.has_qk_norm,
            self.is_tied,
        )
    }
}

fn unsupported(family: Family, what: &str) -> LoadError {
    LoadError::UnsupportedArchitecture(format!("{} {what}", family.name()))
}

/// A family's keys of a GGUF file, named without the family.
pub(crate) struct Keys<'a> {
    pub(crate) gguf: &'a Gguf,
    pub(crate) family: Family,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.name())
    }

    fn integer(&self, name: &str) -> Option<u64> {
        self.gguf.integer(&self.key(name))
    }

    pub(crate) fn is_there(&self, name: &str) -> bool {
        self.gguf.value(&self.key(name)).is_some()
    }

    pub(crate) fn size(&self, name: &str) -> Result<usize, LoadError> {
        let found = self.integer(name).and_then(|n| usize::try_from(n).ok());
        // Larger sizes than any real model's are damage, and products of them could overflow.
        found.filter(|n| (1..=1 << 24).contains(n)).ok_or_else(|| {
            let found = self.gguf.value(&self.key(name));
            let reason = format!("an integer from 1 to 2^24 is needed, found {found:?}");
            LoadError::Metadata { key: self.key(name), reason }
        })
    }

    pub(crate) fn size_or(&self, name: &str, default: usize) -> Result<usize, LoadError> {
        match self.is_there(name) {
            true => self.size(name),
            false => Ok(default),
        }
    }

    pub(crate) fn number(&self, name: &str) -> Result<f64, LoadError> {
        let found = self.gguf.number(&self.key(name));
        found.filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| {
            let found = self.gguf.value(&self.key(name));
            let reason = format!("a positive number is needed, found {found:?}");
            LoadError::Metadata { key: self.key(name), reason }
        })
    }

    pub(crate) fn number_or(&self, name: &str, default: f64) -> Result<f64, LoadError> {
        match self.is_there(name) {
            true => self.number(name),
            false => Ok(default),
        }
    }

    /// Refuses what the keys announce and the forward pass doesn't do.
    fn refuse_unknown_habits(&self) -> Result<(), LoadError> {
        // A dense model may say that it has no experts.
        if self.integer("expert_count").is_some_and(|count| count > 0) {
            return Err(unsupported(self.family, "with experts"));
        }
        let habits = [
            ("attention.sliding_window_pattern", "a window in some layers only"),
            ("attention.temperature_scale", "an attention temperature"),
            ("attention.scale", "an attention scale"),
            ("attention.logit_softcapping", "capped attention scores"),
            ("attn_logit_softcapping", "capped attention scores"),
            ("final_logit_softcapping", "capped logits"),
            ("logit_scale", "a logit scale"),
            ("residual_scale", "a residual scale"),
            ("embedding_scale", "an embedding scale"),
            ("rope.dimension_sections", "rotary sections"),
            ("rope.scaling.yarn_log_multiplier", "a YaRN multiplier"),
        ];
        match habits.iter().find(|(key, _)| self.is_there(key)) {
            Some((key, what)) => {
                Err(unsupported(self.family, &format!("with {what} ({})", self.key(key))))
            }
            None => Ok(()),
        }
    }

    /// What other keys say about the size of a head.
    fn check_heads(&self, config: &ModelConfig) -> Result<(), LoadError> {
        let is_whole = |name: &str| {
            self.integer(name).is_none_or(|n| usize::try_from(n) == Ok(config.head_dim))
        };
        if !is_whole("rope.dimension_count") {
            return Err(unsupported(self.family, "without rotary embedding over the whole head"));
        }
        if !is_whole("attention.value_length") {
            return Err(unsupported(self.family, "without values as long as keys"));
        }
        Ok(())
    }

    /// The rules of `rope.scaling.*`; `rope_freqs.weight`, a tensor, is apart from them.
    fn rope_scaling(&self, context: f64) -> Result<RopeScaling, LoadError> {
        // The factor's key had another name before it had a type beside it.
        let factor = match self.is_there("rope.scaling.factor") {
            true => "rope.scaling.factor",
            false => "rope.scale_linear",
        };
        let kind = match self.gguf.value(&self.key("rope.scaling.type")) {
            Some(_) => self.gguf.text(&self.key("rope.scaling.type")).unwrap_or("not a text"),
            None if self.is_there(factor) => "linear",
            None => "none",
        };
        let scaling = match kind {
            "none" => RopeScaling::None,
            "linear" if self.is_there(factor) => {
                RopeScaling::Linear { factor: self.number(factor)? }
            }
            // Without a factor there is nothing to divide by.
            "linear" => RopeScaling::None,
            "yarn" => self.yarn(context)?,
            other => {
                let what = format!("with rope scaling {other:?}");
                return Err(unsupported(self.family, &what));
            }
        };
        scaling.check().map_err(|what| unsupported(self.family, what))?;
        Ok(scaling)
    }

    fn yarn(&self, context: f64) -> Result<RopeScaling, LoadError> {
        if self.number_or("rope.scaling.yarn_ext_factor", 1.0)? != 1.0 {
            return Err(unsupported(self.family, "with a YaRN extrapolation factor"));
        }
        let factor = self.number("rope.scaling.factor")?;
        // One key multiplies YaRN's own rule, the other stands in its place.
        let magnitude = match self.is_there("rope.scaling.yarn_attn_factor") {
            true => self.number("rope.scaling.yarn_attn_factor")?,
            false => {
                let multiple = self.number_or("rope.scaling.attn_factor", 1.0)?;
                RopeScaling::yarn_magnitude(factor) * multiple
            }
        };
        Ok(RopeScaling::Yarn {
            factor,
            original: self.number_or("rope.scaling.original_context_length", context)?,
            fast: self.number_or("rope.scaling.yarn_beta_fast", 32.0)?,
            slow: self.number_or("rope.scaling.yarn_beta_slow", 1.0)?,
            magnitude,
        })
    }
}
