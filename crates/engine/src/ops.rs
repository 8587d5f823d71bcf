//! The forward pass's operations over rows of f32.
//!
//! For: `model.rs` and `gpt2.rs`, which string them together; the work is in `kernels`.
//! Must never: hold state between calls: buffers and the KV cache come in as arguments.
//! Relies on: `kernels` for the numbers (docs/spec/numerics.md, rules 1 to 4).

use crate::kernels::Cpu;
use crate::kernels::attention::{Rows, attend_rows, store_rows};
use crate::kernels::matmul::{Then, product};
use crate::kernels::pack::PackedMatrix;
use crate::kernels::quantise::Activations;
use crate::kernels::rows::{
    LayerNorm, add_bias_rows, add_rows, gelu_new_rows, layer_norm_rows, rms_norm,
};
use crate::kernels::threads::Threads;
use crate::kv::{KvPool, Memory};

/// What every operation runs on. All of them block until done.
pub(crate) struct Machine {
    pub(crate) cpu: Cpu,
    pub(crate) threads: Threads,
}

/// Buffers that operations need besides what they read and write; kept from step to step.
#[derive(Default)]
pub(crate) struct Scratch {
    activations: Activations,
    attention: Vec<f32>,
}

/// A norm's weight, `[width]`, and epsilon.
pub(crate) type Norm<'a> = (&'a [f32], f32);

impl Machine {
    fn parts(&self) -> (Cpu, &Threads) {
        (self.cpu, &self.threads)
    }

    /// RMS-norm of each row of `x`, then the products with `weights`, one below the other:
    /// `[rows, width]` to `[rows, outputs]`.
    pub(crate) fn norm_linear(
        &self,
        (x, norm): (&[f32], Norm<'_>),
        weights: &[PackedMatrix],
        scratch: &mut Scratch,
        out: &mut Vec<f32>,
    ) {
        let outputs = weights.iter().map(|w| w.rows).sum::<usize>();
        out.resize(x.len() / weights[0].cols * outputs, 0.0);
        scratch.activations.take(self.parts(), x, Some(norm), weights);
        product(self.parts(), weights, &scratch.activations, Then::Store, out);
    }

    /// RMS-norm of each row: `[rows, width]` to the same.
    pub(crate) fn norm(&self, x: &[f32], (weight, eps): Norm<'_>, out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        let rows = x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len()));
        for (x, out) in rows {
            rms_norm(self.cpu, x, weight, eps, out);
        }
    }

    /// Layer norm of each row: `[rows, width]` to the same.
    pub(crate) fn layer_norm(&self, x: &[f32], norm: LayerNorm<'_>, out: &mut Vec<f32>) {
        out.resize(x.len(), 0.0);
        layer_norm_rows(self.parts(), x, norm, out);
    }

    /// `x += bias` in each row: `[rows, bias's length]`.
    pub(crate) fn add_bias(&self, bias: &[f32], x: &mut [f32]) {
        add_bias_rows(self.parts(), bias, x);
    }

    /// `x += addend`, `[rows, width]` both.
    pub(crate) fn add(&self, width: usize, addend: &[f32], x: &mut [f32]) {
        add_rows(self.parts(), width, addend, x);
    }

    /// GPT-2's GELU of each value: `[rows, width]` to the same.
    pub(crate) fn gelu_new(&self, width: usize, x: &mut [f32]) {
        gelu_new_rows(self.parts(), width, x);
    }

    /// Products with `weights`, one below the other: `[rows, width]` to `[rows, outputs]`.
    pub(crate) fn linear(
        &self,
        x: &[f32],
        weights: &[PackedMatrix],
        scratch: &mut Scratch,
        out: &mut Vec<f32>,
    ) {
        let outputs = weights.iter().map(|w| w.rows).sum::<usize>();
        out.resize(x.len() / weights[0].cols * outputs, 0.0);
        if !out.is_empty() {
            scratch.activations.take(self.parts(), x, None, weights);
            product(self.parts(), weights, &scratch.activations, Then::Store, out);
        }
    }

    /// RMS-norm, then silu(gate·x)·(up·x): `[rows, width]` to `[rows, ff]`.
    pub(crate) fn norm_gate(
        &self,
        (x, norm): (&[f32], Norm<'_>),
        weights: &[PackedMatrix; 2],
        scratch: &mut Scratch,
        out: &mut Vec<f32>,
    ) {
        out.resize(x.len() / weights[0].cols * weights[0].rows, 0.0);
        scratch.activations.take(self.parts(), x, Some(norm), weights);
        product(self.parts(), weights, &scratch.activations, Then::SwiGlu, out);
    }

    /// A product added to the residual stream `out`: `[rows, inner]` to `[rows, width]`.
    pub(crate) fn linear_add(
        &self,
        x: &[f32],
        weights: &[PackedMatrix; 1],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        scratch.activations.take(self.parts(), x, None, weights);
        product(self.parts(), weights, &scratch.activations, Then::Add, out);
    }

    /// Bias, head norms, rotary embedding, KV write, attention: queries, keys and values
    /// `[rows, (h + 2 kv) * dim]`, which it changes in place, to `[rows, h * dim]`.
    pub(crate) fn attention(
        &self,
        rows: &Rows<'_>,
        (qkv, kv): (&mut [f32], &mut KvPool),
        scratch: &mut Scratch,
        out: &mut Vec<f32>,
    ) {
        out.resize(rows.places.len() * rows.heads.query * rows.heads.dim, 0.0);
        match &mut kv.memory {
            Memory::F16(cells) => {
                kv.saturated += store_rows(self.parts(), rows, qkv, cells);
                attend_rows(self.parts(), rows, (qkv, cells), &mut scratch.attention, out);
            }
            Memory::F32(cells) => {
                store_rows(self.parts(), rows, qkv, cells);
                attend_rows(self.parts(), rows, (qkv, cells), &mut scratch.attention, out);
            }
        }
    }
}
