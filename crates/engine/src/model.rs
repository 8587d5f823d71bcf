//! A model, and the forward pass of the Llama and Qwen families, readable from top to bottom.
//!
//! For: turning a ragged batch of token rows into logits; GPT-2's way is in `gpt2.rs`.
//! Must never: keep anything of a sequence: the KV cache is an argument, so that sequences
//! batch; never let rows influence each other except through their own sequence's cache.
//! Relies on: `ops.rs` for the operations, `weights.rs` for the weights.
//!
//! ```text
//! x = embedding[ids]
//! each layer:  qkv = (norm x)·Wqkv (+ bias; head norms);
//!              a = attention(rope qkv, cache);                        x += a·Wo
//!              h = silu(norm x·Wgate)·(norm x·Wup);                   x += h·Wdown
//! logits = (norm x[wanted rows])·Whead
//! ```

use std::path::Path;

use crate::adapter::{self, Adapter};
pub use crate::batch::{Batch, Logits, Outputs, Segment};
use crate::config::{Family, ModelConfig};
use crate::error::LoadError;
use crate::files::{ModelFiles, ModelKind};
use crate::gpt2::Gpt2;
use crate::kernels::attention::{HeadNorms, RowPlace, Rows};
use crate::kernels::threads::{Crew, Threads};
use crate::kernels::{Cpu, Isa};
use crate::kv::{BLOCK_TOKENS, KvPool};
use crate::ops::{Machine, Scratch};
use crate::probe::{Nobody, Probe, Stage};
use crate::rope::{Pairing, Rope};
use crate::weights::gpt2::Gpt2Weights;
use crate::weights::{Source, Weights};

/// A loaded model. One forward pass at a time.
pub struct Model {
    config: ModelConfig,
    cpu: Cpu,
    network: Network,
}

/// What computes a model.
enum Network {
    /// Llama and Qwen.
    Rotary(Box<Transformer>),
    Gpt2(Box<Gpt2>),
    /// One sequence at a time, its keys and values apart from the cache; not canonical.
    Adapted {
        adapter: Box<Adapter>,
        bytes: u64,
    },
}

/// The forward pass of the families whose positions are rotary.
struct Transformer {
    weights: Weights,
    machine: Machine,
    rope: Rope,
    buffers: Buffers,
}

/// What a step computes, kept so that a step allocates next to nothing.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,      // [rows, width]
    qkv: Vec<f32>,    // [rows, (h + 2 kv) * dim]
    mixed: Vec<f32>,  // [rows, h * dim]
    hidden: Vec<f32>, // [rows, ff]
    states: Vec<f32>, // [wanted rows, width]
    logits: Vec<f32>, // [wanted rows, vocab]
    scratch: Scratch,
}

/// A batch was refused; nothing was computed.
#[derive(Debug, thiserror::Error)]
#[error("forward pass: {0}")]
pub struct ForwardError(String);

impl Model {
    /// Loads a GGUF file or a folder of safetensors for `threads` threads in all, on `isa` or the
    /// best instruction set.
    ///
    /// Blocks for as long as reading the file takes.
    pub fn load(path: &Path, threads: usize, isa: Option<Isa>) -> Result<Model, LoadError> {
        let crew = Crew { count: threads, is_pinned: false };
        Model::from_files(&ModelFiles::open(path)?, crew, isa)
    }

    pub(crate) fn from_files(
        files: &ModelFiles,
        crew: Crew,
        isa: Option<Isa>,
    ) -> Result<Model, LoadError> {
        let isa = isa.unwrap_or_else(Isa::best);
        let cpu = Cpu::new(isa).ok_or_else(|| LoadError::Options {
            option: "isa",
            reason: format!("this processor has no {isa:?}"),
        })?;
        Model::on_cpu(files, crew, cpu)
    }

    /// The same on a processor that is known.
    pub(crate) fn on_cpu(files: &ModelFiles, crew: Crew, cpu: Cpu) -> Result<Model, LoadError> {
        match files.kind() {
            ModelKind::Gguf(gguf) => match adapter::config(gguf)? {
                Some(config) => Model::adapted(files, config, cpu),
                None => Model::own(gguf, ModelConfig::from_gguf(gguf)?, (cpu, crew)),
            },
            ModelKind::Folder(folder) => {
                let config = ModelConfig::from_hf(folder.config())?;
                Model::own(folder.tensors(), config, (cpu, crew))
            }
        }
    }

    /// A model that has a forward pass here, from wherever its weights are.
    pub(crate) fn own(
        source: &impl Source,
        config: ModelConfig,
        (cpu, crew): (Cpu, Crew),
    ) -> Result<Model, LoadError> {
        let machine = || match Threads::start(crew) {
            Ok(threads) => Ok(Machine { cpu, threads }),
            Err(error) => {
                let reason = format!("cannot start {}: {error}", crew.count);
                Err(LoadError::Options { option: "threads", reason })
            }
        };
        let network = if config.family == Family::Gpt2 {
            let weights = Gpt2Weights::load(source, &config, crew.count)?;
            Network::Gpt2(Box::new(Gpt2::new(weights, machine()?)))
        } else {
            let weights = Weights::load(source, &config, crew.count)?;
            let factors = weights.rope_factors.as_deref();
            let rope = Rope::new(config.head_dim, config.rope_base, factors, &config.rope_scaling);
            let (machine, buffers) = (machine()?, Buffers::default());
            Network::Rotary(Box::new(Transformer { weights, machine, rope, buffers }))
        };
        Ok(Model { config, cpu, network })
    }

    fn adapted(files: &ModelFiles, config: ModelConfig, cpu: Cpu) -> Result<Model, LoadError> {
        let adapter = Box::new(Adapter::load(files.path(), &config)?);
        let bytes = adapter::memory_bytes(files, &config);
        Ok(Model { config, cpu, network: Network::Adapted { adapter, bytes } })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Version of the numeric rules that it follows; 0 where it follows none: then a batch has
    /// one segment at most, and another machine may find other bits.
    pub fn engine_spec(&self) -> u32 {
        match self.network {
            Network::Rotary(_) | Network::Gpt2(_) => crate::ENGINE_SPEC_VERSION,
            Network::Adapted { .. } => 0,
        }
    }

    /// Bytes of weights that one decoded token reads.
    pub fn weights_bytes(&self) -> u64 {
        match &self.network {
            Network::Rotary(own) => own.weights.bytes(),
            Network::Gpt2(own) => own.weights.bytes(),
            Network::Adapted { bytes, .. } => *bytes,
        }
    }

    /// For tests that compute something wrong on purpose.
    #[cfg(test)]
    pub(crate) fn config_mut(&mut self) -> &mut ModelConfig {
        &mut self.config
    }

    /// Keeps the calling thread, the only one that is to call [`Self::forward`] from now on, on
    /// a processor of its own where the model's other threads are kept on theirs. Candle's
    /// threads are its own affair, and would be held on that one processor too.
    pub(crate) fn pin_caller(&self) -> std::io::Result<()> {
        match &self.network {
            Network::Rotary(own) => own.machine.threads.pin_caller(),
            Network::Gpt2(own) => own.machine.threads.pin_caller(),
            Network::Adapted { .. } => Ok(()),
        }
    }

    pub(crate) fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Bytes of memory that all weights take.
    pub fn memory_bytes(&self) -> u64 {
        match &self.network {
            Network::Rotary(own) => own.weights.memory_bytes(),
            Network::Gpt2(own) => own.weights.memory_bytes(),
            Network::Adapted { bytes, .. } => *bytes,
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.cpu.isa()
    }

    /// Runs the batch, writes its keys and values into `kv`, and returns the wanted rows.
    ///
    /// Synchronous: blocks until done, on the calling thread and the model's own.
    ///
    /// # Errors
    /// [`ForwardError`] for an id or position out of range, or two segments that write the same
    /// cache block.
    pub fn forward(
        &mut self,
        batch: &Batch<'_>,
        kv: &mut KvPool,
    ) -> Result<Outputs<'_>, ForwardError> {
        self.forward_seen(batch, kv, &mut Nobody)
    }

    /// The same, watched.
    pub(crate) fn forward_seen(
        &mut self,
        batch: &Batch<'_>,
        kv: &mut KvPool,
        probe: &mut impl Probe,
    ) -> Result<Outputs<'_>, ForwardError> {
        self.check(batch, kv)?;
        match &mut self.network {
            Network::Rotary(own) => Ok(own.forward(&self.config, (batch, kv), probe)),
            Network::Gpt2(own) => Ok(own.forward(&self.config, (batch, kv), probe)),
            Network::Adapted { adapter, .. } => {
                let logits = adapter.forward(batch).map_err(ForwardError)?;
                Ok(Outputs { logits, states: &[] })
            }
        }
    }

    fn check(&self, batch: &Batch<'_>, kv: &KvPool) -> Result<(), ForwardError> {
        let fail = |what: String| Err(ForwardError(what));
        let mut written = Vec::new();
        for segment in &batch.segments {
            let end = segment.start + segment.tokens.len();
            if segment.tokens.is_empty() || segment.table.capacity() < end {
                let capacity = segment.table.capacity();
                return fail(format!("a segment ends at {end}, its table holds {capacity}"));
            }
            // Learned positions end with their table, whatever the caller makes of the context.
            if self.config.pairing == Pairing::None && end > self.config.context_length as usize {
                let most = self.config.context_length;
                return fail(format!("a segment ends at {end}, there are {most} positions"));
            }
            if let Some(id) = segment.tokens.iter().find(|id| **id as usize >= self.vocab()) {
                return fail(format!("id {id} is not in the vocabulary of {}", self.vocab()));
            }
            let blocks = segment.start / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
            if blocks.start < segment.table.shared {
                return fail(format!(
                    "a segment writes from {} on, to shared blocks",
                    segment.start
                ));
            }
            written.extend_from_slice(&segment.table.blocks[blocks]);
        }
        written.sort_unstable();
        let shared = written.windows(2).any(|pair| pair[0] == pair[1]);
        let beyond = written.last().is_some_and(|block| *block as usize >= kv.total_blocks());
        if shared || beyond {
            return fail("two segments write one cache block, or a block is foreign".into());
        }
        Ok(())
    }

    fn vocab(&self) -> usize {
        self.config.vocab_size
    }
}

impl Transformer {
    fn forward(
        &mut self,
        config: &ModelConfig,
        (batch, kv): (&Batch<'_>, &mut KvPool),
        probe: &mut impl Probe,
    ) -> Outputs<'_> {
        let (places, tables) = (batch.places(), batch.tables());
        let (cos, sin) = self.angles(&places);
        let (machine, weights) = (&self.machine, &self.weights);
        let eps = config.norm_eps;
        let Buffers { x, qkv, mixed, hidden, states, logits, scratch } = &mut self.buffers;

        embed(weights, config.width, batch, x);
        probe.see(Stage::Embedded, 0, x);
        for (index, layer) in weights.layers.iter().enumerate() {
            machine.norm_linear((x, (&layer.attention_norm, eps)), &layer.qkv, scratch, qkv);
            probe.see(Stage::Qkv, index, qkv);
            let norms = layer.qk_norm.as_ref();
            let rows = Rows {
                heads: config.heads(),
                places: &places,
                tables: &tables,
                layer_at: kv.layer_at(index),
                window: config.window,
                bias: layer.qkv_bias.as_deref(),
                norms: norms.map(|[query, key]| HeadNorms { query, key, eps }),
                pairing: config.pairing,
                cos: &cos,
                sin: &sin,
            };
            machine.attention(&rows, (qkv, kv), scratch, mixed);
            probe.see(Stage::Turned, index, qkv);
            probe.see(Stage::Mixed, index, mixed);
            machine.linear_add(mixed, &layer.attention_out, scratch, x);
            probe.see(Stage::Middle, index, x);

            machine.norm_gate((x, (&layer.ff_norm, eps)), &layer.gate_up, scratch, hidden);
            probe.see(Stage::Active, index, hidden);
            machine.linear_add(hidden, &layer.down, scratch, x);
            probe.see(Stage::Out, index, x);
        }
        batch.keep_wanted_rows(config.width, x);
        machine.norm(x, (&weights.output_norm, eps), states);
        probe.see(Stage::State, config.layers, states);
        machine.linear(states, weights.head(), scratch, logits);
        probe.see(Stage::Logits, config.layers, logits);
        Outputs { logits, states }
    }

    /// Cosines and sines of every row's angles, each `[rows][dim / 2]`. Computed anew for each
    /// batch: it costs microseconds, a table for a long context costs megabytes.
    fn angles(&self, places: &[RowPlace]) -> (Vec<f32>, Vec<f32>) {
        places.iter().flat_map(|place| self.rope.at(place.position)).unzip()
    }
}

/// The embedding rows of the batch's tokens, `[rows, width]`.
fn embed(weights: &Weights, width: usize, batch: &Batch<'_>, x: &mut Vec<f32>) {
    x.resize(batch.ids().count() * width, 0.0);
    for (id, x) in batch.ids().zip(x.chunks_exact_mut(width)) {
        weights.embedding[0].row(id as usize, x);
    }
}
