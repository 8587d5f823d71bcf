//! The model's weights, as the forward pass uses them.
//!
//! For: names and shapes of a GGUF Llama's tensors, in one place.
//! Must never: keep a second copy of a matrix, or dequantise one.
//! Relies on: `gguf.rs` for checked reading, `kernels/pack.rs` for the packed form.

use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::gguf::Gguf;
use crate::kernels::pack::PackedMatrix;

/// One transformer layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: Vec<f32>, // [width]
    /// Query, key and value projections, one below the other.
    pub(crate) qkv: [PackedMatrix; 3], // [heads * dim, width], [kv * dim, width] twice
    pub(crate) attention_out: [PackedMatrix; 1], // [width, heads * dim]
    pub(crate) ff_norm: Vec<f32>,        // [width]
    pub(crate) gate_up: [PackedMatrix; 2], // [ff, width] twice
    pub(crate) down: [PackedMatrix; 1],  // [width, ff]
}

/// All weights.
pub(crate) struct Weights {
    /// Token embedding, and the output head too when the file has no `output.weight`.
    pub(crate) embedding: [PackedMatrix; 1], // [vocab, width]
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Vec<f32>, // [width]
    head: Option<[PackedMatrix; 1]>,  // [vocab, width]
    /// Divisors of the rotary frequencies, where the file has them.
    pub(crate) rope_factors: Option<Vec<f32>>, // [dim / 2]
}

impl Weights {
    /// Reads and packs every tensor. Takes as long as reading the file.
    pub(crate) fn load(gguf: &Gguf, config: &ModelConfig) -> Result<Weights, LoadError> {
        let (width, vocab) = (config.width, config.vocab_size);
        let head = match gguf.has_tensor("output.weight") {
            true => Some([gguf.matrix("output.weight", vocab, width)?]),
            false => None,
        };
        let rope_factors = match gguf.has_tensor("rope_freqs.weight") {
            true => Some(gguf.vector("rope_freqs.weight", config.head_dim / 2)?),
            false => None,
        };
        Ok(Weights {
            embedding: [gguf.matrix("token_embd.weight", vocab, width)?],
            layers: (0..config.layers)
                .map(|i| Layer::load(gguf, config, i))
                .collect::<Result<_, _>>()?,
            output_norm: gguf.vector("output_norm.weight", width)?,
            head,
            rope_factors,
        })
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

impl Layer {
    fn load(gguf: &Gguf, config: &ModelConfig, index: usize) -> Result<Layer, LoadError> {
        let (width, ff) = (config.width, config.ff_width);
        let query = config.query_heads * config.head_dim;
        let kv = config.kv_heads * config.head_dim;
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        Ok(Layer {
            attention_norm: gguf.vector(&name("attn_norm"), width)?,
            qkv: [
                gguf.matrix(&name("attn_q"), query, width)?,
                gguf.matrix(&name("attn_k"), kv, width)?,
                gguf.matrix(&name("attn_v"), kv, width)?,
            ],
            attention_out: [gguf.matrix(&name("attn_output"), width, query)?],
            ff_norm: gguf.vector(&name("ffn_norm"), width)?,
            gate_up: [
                gguf.matrix(&name("ffn_gate"), ff, width)?,
                gguf.matrix(&name("ffn_up"), ff, width)?,
            ],
            down: [gguf.matrix(&name("ffn_down"), width, ff)?],
        })
    }
}
