//! The architecture that a HuggingFace `config.json` describes.
//!
//! For: safetensors checkpoints of the families that have a forward pass here.
//! Must never: pass over a setting that changes numbers: what isn't done is refused by name.
//! Relies on: the defaults of HuggingFace's configuration classes (transformers 4.51), named
//! where one is used.

mod gpt2;

use serde_json::Value;

use super::{Family, ModelConfig, Pairing, RopeScaling, unsupported};
use crate::error::LoadError;

impl ModelConfig {
    /// Reads and checks a `config.json`.
    ///
    /// The vocabulary may have more rows than the tokenizer has tokens: checkpoints pad it.
    ///
    /// # Errors
    /// [`LoadError`] names the key that is missing or bad, or what isn't supported.
    pub fn from_hf(config: &Value) -> Result<ModelConfig, LoadError> {
        if gpt2::is_gpt2(config) {
            return gpt2::read(config);
        }
        let architecture = config["architectures"][0].as_str().unwrap_or("unnamed");
        let family = match architecture {
            "LlamaForCausalLM" | "MistralForCausalLM" => Family::Llama,
            "Qwen2ForCausalLM" => Family::Qwen2,
            "Qwen3ForCausalLM" => Family::Qwen3,
            other => return Err(LoadError::UnsupportedArchitecture(other.into())),
        };
        let keys = Keys { config, family };
        keys.refuse_unknown_habits()?;
        let is_mistral = architecture == "MistralForCausalLM";
        let query_heads = keys.size("num_attention_heads")?;
        let width = keys.size("hidden_size")?;
        let kv_heads = match keys.is_there("num_key_value_heads") || architecture != LLAMA {
            true => keys.size("num_key_value_heads")?,
            false => query_heads,
        };
        let head_dim = match keys.is_there("head_dim") {
            true => keys.size("head_dim")?,
            // Qwen3's default doesn't follow from its other sizes.
            false if family == Family::Qwen3 => 128,
            false => width.checked_div(query_heads).unwrap_or(0),
        };
        let context_length = keys.size("max_position_embeddings")?.min(1_000_000) as u32;
        let vocab_size = keys.size("vocab_size")?;
        let rope = keys.rope(context_length)?;
        let config = ModelConfig {
            family,
            layers: keys.size("num_hidden_layers")?,
            width,
            ff_width: keys.size("intermediate_size")?,
            query_heads,
            kv_heads,
            head_dim,
            context_length,
            vocab_size,
            norm_eps: keys.single("rms_norm_eps", None)?,
            rope_base: rope.0,
            pairing: Pairing::Halves,
            rope_scaling: rope.1,
            window: if is_mistral { keys.mistral_window()? } else { None },
            has_qkv_bias: family == Family::Qwen2,
            has_qk_norm: family == Family::Qwen3,
            is_tied: keys.flag("tie_word_embeddings", false)?,
        };
        config.check(vocab_size)?;
        Ok(config)
    }
}

const LLAMA: &str = "LlamaForCausalLM";

/// The keys of a `config.json`.
struct Keys<'a> {
    config: &'a Value,
    family: Family,
}

impl Keys<'_> {
    /// Whether the key is there; null is HuggingFace's word for absent.
    fn is_there(&self, key: &str) -> bool {
        !self.config[key].is_null()
    }

    fn size(&self, key: &str) -> Result<usize, LoadError> {
        let found = self.config[key].as_u64().and_then(|n| usize::try_from(n).ok());
        found.filter(|n| (1..=1 << 24).contains(n)).ok_or_else(|| {
            let found = &self.config[key];
            let reason = format!("an integer from 1 to 2^24 is needed, found {found}");
            LoadError::Metadata { key: key.into(), reason }
        })
    }

    fn number(&self, of: &Value, key: &str) -> Result<f64, LoadError> {
        let found = of[key].as_f64().filter(|x| x.is_finite() && *x > 0.0);
        found.ok_or_else(|| {
            let reason = format!("a positive number is needed, found {}", of[key]);
            LoadError::Metadata { key: key.into(), reason }
        })
    }

    fn number_or(&self, of: &Value, key: &str, default: f64) -> Result<f64, LoadError> {
        if of[key].is_null() { Ok(default) } else { self.number(of, key) }
    }

    /// A positive number that f32 holds with all of its digits.
    fn single(&self, key: &str, default: Option<f64>) -> Result<f32, LoadError> {
        let number = match default {
            Some(default) => self.number_or(self.config, key, default)?,
            None => self.number(self.config, key)?,
        };
        Some(number as f32).filter(|x| x.is_normal()).ok_or_else(|| {
            let reason = format!("{number:e} is beyond what f32 holds");
            LoadError::Metadata { key: key.into(), reason }
        })
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        match &self.config[key] {
            Value::Null => Ok(default),
            Value::Bool(flag) => Ok(*flag),
            found => {
                let reason = format!("true or false is needed, found {found}");
                Err(LoadError::Metadata { key: key.into(), reason })
            }
        }
    }

    fn refuse(&self, key: &str) -> LoadError {
        unsupported(self.family, &format!("with {key} {}", self.config[key]))
    }

    fn refuse_unknown_habits(&self) -> Result<(), LoadError> {
        let is = |key: &str, values: &[Value]| {
            !self.is_there(key) || values.iter().any(|value| *value == self.config[key])
        };
        let none: &[Value] = &[];
        let no = &[Value::Bool(false)];
        let rules = [
            ("hidden_act", &[Value::from("silu")][..]),
            // Where it is allowed it gives the output projection a bias too.
            ("attention_bias", no),
            ("mlp_bias", no),
            ("use_sliding_window", no),
            ("partial_rotary_factor", &[Value::from(1.0), Value::from(1)]),
            ("quantization_config", none),
            ("num_local_experts", none),
            ("num_experts", none),
        ];
        if let Some((key, _)) = rules.iter().find(|(key, values)| !is(key, values)) {
            return Err(self.refuse(key));
        }
        let layers = self.config["layer_types"].as_array();
        if layers.is_some_and(|types| types.iter().any(|kind| kind != "full_attention")) {
            return Err(self.refuse("layer_types"));
        }
        Ok(())
    }

    /// Mistral's window; its configuration's default is 4096, its word for none is null.
    fn mistral_window(&self) -> Result<Option<usize>, LoadError> {
        match self.config.get("sliding_window") {
            None => Ok(Some(4096)),
            Some(Value::Null) => Ok(None),
            Some(_) => Ok(Some(self.size("sliding_window")?)),
        }
    }

    /// Base and scaling of the rotary angles.
    fn rope(&self, context_length: u32) -> Result<(f64, RopeScaling), LoadError> {
        let config = self.config;
        // transformers 5 keeps base and scaling in one place.
        let (scaling, base) = match &config["rope_parameters"] {
            Value::Null => (&config["rope_scaling"], config),
            parameters => (parameters, parameters),
        };
        let base = self.number_or(base, "rope_theta", 10_000.0)?;
        let kind = match (&scaling["rope_type"], &scaling["type"]) {
            (Value::Null, Value::Null) => "default",
            (Value::Null, kind) | (kind, _) => kind.as_str().unwrap_or("not a text"),
        };
        let factor = || self.number(scaling, "factor");
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low: self.number(scaling, "low_freq_factor")?,
                high: self.number(scaling, "high_freq_factor")?,
                original: self.number(scaling, "original_max_position_embeddings")?,
            },
            "yarn" => self.yarn(scaling, f64::from(context_length))?,
            other => {
                let what = format!("with rope scaling {other:?}");
                return Err(unsupported(self.family, &what));
            }
        };
        scaling.check().map_err(|what| unsupported(self.family, what))?;
        Ok((base, scaling))
    }

    fn yarn(&self, scaling: &Value, context: f64) -> Result<RopeScaling, LoadError> {
        for key in ["mscale", "mscale_all_dim", "truncate"] {
            if !scaling[key].is_null() {
                let what = format!("with {key} in its YaRN scaling");
                return Err(unsupported(self.family, &what));
            }
        }
        let factor = self.number(scaling, "factor")?;
        let rule = RopeScaling::yarn_magnitude(factor);
        Ok(RopeScaling::Yarn {
            factor,
            original: self.number_or(scaling, "original_max_position_embeddings", context)?,
            fast: self.number_or(scaling, "beta_fast", 32.0)?,
            slow: self.number_or(scaling, "beta_slow", 1.0)?,
            magnitude: self.number_or(scaling, "attention_factor", rule)?,
        })
    }
}
