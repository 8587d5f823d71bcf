//! Candle's networks, for architectures that have no forward pass here.
//!
//! For: Gemma 3, Phi 2 and Phi 3 from GGUF files, one sequence at a time.
//! Must never: be chosen for an architecture that `model.rs` computes itself, be called canonical
//! (candle's sums depend on how many rows are computed together), or serve what candle computes
//! wrongly: such files are refused by name, and contexts end where its windows would.
//! Relies on: candle keeping the sequence's keys and values inside the network, in f32, and
//! forgetting them at position 0. They are apart from the KV cache, which only counts the tokens;
//! a network that failed in the middle of a step is begun anew.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma3, quantized_phi, quantized_phi3};

use crate::batch::Batch;
use crate::config::{Family, Keys, ModelConfig, Pairing, RopeScaling};
use crate::error::LoadError;
use crate::files::ModelFiles;
use crate::files::gguf::Gguf;

/// Tokens that Phi computes together; others go one by one. Candle keeps a mask for each length
/// and position that it has seen, so there must be few.
const PIECE: usize = 32;

/// Tokens that Gemma 3 computes together, from position 0 on only: candle's windows are right for
/// one token at a time and for prompts that are shorter than a window.
const GEMMA_PIECE: usize = 128;

/// Gemma 3's layers: all but each sixth see a window, with this base of their angles.
const GEMMA_PATTERN: usize = 6;
const GEMMA_WINDOW_BASE: f64 = 10_000.0;

/// Longest context: candle's networks keep tables and f32 caches for all of it.
const CONTEXT_MAX: usize = 8192;

/// Logits of the last of some tokens, `[1, vocab]`, that stand at a position.
type Forward = Box<dyn FnMut(&Tensor, usize) -> Result<Tensor> + Send>;

/// A network of candle's and the sequence that it holds.
pub(crate) struct Adapter {
    forward: Forward,
    /// What the network has read since position 0.
    read: Vec<u32>,
    logits: Vec<f32>,
    family: Family,
    /// Tokens that are computed together at position 0, at most.
    first_max: usize,
    vocab: usize,
}

/// The configuration of a file that an adapter serves; `None` if none does.
///
/// # Errors
/// [`LoadError`] names what candle would compute wrongly, or the key that is missing or bad.
pub(crate) fn config(gguf: &Gguf) -> std::result::Result<Option<ModelConfig>, LoadError> {
    let name = gguf.text("general.architecture").unwrap_or_default();
    let families = [Family::Gemma3, Family::Phi2, Family::Phi3];
    let Some(family) = families.into_iter().find(|family| family.name() == name) else {
        return Ok(None);
    };
    let keys = Keys { gguf, family };
    refuse_wrongly_computed(&keys)?;
    let vocab_size = gguf.texts("tokenizer.ggml.tokens")?.len();
    let query_heads = keys.size("attention.head_count")?;
    let width = keys.size("embedding_length")?;
    let head_dim = keys.size_or("attention.key_length", width / query_heads)?;
    let eps = match family {
        Family::Phi2 => "attention.layer_norm_epsilon",
        _ => "attention.layer_norm_rms_epsilon",
    };
    // Candle's Phi 3 has no window: its context ends with it.
    let window = keys.size_or("attention.sliding_window", CONTEXT_MAX)?;
    let (context_max, base) = match family {
        Family::Gemma3 => (CONTEXT_MAX, 1_000_000.0),
        Family::Phi2 => (quantized_phi::MAX_SEQ_LEN, 10_000.0),
        _ => (CONTEXT_MAX.min(window), 10_000.0),
    };
    let context = keys.size("context_length")?.min(context_max);
    Ok(Some(ModelConfig {
        family,
        layers: keys.size("block_count")?.min(1024),
        width,
        ff_width: keys.size("feed_forward_length")?,
        query_heads,
        kv_heads: keys.size_or("attention.head_count_kv", query_heads)?,
        head_dim,
        context_length: context as u32,
        vocab_size,
        norm_eps: keys.number(eps)? as f32,
        rope_base: keys.number_or("rope.freq_base", base)?,
        pairing: Pairing::Halves,
        rope_scaling: RopeScaling::None,
        window: (family == Family::Gemma3).then_some(window),
        has_qkv_bias: gguf.has_tensor("blk.0.attn_qkv.bias"),
        has_qk_norm: family == Family::Gemma3,
        is_tied: !gguf.has_tensor("output.weight"),
    }))
}

/// Bytes that the network's weights take: Gemma's as f32, Phi's as they are with a second, f32
/// embedding.
pub(crate) fn memory_bytes(files: &ModelFiles, config: &ModelConfig) -> u64 {
    match config.family {
        Family::Gemma3 => files.parameter_count().saturating_mul(4),
        _ => files.weights_size() + (config.vocab_size * config.width * 4) as u64,
    }
}

/// Candle reads past these without a word.
fn refuse_wrongly_computed(keys: &Keys<'_>) -> std::result::Result<(), LoadError> {
    let is_scaled = keys.number_or("rope.scaling.factor", 1.0)? != 1.0;
    let pattern = keys.size_or("attention.sliding_window_pattern", GEMMA_PATTERN)?;
    let local = keys.number_or("rope.freq_base_swa", GEMMA_WINDOW_BASE)?;
    let refused = [
        (is_scaled, "with rope scaling"),
        (pattern != GEMMA_PATTERN, "with another pattern of windows than five in six"),
        (local != GEMMA_WINDOW_BASE, "with another rotary base of its windows than 10000"),
        (
            keys.family == Family::Gemma3 && keys.gguf.has_tensor("output.weight"),
            "with a head of its own",
        ),
        (keys.gguf.has_tensor("rope_factors_long.weight"), "with long rotary factors"),
        (keys.gguf.has_tensor("rope_freqs.weight"), "with rotary factors"),
        (keys.is_there("attn_logit_softcapping"), "with capped attention scores"),
        (keys.is_there("final_logit_softcapping"), "with capped logits"),
        (
            keys.family != Family::Gemma3
                && keys.number_or("rope.freq_base", 10_000.0)? != 10_000.0,
            "with another rotary base than 10000",
        ),
    ];
    match refused.iter().find(|(is_so, _)| *is_so) {
        Some((_, what)) => {
            let what = format!("{} {what}", keys.family.name());
            Err(LoadError::UnsupportedArchitecture(what))
        }
        None => Ok(()),
    }
}

impl Adapter {
    /// Reads the network from the file, which `Gguf::map` has found sound.
    pub(crate) fn load(
        path: &std::path::Path,
        config: &ModelConfig,
    ) -> std::result::Result<Adapter, LoadError> {
        let name = path.display().to_string();
        let io = |source| LoadError::Io { path: name.clone(), source };
        let format = |reason| LoadError::Format { path: name.clone(), reason };
        let mut file = File::open(path).map_err(io)?;
        // Candle trusts sizes that it reads; what comes of a wrong one is the file's fault.
        let forward = catch_unwind(AssertUnwindSafe(|| network(&mut file, config)));
        let forward = forward.unwrap_or_else(|_| candle_core::bail!("its sizes don't fit"));
        let forward = forward.map_err(|error| format(said(&error)))?;
        let (family, vocab) = (config.family, config.vocab_size);
        let first_max = config.window.unwrap_or(GEMMA_PIECE).min(GEMMA_PIECE);
        Ok(Adapter { forward, read: Vec::new(), logits: Vec::new(), family, first_max, vocab })
    }

    /// Computes the batch's one segment; the wanted logits, `[wanted rows][vocab]`.
    pub(crate) fn forward(&mut self, batch: &Batch<'_>) -> std::result::Result<&mut [f32], String> {
        self.logits.clear();
        let segment = match &batch.segments[..] {
            [] => return Ok(&mut self.logits),
            [segment] => segment,
            several => return Err(format!("{} sequences at once, 1 is possible", several.len())),
        };
        if segment.start > self.read.len() {
            let (start, read) = (segment.start, self.read.len());
            return Err(format!("a segment begins at {start}, {read} tokens were read"));
        }
        if segment.start < self.read.len() {
            // Networks can't step back: they read the beginning again, or begin anew at 0.
            let again = self.read[..segment.start].to_vec();
            self.read.clear();
            self.feed(&again, false).map_err(|error| said(&error))?;
        }
        let wanted = segment.logits.rows(segment.tokens.len());
        // The last token's alone come with those before it.
        let apart = if wanted > 1 { segment.tokens.len() - wanted } else { segment.tokens.len() };
        let (read, kept) = segment.tokens.split_at(apart);
        self.feed(read, false).map_err(|error| said(&error))?;
        if wanted != 1 {
            self.logits.clear();
        }
        self.feed(kept, true).map_err(|error| said(&error))?;
        Ok(&mut self.logits)
    }

    /// Reads `tokens` on from where the network stands; keeps the logits of each, or of the last.
    fn feed(&mut self, tokens: &[u32], keeps_each: bool) -> Result<()> {
        let mut left = tokens;
        while !left.is_empty() {
            let at = self.read.len();
            let count = match self.family {
                _ if keeps_each => 1,
                Family::Gemma3 if at == 0 => left.len().min(self.first_max),
                Family::Gemma3 => 1,
                _ if at.is_multiple_of(PIECE) && left.len() >= PIECE => PIECE,
                _ => 1,
            };
            let (now, later) = left.split_at(count);
            let x = Tensor::new(now, &Device::Cpu)?.unsqueeze(0)?; // [1, tokens]
            let row = (self.forward)(&x, at)?.flatten_all()?.to_vec1::<f32>()?; // [vocab]
            if row.len() != self.vocab {
                candle_core::bail!("{} logits, {} tokens", row.len(), self.vocab);
            }
            if !keeps_each {
                self.logits.clear();
            }
            self.logits.extend_from_slice(&row);
            self.read.extend_from_slice(now);
            left = later;
        }
        Ok(())
    }
}

/// What candle said, without its stack.
fn said(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().into()
}

fn network(file: &mut File, config: &ModelConfig) -> Result<Forward> {
    let mut content = Content::read(file)?;
    let cpu = &Device::Cpu;
    // Candle makes tables for as long a context as the file tells.
    let key = format!("{}.context_length", config.family.name());
    content.metadata.insert(key, Value::U32(config.context_length));
    Ok(match config.family {
        Family::Gemma3 => {
            let weights = gemma_weights(&content, file, config.layers)?;
            let weights = VarBuilder::from_tensors(weights, DType::F32, cpu);
            let mut model = gemma3::Model::new(false, &gemma_config(config), weights)?;
            Box::new(move |x, at| {
                if at == 0 {
                    model.clear_kv_cache();
                }
                model.forward(x, at)
            })
        }
        Family::Phi2 => {
            let mut model = quantized_phi::ModelWeights::from_gguf(content, file, cpu)?;
            Box::new(move |x, at| model.forward(x, at))
        }
        Family::Phi3 => {
            let mut model = quantized_phi3::ModelWeights::from_gguf(false, content, file, cpu)?;
            Box::new(move |x, at| model.forward(x, at))
        }
        own @ (Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Gpt2) => {
            candle_core::bail!("{} has a forward pass of its own", own.name())
        }
    })
}

fn gemma_config(config: &ModelConfig) -> gemma3::Config {
    gemma3::Config {
        attention_bias: false,
        head_dim: config.head_dim,
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: config.width,
        intermediate_size: config.ff_width,
        num_attention_heads: config.query_heads,
        num_hidden_layers: config.layers,
        num_key_value_heads: config.kv_heads,
        rms_norm_eps: f64::from(config.norm_eps),
        rope_theta: config.rope_base,
        rope_local_base_freq: GEMMA_WINDOW_BASE,
        vocab_size: config.vocab_size,
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: config.head_dim,
        sliding_window: config.window.unwrap_or(config.context_length as usize),
        sliding_window_pattern: GEMMA_PATTERN,
        max_position_embeddings: config.context_length as usize,
    }
}

/// The file's weights as f32 under the names of checkpoints. Candle's quantised Gemma 3 has
/// another activation than Gemma's (0.11.1), so its float network serves.
fn gemma_weights(
    content: &Content,
    file: &mut File,
    layers: usize,
) -> Result<HashMap<String, Tensor>> {
    const OF_LAYER: [(&str, &str); 13] = [
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("attn_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let mut names = vec![
        ("token_embd.weight".to_owned(), "model.embed_tokens.weight".to_owned()),
        ("output_norm.weight".to_owned(), "model.norm.weight".to_owned()),
    ];
    for layer in 0..layers {
        names.extend(OF_LAYER.iter().map(|(ours, theirs)| {
            (format!("blk.{layer}.{ours}.weight"), format!("model.layers.{layer}.{theirs}.weight"))
        }));
    }
    let mut weights = HashMap::new();
    for (ours, theirs) in names {
        let weight = content.tensor(file, &ours, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        // GGUF files hold 1 + a norm's weight, the network adds 1 to what it is given.
        let weight = if ours.ends_with("norm.weight") { (weight - 1.0)? } else { weight };
        weights.insert(theirs, weight);
    }
    Ok(weights)
}
