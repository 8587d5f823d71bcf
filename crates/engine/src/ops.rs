//! The forward pass's operations over candle tensors.
//!
//! For: `model.rs`, which strings them together. Each is a candle custom op: contiguous f32
//! tensors in, one out; the work is in `kernels`.
//! Must never: hold state between calls; the KV cache comes in as an argument.
//! Relies on: `kernels` for the numbers (docs/spec/numerics.md, rules 1 to 4).

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape};

use crate::kernels::Cpu;
use crate::kernels::attention::{Rows, attend_rows, store_rows};
use crate::kernels::matmul::{Then, product};
use crate::kernels::pack::PackedMatrix;
use crate::kernels::quantise::Activations;
use crate::kernels::threads::Threads;
use crate::kv::KvPool;

/// What every operation runs on.
pub(crate) struct Machine {
    pub(crate) cpu: Cpu,
    pub(crate) threads: Threads,
}

impl Machine {
    fn parts(&self) -> (Cpu, &Threads) {
        (self.cpu, &self.threads)
    }
}

/// RMS-norm, then a product: `[rows, width]` to `[rows, outputs]`.
pub(crate) struct NormLinear<'a> {
    pub(crate) machine: &'a Machine,
    /// Norm weight, `[width]`, and epsilon.
    pub(crate) norm: (&'a [f32], f32),
    /// Matrices one below the other; if `gated`, two that are joined by silu(first)·second.
    pub(crate) weights: &'a [PackedMatrix],
    pub(crate) gated: bool,
}

impl CustomOp1 for NormLinear<'_> {
    fn name(&self) -> &'static str {
        "norm-linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, rows, cols) = contiguous(storage, layout)?;
        let x = Activations::new(self.machine.parts(), x, cols, Some(self.norm), self.weights);
        let (then, cols) = match self.gated {
            true => (Then::SwiGlu, self.weights[0].rows),
            false => (Then::Store, self.weights.iter().map(|w| w.rows).sum()),
        };
        let mut out = vec![0.0; rows * cols];
        product(self.machine.parts(), self.weights, &x, then, &mut out);
        Ok((CpuStorage::F32(out), (rows, cols).into()))
    }
}

/// A product added to the residual stream: `[rows, inner]` and `[rows, width]` to
/// `[rows, width]`.
pub(crate) struct LinearAdd<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) weights: &'a [PackedMatrix; 1],
}

impl CustomOp2 for LinearAdd<'_> {
    fn name(&self) -> &'static str {
        "linear-add"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, rows, inner) = contiguous(storage, layout)?;
        let (residual, _, width) = contiguous(residual, residual_layout)?;
        let x = Activations::new(self.machine.parts(), x, inner, None, self.weights);
        let mut out = vec![0.0; rows * width];
        product(self.machine.parts(), self.weights, &x, Then::Add(residual), &mut out);
        Ok((CpuStorage::F32(out), (rows, width).into()))
    }
}

/// Rotary embedding, KV write, attention: queries, keys and values `[rows, (h + 2 kv) * dim]`
/// to `[rows, h * dim]`.
pub(crate) struct Attention<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) rows: Rows<'a>,
    /// The cache. The lock is never contended; it is there because ops take `&self`.
    pub(crate) kv: &'a Mutex<&'a mut KvPool>,
}

impl CustomOp1 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (qkv, rows, _) = contiguous(storage, layout)?;
        let mut qkv = qkv.to_vec();
        let mut kv = self.kv.lock().unwrap_or_else(|e| e.into_inner());
        let threads = &self.machine.threads;
        kv.saturated += store_rows(threads, &self.rows, &mut qkv, &mut kv.cells);
        let cols = self.rows.heads.query * self.rows.heads.dim;
        let mut out = vec![0.0; rows * cols];
        attend_rows(self.machine.parts(), &self.rows, &qkv, &kv.cells, &mut out);
        Ok((CpuStorage::F32(out), (rows, cols).into()))
    }
}

/// The values of a contiguous f32 matrix, its rows and its columns.
fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<(&'a [f32], usize, usize)> {
    let (rows, cols) = layout.shape().dims2()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok((&storage.as_slice::<f32>()?[start..end], rows, cols)),
        None => candle_core::bail!("a contiguous tensor is needed"),
    }
}
