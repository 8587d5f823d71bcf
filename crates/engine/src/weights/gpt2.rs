//! GPT-2's weights, as its forward pass uses them.
//!
//! For: names, shapes and orientation of a GPT-2's tensors.
//! Must never: take a matrix the wrong way round: HuggingFace's `Conv1D` stores `[in, out]`,
//! products here read `[out, in]`, and shapes are compared before a matrix is turned.
//! Relies on: `weights.rs` for reading several tensors at once and for counting what was used.

use std::sync::Mutex;

use super::{Parts, Source, join, side_by_side};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::files::Order;
use crate::kernels::pack::PackedMatrix;

/// A layer norm's weight and bias.
pub(crate) struct Norm {
    pub(crate) weight: Vec<f32>, // [width]
    pub(crate) bias: Vec<f32>,   // [width]
}

/// A projection.
pub(crate) struct Linear {
    pub(crate) matrix: [PackedMatrix; 1], // [out, in]
    pub(crate) bias: Vec<f32>,            // [out]
}

/// One transformer layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: Norm,
    /// Queries, keys and values of all heads, one below the other.
    pub(crate) qkv: Linear, // [3 * width, width]
    pub(crate) attention_out: Linear, // [width, width]
    pub(crate) ff_norm: Norm,
    pub(crate) up: Linear,   // [ff, width]
    pub(crate) down: Linear, // [width, ff]
}

/// All weights.
pub(crate) struct Gpt2Weights {
    /// Token embedding, and the output head too where the model ties them.
    pub(crate) embedding: [PackedMatrix; 1], // [vocab, width]
    pub(crate) positions: PackedMatrix, // [context, width]
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Norm,
    head: Option<[PackedMatrix; 1]>, // [vocab, width]
}

impl Gpt2Weights {
    /// Reads and packs every tensor, on `threads` threads. Takes as long as reading the file.
    ///
    /// # Errors
    /// [`LoadError::Tensor`] for one that is missing or of another shape, and for one that is
    /// there without being used.
    pub(crate) fn load(
        source: &impl Source,
        config: &ModelConfig,
        threads: usize,
    ) -> Result<Gpt2Weights, LoadError> {
        let parts = Parts { source, used: Mutex::default() };
        // The class with a head puts this before all names but the head's; older files don't.
        let prefix = if source.has("transformer.wte.weight") { "transformer." } else { "" };
        let names = &Names { parts: &parts, prefix };
        let vocab = config.vocab_size;
        let table = &|name: String, rows| parts.matrix(&name, (rows, config.width));
        let (embedding, head, layers) = std::thread::scope(|scope| {
            // The largest matrices begin first, so that no thread is left alone with one.
            let embedding = scope.spawn(move || table(format!("{prefix}wte.weight"), vocab));
            let own_head = move || table("lm_head.weight".into(), vocab);
            let head = (!config.is_tied).then(|| scope.spawn(own_head));
            let layers = side_by_side(threads, config.layers, &|i| names.layer(config, i));
            (join(embedding), head.map(join), layers)
        });
        let positions = table(format!("{prefix}wpe.weight"), config.context_length as usize)?;
        let weights = Gpt2Weights {
            embedding: [embedding?],
            positions,
            layers: layers?,
            output_norm: names.norm(&format!("{prefix}ln_f"), config.width)?,
            head: head.transpose()?.map(|head| [head]),
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
        let linears = self
            .layers
            .iter()
            .flat_map(|layer| [&layer.qkv, &layer.attention_out, &layer.up, &layer.down]);
        let matrices = linears.flat_map(|linear| &linear.matrix);
        matrices.chain(self.head()).map(PackedMatrix::bytes).sum()
    }

    /// Bytes that the matrices take.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let apart = self.head.is_some().then(|| self.embedding[0].bytes());
        self.bytes() + self.positions.bytes() + apart.unwrap_or_default()
    }
}

/// Tensors by the names that HuggingFace's class gives them.
struct Names<'a, S> {
    parts: &'a Parts<'a, S>,
    prefix: &'a str,
}

impl<S: Source> Names<'_, S> {
    fn layer(&self, config: &ModelConfig, index: usize) -> Result<Layer, LoadError> {
        let (width, ff) = (config.width, config.ff_width);
        let name = |part: &str| format!("{}h.{index}.{part}", self.prefix);
        Ok(Layer {
            attention_norm: self.norm(&name("ln_1"), width)?,
            qkv: self.linear(&name("attn.c_attn"), (3 * width, width))?,
            attention_out: self.linear(&name("attn.c_proj"), (width, width))?,
            ff_norm: self.norm(&name("ln_2"), width)?,
            up: self.linear(&name("mlp.c_fc"), (ff, width))?,
            down: self.linear(&name("mlp.c_proj"), (width, ff))?,
        })
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, LoadError> {
        Ok(Norm {
            weight: self.parts.vector(&format!("{name}.weight"), width)?,
            bias: self.parts.vector(&format!("{name}.bias"), width)?,
        })
    }

    /// A `Conv1D` of `outputs` and `inputs`.
    fn linear(&self, name: &str, (outputs, inputs): (usize, usize)) -> Result<Linear, LoadError> {
        let weight = format!("{name}.weight");
        Ok(Linear {
            matrix: [self.parts.ordered(&weight, (outputs, inputs), Order::ColsFirst)?],
            bias: self.parts.vector(&format!("{name}.bias"), outputs)?,
        })
    }
}
