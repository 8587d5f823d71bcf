//! The forward pass: a Llama transformer, readable from top to bottom.
//!
//! For: turning a ragged batch of token rows into logits.
//! Must never: keep anything of a sequence: the KV cache is an argument, so that sequences
//! batch; never let rows influence each other except through their own sequence's cache.
//! Relies on: `ops.rs` for the operations, `weights.rs` for the weights.
//!
//! ```text
//! x = embedding[ids]
//! each layer:  qkv = (norm x)·Wqkv;  a = attention(rope qkv, cache);  x += a·Wo
//!              h = silu(norm x·Wgate)·(norm x·Wup);                   x += h·Wdown
//! logits = (norm x[wanted rows])·Whead
//! ```

use std::path::Path;
use std::sync::Mutex;

use candle_core::{Device, Tensor};

use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::files::{ModelFiles, ModelKind};
use crate::kernels::attention::{RowPlace, Rows};
use crate::kernels::threads::Threads;
use crate::kernels::{Cpu, Isa};
use crate::kv::{BLOCK_TOKENS, BlockTable, KvPool};
use crate::math;
use crate::ops::{Attention, LinearAdd, Machine, NormLinear};
use crate::weights::Weights;

/// Which rows of a segment the output head is computed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: a prefill chunk with more to come.
    None,
    /// The last row: what the next token is sampled from.
    Last,
    /// Every row, for tests and measurements.
    All,
}

/// Consecutive tokens of one sequence.
#[derive(Debug)]
pub struct Segment<'a> {
    /// Ids of the tokens, at least one.
    pub tokens: &'a [u32],
    /// Position of the first of them; all before it are in the cache.
    pub start: usize,
    /// The sequence's cache blocks, enough for `start + tokens.len()`.
    pub table: &'a BlockTable,
    /// Rows that logits are wanted for.
    pub logits: Logits,
}

/// Rows that are computed together: prefill chunks and decode rows of several sequences. The
/// result of a row doesn't depend on what else is in the batch.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// One segment for each sequence at most.
    pub segments: Vec<Segment<'a>>,
}

/// A loaded model. Cheap to share; one forward pass at a time.
pub struct Model {
    config: ModelConfig,
    weights: Weights,
    machine: Machine,
    /// Angle of each pair of a head at position 1.
    frequencies: Vec<f64>, // [dim / 2]
}

/// A batch was refused, or a tensor operation failed. Nothing useful is in the cache for its
/// positions.
#[derive(Debug, thiserror::Error)]
#[error("forward pass: {0}")]
pub struct ForwardError(String);

impl From<candle_core::Error> for ForwardError {
    fn from(error: candle_core::Error) -> Self {
        ForwardError(error.to_string())
    }
}

impl Model {
    /// Loads a GGUF file or a folder of safetensors for `threads` threads in all, on `isa` or the best instruction set.
    ///
    /// Blocks for as long as reading the file takes.
    pub fn load(path: &Path, threads: usize, isa: Option<Isa>) -> Result<Model, LoadError> {
        Model::from_files(&ModelFiles::open(path)?, threads, isa)
    }

    pub(crate) fn from_files(
        files: &ModelFiles,
        threads: usize,
        isa: Option<Isa>,
    ) -> Result<Model, LoadError> {
        let isa = isa.unwrap_or_else(Isa::best);
        let option = |option, reason| LoadError::Options { option, reason };
        let cpu =
            Cpu::new(isa).ok_or_else(|| option("isa", format!("this processor has no {isa:?}")))?;
        let (config, weights) = match files.kind() {
            ModelKind::Gguf(gguf) => {
                let config = ModelConfig::from_gguf(gguf)?;
                let weights = Weights::load(gguf, &config)?;
                (config, weights)
            }
            ModelKind::Folder(_) => {
                return Err(LoadError::UnsupportedArchitecture("safetensors".into()));
            }
        };
        let threads = Threads::new(threads)
            .map_err(|e| option("threads", format!("cannot start {threads}: {e}")))?;
        let frequencies = frequencies(&config, weights.rope_factors.as_deref());
        Ok(Model { config, weights, machine: Machine { cpu, threads }, frequencies })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Bytes of weights that one decoded token reads.
    pub fn weights_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.machine.cpu.isa()
    }

    /// Runs the batch, writes its keys and values into `kv`, and returns the wanted logits,
    /// `[wanted rows, vocab]` f32, in the order of the batch; `None` if none are wanted.
    ///
    /// Synchronous: blocks until done, on the calling thread and the model's own.
    ///
    /// # Errors
    /// [`ForwardError`] for an id or position out of range, or two segments that write the same
    /// cache block.
    pub fn forward(
        &self,
        batch: &Batch<'_>,
        kv: &mut KvPool,
    ) -> Result<Option<Tensor>, ForwardError> {
        self.check(batch, kv)?;
        let places = places(batch);
        let (cos, sin) = self.angles(&places);
        let bases = |layer| -> Vec<Vec<usize>> {
            let of = |segment: &Segment<'_>| {
                segment.table.blocks.iter().map(|block| (*block, layer)).collect::<Vec<_>>()
            };
            let tables = batch.segments.iter().map(of);
            tables.map(|t| t.into_iter().map(|(b, l)| kv.base(b, l)).collect()).collect()
        };
        let bases: Vec<_> = (0..self.config.layers).map(bases).collect();
        let kv = Mutex::new(kv);
        let machine = &self.machine;
        let eps = self.config.norm_eps;

        let mut x = self.embed(batch)?; // [rows, width]
        for (layer, bases) in self.weights.layers.iter().zip(&bases) {
            let norm = (layer.attention_norm.as_slice(), eps);
            let project = NormLinear { machine, norm, weights: &layer.qkv, gated: false };
            let qkv = x.apply_op1_no_bwd(&project)?; // [rows, (h + 2 kv) * dim]

            let heads = self.config.heads();
            let rows = Rows { heads, places: &places, bases, cos: &cos, sin: &sin };
            let attention = Attention { machine, rows, kv: &kv };
            let mixed = qkv.apply_op1_no_bwd(&attention)?; // [rows, h * dim]
            let out = LinearAdd { machine, weights: &layer.attention_out };
            x = mixed.apply_op2_no_bwd(&x, &out)?; // [rows, width]

            let norm = (layer.ff_norm.as_slice(), eps);
            let gate_up = NormLinear { machine, norm, weights: &layer.gate_up, gated: true };
            let hidden = x.apply_op1_no_bwd(&gate_up)?; // [rows, ff]
            let down = LinearAdd { machine, weights: &layer.down };
            x = hidden.apply_op2_no_bwd(&x, &down)?; // [rows, width]
        }
        let Some(x) = wanted_rows(batch, &x)? else {
            return Ok(None);
        };
        let norm = (self.weights.output_norm.as_slice(), eps);
        let head = NormLinear { machine, norm, weights: self.weights.head(), gated: false };
        Ok(Some(x.apply_op1_no_bwd(&head)?)) // [wanted rows, vocab]
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
            if let Some(id) = segment.tokens.iter().find(|id| **id as usize >= self.vocab()) {
                return fail(format!("id {id} is not in the vocabulary of {}", self.vocab()));
            }
            let blocks = segment.start / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
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

    /// The embedding rows of the batch's tokens, `[rows, width]`.
    fn embed(&self, batch: &Batch<'_>) -> Result<Tensor, ForwardError> {
        let width = self.config.width;
        let ids: Vec<u32> = batch.segments.iter().flat_map(|s| s.tokens).copied().collect();
        let mut x = vec![0.0; ids.len() * width];
        for (id, x) in ids.iter().zip(x.chunks_exact_mut(width)) {
            self.weights.embedding[0].row(*id as usize, x);
        }
        Ok(Tensor::from_vec(x, (ids.len(), width), &Device::Cpu)?)
    }

    /// Cosines and sines of every row's angles, each `[rows][dim / 2]`. Computed anew for each
    /// batch: it costs microseconds, a table for a long context costs megabytes.
    fn angles(&self, places: &[RowPlace]) -> (Vec<f32>, Vec<f32>) {
        let angles = places.iter().flat_map(|place| {
            let position = place.position as f64;
            self.frequencies.iter().map(move |frequency| math::sin_cos(position * frequency))
        });
        angles.map(|(sin, cos)| (cos as f32, sin as f32)).unzip()
    }
}

/// base^(−2i / dim), divided by the file's factors if it has them.
fn frequencies(config: &ModelConfig, factors: Option<&[f32]>) -> Vec<f64> {
    let ln_base = math::ln(config.rope_base);
    let frequency = |i: usize| {
        let exponent = (2 * i) as f64 / config.head_dim as f64;
        let factor = factors.map_or(1.0, |factors| f64::from(factors[i]));
        math::exp(-exponent * ln_base) / factor
    };
    (0..config.head_dim / 2).map(frequency).collect()
}

fn places(batch: &Batch<'_>) -> Vec<RowPlace> {
    let mut places = Vec::new();
    for (sequence, segment) in batch.segments.iter().enumerate() {
        let positions = segment.start..segment.start + segment.tokens.len();
        places.extend(positions.map(|position| RowPlace { position, sequence }));
    }
    places
}

/// The rows of `x` that logits are wanted for: the head is the largest matrix.
fn wanted_rows(batch: &Batch<'_>, x: &Tensor) -> Result<Option<Tensor>, ForwardError> {
    let mut wanted = Vec::new();
    let mut first = 0;
    for segment in &batch.segments {
        let end = first + segment.tokens.len() as u32;
        match segment.logits {
            Logits::None => {}
            Logits::Last => wanted.push(end - 1),
            Logits::All => wanted.extend(first..end),
        }
        first = end;
    }
    if wanted.is_empty() {
        return Ok(None);
    }
    if wanted.len() == first as usize {
        return Ok(Some(x.clone()));
    }
    let count = wanted.len();
    Ok(Some(x.index_select(&Tensor::from_vec(wanted, count, &Device::Cpu)?, 0)?))
}
