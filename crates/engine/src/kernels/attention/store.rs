//! Bias, head norms, rotary embedding, and the write of keys and values into the cache.
//!
//! For: what happens to a row's queries, keys and values before attention reads them.
//! Must never: round in another way than numerics.md says (rule 5), or write outside the slot of
//! the row's own position.
//! Relies on: rows standing at different positions (see `Rows::places`).

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Cell, HeadNorms, Heads, Rows};
use crate::kernels::Cpu;
use crate::kernels::lanes::LANES;
use crate::kernels::rows::rms_norm;
use crate::kernels::threads::{Disjoint, Threads};
use crate::rope::Pairing;

/// Adds the bias to `qkv`, norms and rotates queries and keys in place, and writes keys and
/// values into `cells`.
///
/// `qkv`: `[rows][query | key | value]`. Returns how many values were held to ±65504. Blocks.
pub(crate) fn store_rows<C: Cell>(
    (cpu, threads): (Cpu, &Threads),
    rows: &Rows<'_>,
    qkv: &mut [f32],
    cells: &mut [C],
) -> u64 {
    let heads = rows.heads;
    let (cols, half) = (heads.qkv_cols(), heads.dim / 2);
    let rotated = (heads.query + heads.kv) * heads.dim;
    let saturated = AtomicU64::new(0);
    let (qkv, cells) = (Disjoint::new(qkv), Disjoint::new(cells));
    threads.run_ranges(rows.places.len(), &|range| {
        let mut unnormed = vec![0.0; if rows.norms.is_some() { heads.dim } else { 0 }];
        for row in range {
            let place = &rows.places[row];
            // SAFETY: each row of `qkv` belongs to one task.
            let qkv = unsafe { qkv.part(row * cols, cols) };
            if let Some(bias) = rows.bias {
                qkv.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
            if let Some(norms) = rows.norms {
                norm_heads(cpu, heads, norms, &mut qkv[..rotated], &mut unnormed);
            }
            let angles = row * half..(row + 1) * half;
            let angles = || (&rows.cos[angles.clone()], &rows.sin[angles.clone()]);
            match rows.pairing {
                Pairing::Neighbours => rotate_neighbours(&mut qkv[..rotated], angles()),
                Pairing::Halves => rotate_halves(&mut qkv[..rotated], angles()),
                Pairing::None => (),
            }
            let base = rows.base(rows.tables[place.sequence][place.position / LANES]);
            let kv = &qkv[heads.query * heads.dim..];
            // SAFETY: no two rows share a slot, by the promise at `Rows::places`.
            let count = unsafe { write_kv(&cells, base, heads, place.position % LANES, kv) };
            saturated.fetch_add(count, Ordering::Relaxed);
        }
    });
    saturated.into_inner()
}

/// RMS-norm of each head in `x`, queries then keys; `unnormed` is a head of scratch.
fn norm_heads(cpu: Cpu, heads: Heads, norms: HeadNorms<'_>, x: &mut [f32], unnormed: &mut [f32]) {
    for (i, head) in x.chunks_exact_mut(heads.dim).enumerate() {
        let weight = if i < heads.query { norms.query } else { norms.key };
        unnormed.copy_from_slice(head);
        rms_norm(cpu, unnormed, weight, norms.eps, head);
    }
}

/// Rotates the pairs (2i, 2i + 1) of each head in `x` by the row's angles.
///
/// `x`: heads one after the other; `cos`, `sin`: half a head. Source: RoFormer (Su et al. 2021);
/// GGUF files of the Llama family hold query and key weights permuted for this pairing.
fn rotate_neighbours(x: &mut [f32], (cos, sin): (&[f32], &[f32])) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (pairs, _) = head.as_chunks_mut::<2>();
        for ((pair, cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}

/// The same with the pairs (i, i + dim / 2). Source: GPT-NeoX.
fn rotate_halves(x: &mut [f32], (cos, sin): (&[f32], &[f32])) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (first, second) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
        }
    }
}

/// Writes the key and value of one token into token slot `slot` of its block and layer.
///
/// `kv`: keys then values of all heads. Returns how many values were out of a cell's range and
/// held to its end (rule 5).
///
/// # Safety
/// No other thread touches this slot of this block and layer meanwhile.
unsafe fn write_kv<C: Cell>(
    cells: &Disjoint<'_, C>,
    base: usize,
    heads: Heads,
    slot: usize,
    kv: &[f32],
) -> u64 {
    let mut saturated = 0;
    let mut cell_of = |x: f32| {
        let (cell, is_held) = C::of(x);
        saturated += u64::from(is_held);
        cell
    };
    let (keys, values) = kv.split_at(heads.kv * heads.dim);
    for (i, key) in keys.iter().enumerate() {
        // SAFETY: this cell belongs to the slot, which is the caller's alone.
        unsafe { cells.part(base + i * LANES + slot, 1)[0] = cell_of(*key) };
    }
    let base = base + keys.len() * LANES;
    for (head, values) in values.chunks_exact(heads.dim).enumerate() {
        let at = base + (head * LANES + slot) * heads.dim;
        // SAFETY: these cells belong to the slot, which is the caller's alone.
        let cells = unsafe { cells.part(at, heads.dim) };
        for (cell, value) in cells.iter_mut().zip(values) {
            *cell = cell_of(*value);
        }
    }
    saturated
}

#[cfg(test)]
mod tests {
    use super::super::RowPlace;
    use super::*;
    use crate::kernels::Isa;

    const HEADS: Heads = Heads { query: 2, kv: 1, dim: 16 };

    /// What the row becomes, by the formulas in f64.
    fn oracle(row: &[f32], bias: &[f32], norms: HeadNorms<'_>, pairing: Pairing) -> Vec<f64> {
        let mut row: Vec<f64> =
            row.iter().zip(bias).map(|(x, b)| f64::from(*x) + f64::from(*b)).collect();
        for (h, head) in row[..48].chunks_exact_mut(16).enumerate() {
            let weight = if h < 2 { norms.query } else { norms.key };
            let mean = head.iter().map(|x| x * x).sum::<f64>() / 16.0;
            for (x, weight) in head.iter_mut().zip(weight) {
                *x *= f64::from(*weight) / (mean + f64::from(norms.eps)).sqrt();
            }
            for i in 0..8 {
                let (a, b) = match pairing {
                    Pairing::Neighbours => (2 * i, 2 * i + 1),
                    Pairing::Halves | Pairing::None => (i, i + 8),
                };
                let angle = if pairing == Pairing::None { 0.0 } else { 0.3 * (i + 1) as f64 };
                let (sin, cos) = angle.sin_cos();
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
        row
    }

    #[test]
    fn queries_and_keys_are_biased_then_normed_then_rotated() {
        let wave = |seed: f32, len: usize| -> Vec<f32> {
            (0..len).map(|i| (seed * (i * i + 1) as f32).sin() * 3.0).collect()
        };
        let (row, bias) = (wave(0.7, 64), wave(1.3, 64));
        let (query, key) = (wave(2.1, 16), wave(0.4, 16));
        let norms = HeadNorms { query: &query, key: &key, eps: 1e-5 };
        let angles = (0..8).map(|i| 0.3 * (i + 1) as f64);
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
        for pairing in [Pairing::Neighbours, Pairing::Halves, Pairing::None] {
            let wanted = oracle(&row, &bias, norms, pairing);
            let mut first = None;
            for cpu in Isa::ALL.into_iter().filter_map(Cpu::new) {
                let rows = Rows {
                    heads: HEADS,
                    places: &[RowPlace { position: 0, sequence: 0 }],
                    tables: &[&[0]],
                    layer_at: 0,
                    window: None,
                    bias: Some(&bias),
                    norms: Some(norms),
                    pairing,
                    cos: &cos,
                    sin: &sin,
                };
                let (mut found, mut cells) = (row.clone(), vec![0u16; HEADS.block_values()]);
                let threads = Threads::new(1).unwrap();
                assert_eq!(store_rows((cpu, &threads), &rows, &mut found, &mut cells), 0);
                for (ours, oracle) in found.iter().zip(&wanted) {
                    assert!((f64::from(*ours) - oracle).abs() < 1e-5, "{found:?} {wanted:?}");
                }
                let key = half::f16::from_bits(cells[3 * LANES]).to_f32();
                assert!((f64::from(key) - wanted[32 + 3]).abs() < 1e-2);
                let bits: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
                assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{cpu:?}");
            }
        }
    }
}
