//! Row-wise f32 steps: rms-norm and the gate of the feed-forward layer.
//!
//! For: everything between two products that isn't attention.
//! Must never: sum in an order that depends on anything but the index.
//! Relies on: widths being multiples of 16, which `config.rs` checks at load.

use super::lanes::{LANES, Lanes, exp, tree_sum};
use super::per_isa;

per_isa! {
    /// `out = x / √(mean x² + eps) · weight`, each product rounded.
    ///
    /// Σ x² runs over 16 lanes by index mod 16 with one rounding a step, then the fixed tree.
    /// All three slices have the same length, a multiple of 16.
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<V: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (x, _) = x.as_chunks::<LANES>();
    let (weight, _) = weight.as_chunks::<LANES>();
    let (out, _) = out.as_chunks_mut::<LANES>();
    let mut squares = V::splat(0.0);
    for x in x {
        let x = V::load(x);
        squares = x.fma(x, squares);
    }
    let mean = tree_sum(squares) / (x.len() * LANES) as f32;
    let scale = V::splat(1.0 / (mean + eps).sqrt());
    for ((x, weight), out) in x.iter().zip(weight).zip(out) {
        V::load(x).mul(scale).mul(V::load(weight)).store(out);
    }
}

/// `silu(gate) · up`, where silu(g) = g / (1 + e^−g).
#[inline(always)]
pub(crate) fn swiglu<V: Lanes>(gate: V, up: V) -> V {
    let minus = V::splat(0.0).sub(gate);
    gate.div(V::splat(1.0).add(exp(minus))).mul(up)
}
