//! The model's weights, as the forward pass uses them.
//!
//! For: names and shapes of a model's tensors, in one place, for every kind of file.
//! Must never: keep a second copy of a matrix, dequantise one, or leave a tensor of the file out
//! of the computation unsaid: one that isn't used means a network that isn't this one.
//! Relies on: a [`Source`] for checked reading, `kernels/pack.rs` for the packed form.

pub(crate) mod gpt2;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::ScopedJoinHandle;

use crate::config::{Family, ModelConfig};
use crate::error::LoadError;
use crate::files::{Order, Safetensors};
use crate::gguf::Gguf;
use crate::kernels::pack::PackedMatrix;

/// How a kind of file calls its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// `blk.0.attn_q.weight` (GGUF specification).
    Gguf,
    /// `model.layers.0.self_attn.q_proj.weight` (HuggingFace's Llama, Mistral and Qwen classes).
    HuggingFace,
}

/// A file or folder of tensors, which several threads read at once.
pub(crate) trait Source: Sync {
    /// How its tensors are called.
    fn naming(&self) -> Naming;
    /// Names of all tensors.
    fn names(&self) -> Vec<String>;
    /// Whether the tensor is there.
    fn has(&self, name: &str) -> bool;
    /// A matrix of `rows` rows of `cols` weights, packed; `order` is the source's.
    fn matrix(
        &self,
        name: &str,
        shape: (usize, usize),
        order: Order,
    ) -> Result<PackedMatrix, LoadError>;
    /// A vector of `len` values as f32.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError>;
}

impl Source for Gguf {
    fn naming(&self) -> Naming {
        Naming::Gguf
    }
    fn names(&self) -> Vec<String> {
        self.tensor_names()
    }
    fn has(&self, name: &str) -> bool {
        self.has_tensor(name)
    }
    fn matrix(
        &self,
        name: &str,
        shape: (usize, usize),
        order: Order,
    ) -> Result<PackedMatrix, LoadError> {
        Gguf::matrix(self, name, shape, order)
    }
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        Gguf::vector(self, name, len)
    }
}

impl Source for Safetensors {
    fn naming(&self) -> Naming {
        Naming::HuggingFace
    }
    fn names(&self) -> Vec<String> {
        self.tensor_names()
    }
    fn has(&self, name: &str) -> bool {
        self.has_tensor(name)
    }
    fn matrix(
        &self,
        name: &str,
        shape: (usize, usize),
        order: Order,
    ) -> Result<PackedMatrix, LoadError> {
        Safetensors::matrix(self, name, shape, order)
    }
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        Safetensors::vector(self, name, len)
    }
}

/// One transformer layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>, // [width]
    /// Query, key and value projections, one below the other.
    pub(crate) qkv: [PackedMatrix; 3], // [heads * dim, width], [kv * dim, width] twice
    /// Added to queries, keys and values as the projections give them.
    pub(crate) qkv_bias: Option<Vec<f32>>, // [(heads + 2 kv) * dim]
    /// Norm weights of each head's query and key.
    pub(crate) qk_norm: Option<[Vec<f32>; 2]>, // [dim] each
    pub(crate) attention_out: [PackedMatrix; 1], // [width, heads * dim]
    pub(crate) ff_norm: Vec<f32>,        // [width]
    pub(crate) gate_up: [PackedMatrix; 2], // [ff, width] twice
    pub(crate) down: [PackedMatrix; 1],  // [width, ff]
}

/// All weights.
pub(crate) struct Weights {
    /// Token embedding, and the output head too where the model ties them.
    pub(crate) embedding: [PackedMatrix; 1], // [vocab, width]
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>, // [width]
    head: Option<[PackedMatrix; 1]>,  // [vocab, width]
    /// Divisors of the rotary frequencies, where the file has them.
    pub(crate) rope_factors: Option<Vec<f32>>, // [dim / 2]
}

impl Weights {
    /// Reads and packs every tensor, on `threads` threads. Takes as long as reading the file.
    ///
    /// # Errors
    /// [`LoadError::Tensor`] for one that is missing or of another shape, and for one that is
    /// there without being used.
    pub(crate) fn load(
        source: &impl Source,
        config: &ModelConfig,
        threads: usize,
    ) -> Result<Weights, LoadError> {
        let parts = &Parts { source, used: Mutex::default() };
        let (width, vocab) = (config.width, config.vocab_size);
        let table = |part: &str| Ok([parts.matrix(&parts.top(part), (vocab, width))?]);
        let (embedding, head, layers) = std::thread::scope(|scope| {
            // The largest matrices begin first, so that no thread is left alone with one.
            let embedding = scope.spawn(|| table("token_embd"));
            let head = (!config.is_tied).then(|| scope.spawn(|| table("output")));
            let layers = side_by_side(threads, config.layers, &|i| Layer::load(parts, config, i));
            (join(embedding), head.map(join), layers)
        });
        let weights = Weights {
            embedding: embedding?,
            layers: layers?,
            output_norm: parts.vector(&parts.top("output_norm"), width)?,
            head: head.transpose()?,
            rope_factors: parts.rope_factors(config)?,
        };
        parts.refuse_unused(config)?;
        Ok(weights)
    }

    /// The matrix that turns the last hidden state into logits.
    pub(crate) fn head(&self) -> &[PackedMatrix] {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes that one decoded token reads: everything once (a tied embedding is the head).
    pub(crate) fn bytes(&self) -> u64 {
        let matrices = self.layers.iter().flat_map(|layer| {
            let parts = layer.qkv.iter().chain(&layer.attention_out);
            parts.chain(&layer.gate_up).chain(&layer.down)
        });
        matrices.chain(self.head()).map(PackedMatrix::bytes).sum()
    }
}

impl Weights {
    /// Bytes that the matrices take: an embedding that is not the head besides [`Self::bytes`].
    pub(crate) fn memory_bytes(&self) -> u64 {
        let apart = self.head.is_some().then(|| self.embedding[0].bytes());
        self.bytes() + apart.unwrap_or_default()
    }
}

impl Layer {
    fn load(
        parts: &Parts<'_, impl Source>,
        config: &ModelConfig,
        index: usize,
    ) -> Result<Layer, LoadError> {
        let (width, ff) = (config.width, config.ff_width);
        let query = config.query_heads * config.head_dim;
        let kv = config.kv_heads * config.head_dim;
        let naming = parts.source.naming();
        let name = |part: &str| naming.of_layer(index, part);
        let projections = [("attn_q", query), ("attn_k", kv), ("attn_v", kv)];
        let mut qkv_bias = None;
        if config.has_qkv_bias {
            let bias = qkv_bias.insert(Vec::with_capacity(query + 2 * kv));
            for (part, len) in projections {
                let name = name(part).replace(".weight", ".bias");
                bias.extend(parts.vector(&name, len)?);
            }
        }
        let qk_norm = match config.has_qk_norm {
            true => Some([
                parts.vector(&name("attn_q_norm"), config.head_dim)?,
                parts.vector(&name("attn_k_norm"), config.head_dim)?,
            ]),
            false => None,
        };
        Ok(Layer {
            attention_norm: parts.vector(&name("attn_norm"), width)?,
            qkv: [
                parts.matrix(&name("attn_q"), (query, width))?,
                parts.matrix(&name("attn_k"), (kv, width))?,
                parts.matrix(&name("attn_v"), (kv, width))?,
            ],
            qkv_bias,
            qk_norm,
            attention_out: [parts.matrix(&name("attn_output"), (width, query))?],
            ff_norm: parts.vector(&name("ffn_norm"), width)?,
            gate_up: [
                parts.matrix(&name("ffn_gate"), (ff, width))?,
                parts.matrix(&name("ffn_up"), (ff, width))?,
            ],
            down: [parts.matrix(&name("ffn_down"), (width, ff))?],
        })
    }
}

impl Naming {
    /// The weight of a part of the layer with this index, by its GGUF name.
    fn of_layer(self, index: usize, part: &str) -> String {
        let part = match (self, part) {
            (Naming::Gguf, part) => return format!("blk.{index}.{part}.weight"),
            (_, "attn_norm") => "input_layernorm",
            (_, "attn_q") => "self_attn.q_proj",
            (_, "attn_k") => "self_attn.k_proj",
            (_, "attn_v") => "self_attn.v_proj",
            (_, "attn_q_norm") => "self_attn.q_norm",
            (_, "attn_k_norm") => "self_attn.k_norm",
            (_, "attn_output") => "self_attn.o_proj",
            (_, "ffn_norm") => "post_attention_layernorm",
            (_, "ffn_gate") => "mlp.gate_proj",
            (_, "ffn_up") => "mlp.up_proj",
            (_, "ffn_down") => "mlp.down_proj",
            (_, other) => other,
        };
        format!("model.layers.{index}.{part}.weight")
    }

    /// A weight outside of the layers, by its GGUF name.
    fn of_top(self, part: &str) -> String {
        match (self, part) {
            (Naming::Gguf, part) => format!("{part}.weight"),
            (Naming::HuggingFace, "token_embd") => "model.embed_tokens.weight".into(),
            (Naming::HuggingFace, "output_norm") => "model.norm.weight".into(),
            (Naming::HuggingFace, "output") => "lm_head.weight".into(),
            (Naming::HuggingFace, other) => format!("model.{other}.weight"),
        }
    }

    /// Whether a tensor that wasn't used changes nothing.
    fn is_idle(self, name: &str, config: &ModelConfig) -> bool {
        match self {
            Naming::Gguf => false,
            // Old checkpoints store the plain rotary angles; the configuration says the same.
            // A tied head may be stored twice, and HuggingFace takes the embedding.
            Naming::HuggingFace => {
                name.ends_with(".rotary_emb.inv_freq")
                    || (config.is_tied && name == self.of_top("output"))
                    || (config.family == Family::Gpt2 && is_mask(name))
            }
        }
    }
}

/// Whether it is the causal mask or its fill value, which old GPT-2 checkpoints store.
fn is_mask(name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
}

/// A source, and what was taken from it.
struct Parts<'a, S> {
    source: &'a S,
    used: Mutex<HashSet<String>>,
}

impl<S: Source> Parts<'_, S> {
    fn top(&self, part: &str) -> String {
        self.source.naming().of_top(part)
    }

    fn used(&self) -> MutexGuard<'_, HashSet<String>> {
        self.used.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A matrix that is stored row by row.
    fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<PackedMatrix, LoadError> {
        self.ordered(name, shape, Order::RowsFirst)
    }

    fn ordered(
        &self,
        name: &str,
        shape: (usize, usize),
        order: Order,
    ) -> Result<PackedMatrix, LoadError> {
        self.used().insert(name.into());
        self.source.matrix(name, shape, order)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.used().insert(name.into());
        self.source.vector(name, len)
    }

    /// Divisors of the rotary frequencies; only GGUF files store such.
    fn rope_factors(&self, config: &ModelConfig) -> Result<Option<Vec<f32>>, LoadError> {
        let name = self.top("rope_freqs");
        if self.source.naming() != Naming::Gguf || !self.source.has(&name) {
            return Ok(None);
        }
        let factors = self.vector(&name, config.head_dim / 2)?;
        // Smaller ones would turn pairs by more than a radian a position: no such model exists,
        // and the angles' accuracy ends at a million radians.
        match factors.iter().all(|factor| (1.0..=f32::MAX).contains(factor)) {
            true => Ok(Some(factors)),
            false => Err(LoadError::Tensor { tensor: name, reason: "a factor is below 1".into() }),
        }
    }

    fn refuse_unused(&self, config: &ModelConfig) -> Result<(), LoadError> {
        let naming = self.source.naming();
        let (names, used) = (self.source.names(), self.used());
        let unused = names.into_iter().filter(|name| !used.contains(name));
        match unused.filter(|name| !naming.is_idle(name, config)).min() {
            None => Ok(()),
            Some(tensor) => {
                let family = config.family.name();
                let reason = format!("the forward pass of {family} has no use for it");
                Err(LoadError::Tensor { tensor, reason })
            }
        }
    }
}

/// `make(0)` … `make(count - 1)`, on `threads` threads; after an error the others end early.
fn side_by_side<T: Send>(
    threads: usize,
    count: usize,
    make: &(dyn Fn(usize) -> Result<T, LoadError> + Sync),
) -> Result<Vec<T>, LoadError> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, T)>, LoadError> {
        let mut made = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return Ok(made);
            }
            let one = make(i).inspect_err(|_| next.store(count, Ordering::Relaxed))?;
            made.push((i, one));
        }
    };
    let made: Result<Vec<_>, LoadError> = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(count)).map(|_| scope.spawn(work)).collect();
        let own = work();
        std::iter::once(own).chain(others.into_iter().map(join)).collect()
    });
    let mut made: Vec<(usize, T)> = made?.into_iter().flatten().collect();
    made.sort_unstable_by_key(|(i, _)| *i);
    Ok(made.into_iter().map(|(_, one)| one).collect())
}

/// A thread's result; its panic goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
