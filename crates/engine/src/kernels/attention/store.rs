//! Rotary embedding, and the write of keys and values into the cache.
//!
//! For: what happens to a row's queries, keys and values before attention reads them.
//! Must never: round in another way than numerics.md says (rule 5), or write outside the slot of
//! the row's own position.
//! Relies on: rows standing at different positions (see `Rows::places`).

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Heads, Rows};
use crate::kernels::lanes::LANES;
use crate::kernels::threads::{Disjoint, Threads};

/// Rotates queries and keys of `qkv` in place and writes keys and values into `cells`.
///
/// `qkv`: `[rows][query | key | value]`. Returns how many values were held to ±65504. Blocks.
pub(crate) fn store_rows(
    threads: &Threads,
    rows: &Rows<'_>,
    qkv: &mut [f32],
    cells: &mut [u16],
) -> u64 {
    let heads = rows.heads;
    let (cols, half) = (heads.qkv_cols(), heads.dim / 2);
    let rotated = (heads.query + heads.kv) * heads.dim;
    let saturated = AtomicU64::new(0);
    let (qkv, cells) = (Disjoint::new(qkv), Disjoint::new(cells));
    threads.run_ranges(rows.places.len(), &|range| {
        for row in range {
            let place = &rows.places[row];
            // SAFETY: each row of `qkv` belongs to one task.
            let qkv = unsafe { qkv.part(row * cols, cols) };
            let angles = row * half..(row + 1) * half;
            rotate(&mut qkv[..rotated], &rows.cos[angles.clone()], &rows.sin[angles]);
            let base = rows.base(rows.tables[place.sequence][place.position / LANES]);
            let kv = &qkv[heads.query * heads.dim..];
            // SAFETY: no two rows share a slot, by the promise at `Rows::places`.
            let count = unsafe { write_kv(&cells, base, heads, place.position % LANES, kv) };
            saturated.fetch_add(count, Ordering::Relaxed);
        }
    });
    saturated.into_inner()
}

/// Rotates the pairs (2i, 2i + 1) of each head in `x` by the row's angles.
///
/// `x`: heads one after the other; `cos`, `sin`: half a head. Source: RoFormer (Su et al. 2021);
/// GGUF files of the Llama family hold query and key weights permuted for this pairing.
fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for head in x.chunks_exact_mut(2 * cos.len()) {
        let (pairs, _) = head.as_chunks_mut::<2>();
        for ((pair, cos), sin) in pairs.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}

/// Largest finite half-precision value; larger keys and values are held to it and counted.
const F16_MAX: f32 = 65504.0;

/// Writes the key and value of one token into token slot `slot` of its block and layer.
///
/// `kv`: keys then values of all heads. Rounds to nearest even. Returns how many values were
/// out of range and held to ±65504 (rule 5).
///
/// # Safety
/// No other thread touches this slot of this block and layer meanwhile.
unsafe fn write_kv(
    cells: &Disjoint<'_, u16>,
    base: usize,
    heads: Heads,
    slot: usize,
    kv: &[f32],
) -> u64 {
    let mut saturated = 0;
    let mut half = |x: f32| {
        saturated += u64::from(x.abs() > F16_MAX);
        half::f16::from_f32(x.clamp(-F16_MAX, F16_MAX)).to_bits()
    };
    let (keys, values) = kv.split_at(heads.kv * heads.dim);
    for (i, key) in keys.iter().enumerate() {
        // SAFETY: this cell belongs to the slot, which is the caller's alone.
        unsafe { cells.part(base + i * LANES + slot, 1)[0] = half(*key) };
    }
    let base = base + keys.len() * LANES;
    for (head, values) in values.chunks_exact(heads.dim).enumerate() {
        let at = base + (head * LANES + slot) * heads.dim;
        // SAFETY: these cells belong to the slot, which is the caller's alone.
        let cells = unsafe { cells.part(at, heads.dim) };
        for (cell, value) in cells.iter_mut().zip(values) {
            *cell = half(*value);
        }
    }
    saturated
}
