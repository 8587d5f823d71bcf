//! The forward pass of GPT-2, readable from top to bottom.
//!
//! For: turning a ragged batch of token rows into logits, as `model.rs` does for other families.
//! Must never: keep anything of a sequence, or let rows influence each other except through their
//! own sequence's cache.
//! Relies on: `ops.rs` for the operations, `weights/gpt2.rs` for the weights; positions that the
//! table has, which `Model::forward` checks.
//!
//! ```text
//! x = embedding[ids] + positions[position]
//! each layer:  qkv = (ln x)·Wqkv + b;  x += attention(qkv, cache)·Wo + b;
//!              x += gelu_new((ln x)·Wfc + b)·Wproj + b
//! logits = (ln x[wanted rows])·embeddingᵀ
//! ```
//!
//! Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", as
//! HuggingFace's `GPT2LMHeadModel` computes it; numerics.md has the order of every rounding.

use crate::batch::{Batch, Outputs};
use crate::config::ModelConfig;
use crate::kernels::attention::{RowPlace, Rows};
use crate::kernels::rows::LayerNorm;
use crate::kv::KvPool;
use crate::ops::{Machine, Scratch};
use crate::probe::{Probe, Stage};
use crate::rope::Pairing;
use crate::weights::gpt2::{Gpt2Weights, Linear, Norm};

/// A GPT-2 and what computes it.
pub(crate) struct Gpt2 {
    pub(crate) weights: Gpt2Weights,
    pub(crate) machine: Machine,
    buffers: Buffers,
}

/// What a step computes, kept so that a step allocates next to nothing.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,      // [rows, width]
    normed: Vec<f32>, // [rows, width]
    qkv: Vec<f32>,    // [rows, 3 * width]
    mixed: Vec<f32>,  // [rows, width]
    hidden: Vec<f32>, // [rows, ff]
    added: Vec<f32>,  // [rows, width]
    states: Vec<f32>, // [wanted rows, width]
    logits: Vec<f32>, // [wanted rows, vocab]
    scratch: Scratch,
}

impl Gpt2 {
    pub(crate) fn new(weights: Gpt2Weights, machine: Machine) -> Gpt2 {
        Gpt2 { weights, machine, buffers: Buffers::default() }
    }

    /// Computes a batch that was checked. Blocks.
    pub(crate) fn forward(
        &mut self,
        config: &ModelConfig,
        (batch, kv): (&Batch<'_>, &mut KvPool),
        probe: &mut impl Probe,
    ) -> Outputs<'_> {
        let (places, tables) = (batch.places(), batch.tables());
        let (machine, weights) = (&self.machine, &self.weights);
        let Buffers { x, normed, qkv, mixed, hidden, added, states, logits, scratch } =
            &mut self.buffers;
        let width = config.width;

        embed(weights, (batch, &places), width, x);
        probe.see(Stage::Embedded, 0, x);
        for (index, layer) in weights.layers.iter().enumerate() {
            machine.layer_norm(x, norm(&layer.attention_norm, config), normed);
            probe.see(Stage::AttentionNorm, index, normed);
            linear(machine, normed, &layer.qkv, scratch, qkv);
            probe.see(Stage::Qkv, index, qkv);
            let rows = rows(config, (&places, &tables), kv.layer_at(index));
            machine.attention(&rows, (qkv, kv), scratch, mixed);
            probe.see(Stage::Mixed, index, mixed);
            linear(machine, mixed, &layer.attention_out, scratch, added);
            probe.see(Stage::Attention, index, added);
            machine.add(width, added, x);
            probe.see(Stage::Middle, index, x);

            machine.layer_norm(x, norm(&layer.ff_norm, config), normed);
            probe.see(Stage::FeedForwardNorm, index, normed);
            linear(machine, normed, &layer.up, scratch, hidden);
            probe.see(Stage::Hidden, index, hidden);
            machine.gelu_new(config.ff_width, hidden);
            probe.see(Stage::Active, index, hidden);
            linear(machine, hidden, &layer.down, scratch, added);
            probe.see(Stage::FeedForward, index, added);
            machine.add(width, added, x);
            probe.see(Stage::Out, index, x);
        }
        batch.keep_wanted_rows(width, x);
        machine.layer_norm(x, norm(&weights.output_norm, config), states);
        probe.see(Stage::State, config.layers, states);
        machine.linear(states, weights.head(), scratch, logits);
        probe.see(Stage::Logits, config.layers, logits);
        Outputs { logits, states }
    }
}

/// Product, then bias: `[rows, inner]` to `[rows, outputs]`.
fn linear(
    machine: &Machine,
    x: &[f32],
    weights: &Linear,
    scratch: &mut Scratch,
    out: &mut Vec<f32>,
) {
    machine.linear(x, &weights.matrix, scratch, out);
    machine.add_bias(&weights.bias, out);
}

fn norm<'a>(norm: &'a Norm, config: &ModelConfig) -> LayerNorm<'a> {
    LayerNorm { weight: &norm.weight, bias: &norm.bias, eps: config.norm_eps }
}

/// The batch's rows for attention: nothing turns, and the bias was added before.
pub(crate) fn rows<'a>(
    config: &ModelConfig,
    (places, tables): (&'a [RowPlace], &'a [&'a [u32]]),
    layer_at: usize,
) -> Rows<'a> {
    Rows {
        heads: config.heads(),
        places,
        tables,
        layer_at,
        window: None,
        bias: None,
        norms: None,
        pairing: Pairing::None,
        cos: &[],
        sin: &[],
    }
}

/// The tokens' rows of the embedding, plus their positions' rows, `[rows, width]`.
fn embed(
    weights: &Gpt2Weights,
    (batch, places): (&Batch<'_>, &[RowPlace]),
    width: usize,
    x: &mut Vec<f32>,
) {
    x.resize(places.len() * width, 0.0);
    let mut position = vec![0.0; width];
    for ((id, place), x) in batch.ids().zip(places).zip(x.chunks_exact_mut(width)) {
        weights.embedding[0].row(id as usize, x);
        weights.positions.row(place.position, &mut position);
        x.iter_mut().zip(&position).for_each(|(x, position)| *x += position);
    }
}
