//! Rotary embedding, the write into the KV cache, and attention over it.
//!
//! For: rows of any mix of sequences; each row has its own position and block table.
//! Must never: let a result depend on pages, chunks, batch neighbours or threads
//! (docs/spec/numerics.md, rule 4): scores sum over dimensions in ascending order, the softmax
//! sums in 16 lanes by key index mod 16 and the fixed tree, p·v is sequential in keys.
//! Relies on: KV blocks of 16 tokens, so that a key's lane is its index mod 16; head sizes that
//! are multiples of 16 (`config.rs`).
//!
//! Layout of one block and layer: keys `[kv_head][dim][16 tokens]`, then values
//! `[kv_head][16 tokens][dim]`, half precision. With keys that way round a vector holds one
//! dimension of 16 keys, and a score is a plain ascending sum in each lane.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lanes::{LANES, Lanes, exp, lane_max, tree_sum};
use super::threads::{Disjoint, Threads};
use super::{Cpu, per_isa};

/// Shapes that attention needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) query: usize,
    /// Key/value heads; divides `query`.
    pub(crate) kv: usize,
    /// Size of a head, a multiple of 16.
    pub(crate) dim: usize,
}

impl Heads {
    /// Half-precision values that one block of 16 tokens takes in one layer.
    pub(crate) fn block_values(self) -> usize {
        2 * self.kv * self.dim * LANES
    }

    /// Columns of a row of queries, keys and values.
    pub(crate) fn qkv_cols(self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }
}

/// Where a row of a batch stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPlace {
    /// Position in its sequence, from 0.
    pub(crate) position: usize,
    /// Index of its sequence in [`Rows::bases`].
    pub(crate) sequence: usize,
}

/// The rows of a batch, for one layer.
pub(crate) struct Rows<'a> {
    pub(crate) heads: Heads,
    /// No two rows stand at the same position of one sequence, and sequences share no block
    /// that one of them writes to (`Batch` checks it): rows are written at the same time.
    pub(crate) places: &'a [RowPlace],
    /// Of each sequence: the first value of each of its blocks in this layer.
    pub(crate) bases: &'a [Vec<usize>],
    /// Cosines of each row's angles, `[rows][dim / 2]`.
    pub(crate) cos: &'a [f32],
    /// Sines of each row's angles, `[rows][dim / 2]`.
    pub(crate) sin: &'a [f32],
}

thread_local! {
    /// Scores of the row that the thread works on: as long as the longest context it saw.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

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
            let base = rows.bases[place.sequence][place.position / LANES];
            let kv = &qkv[heads.query * heads.dim..];
            // SAFETY: no two rows share a slot, by the promise at `Rows::places`.
            let count = unsafe { write_kv(&cells, base, heads, place.position % LANES, kv) };
            saturated.fetch_add(count, Ordering::Relaxed);
        }
    });
    saturated.into_inner()
}

/// Attention of every row: `qkv` as [`store_rows`] left it, to `out`, `[rows][query * dim]`.
/// Blocks.
pub(crate) fn attend_rows(
    (cpu, threads): (Cpu, &Threads),
    rows: &Rows<'_>,
    qkv: &[f32],
    cells: &[u16],
    out: &mut [f32],
) {
    let heads = rows.heads;
    let group = heads.query / heads.kv * heads.dim;
    let out = Disjoint::new(out);
    threads.run(rows.places.len() * heads.kv, &|task| {
        let (row, kv_head) = (task / heads.kv, task % heads.kv);
        let place = &rows.places[row];
        let queries = row * heads.qkv_cols() + kv_head * group;
        let job = Attend {
            heads,
            cells,
            bases: &rows.bases[place.sequence],
            keys: place.position + 1,
            kv_head,
            queries: &qkv[queries..queries + group],
        };
        // SAFETY: each row and key head has an output of its own.
        let out = unsafe { out.part(task * group, group) };
        SCORES.with_borrow_mut(|scores| attend(cpu, &job, scores, out));
    });
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

/// Attention of one row for one key/value head and all query heads that share it.
struct Attend<'a> {
    heads: Heads,
    /// The KV pool's values.
    cells: &'a [u16],
    /// First value of each of the sequence's blocks in this layer.
    bases: &'a [usize],
    /// Keys that the row sees: its position + 1.
    keys: usize,
    kv_head: usize,
    /// The group's queries, `[query / kv][dim]`.
    queries: &'a [f32],
}

per_isa! {
    /// `out = softmax(q·kᵀ / √dim)·v`, `[query / kv][dim]`; `scores` is scratch.
    fn attend(job: &Attend<'_>, scores: &mut Vec<f32>, out: &mut [f32]) = attend_body
}

#[inline(always)]
fn attend_body<V: Lanes>(job: &Attend<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    let dim = job.heads.dim;
    let (mut queries, mut out) = (job.queries, out);
    // Query heads in groups, so that a key or value is converted once for all of a group.
    while !queries.is_empty() {
        let group = match queries.len() / dim {
            1 => 1,
            2 => 2,
            3 => 3,
            _ => 4,
        };
        let (now, later) = queries.split_at(group * dim);
        let (out_now, out_later) = out.split_at_mut(group * dim);
        match group {
            1 => attend_group::<V, 1>(job, now, scores, out_now),
            2 => attend_group::<V, 2>(job, now, scores, out_now),
            3 => attend_group::<V, 3>(job, now, scores, out_now),
            _ => attend_group::<V, 4>(job, now, scores, out_now),
        }
        (queries, out) = (later, out_later);
    }
}

#[inline(always)]
fn attend_group<V: Lanes, const G: usize>(
    job: &Attend<'_>,
    queries: &[f32],
    scores: &mut Vec<f32>,
    out: &mut [f32],
) {
    let width = job.keys.next_multiple_of(LANES);
    scores.clear();
    scores.resize(G * width, 0.0);
    score::<V, G>(job, queries, scores);
    let mut scales = [0.0; G];
    for (scores, scale) in scores.chunks_exact_mut(width).zip(&mut scales) {
        *scale = 1.0 / softmax::<V>(scores, job.keys);
    }
    let dim = job.heads.dim;
    let mut at = 0;
    while at < dim {
        let lanes = if dim - at >= 4 * LANES { 4 } else { 1 };
        match lanes {
            4 => weigh::<V, G, 4>(job, scores, at, (&scales, out)),
            _ => weigh::<V, G, 1>(job, scores, at, (&scales, out)),
        }
        at += lanes * LANES;
    }
}

/// Scores of all keys, `[G][width]`, scaled by 1/√dim.
#[inline(always)]
fn score<V: Lanes, const G: usize>(job: &Attend<'_>, queries: &[f32], scores: &mut [f32]) {
    let dim = job.heads.dim;
    let width = scores.len() / G;
    let scale = V::splat(1.0 / (dim as f32).sqrt());
    let queries: [&[f32]; G] = std::array::from_fn(|g| &queries[g * dim..(g + 1) * dim]);
    for (block, base) in job.bases[..width / LANES].iter().enumerate() {
        let at = base + job.kv_head * dim * LANES;
        let (keys, _) = job.cells[at..at + dim * LANES].as_chunks::<LANES>();
        let mut sums = [V::splat(0.0); G];
        for (d, key) in keys.iter().enumerate() {
            let key = V::load_f16(key);
            for (sum, query) in sums.iter_mut().zip(&queries) {
                *sum = V::splat(query[d]).fma(key, *sum);
            }
        }
        for (g, sum) in sums.into_iter().enumerate() {
            let at = g * width + block * LANES;
            if let Some(out) = scores[at..].first_chunk_mut() {
                sum.mul(scale).store(out);
            }
        }
    }
}

/// Turns scores into weights e^(score − max), 0 beyond `keys`; returns their sum.
#[inline(always)]
fn softmax<V: Lanes>(scores: &mut [f32], keys: usize) -> f32 {
    scores[keys..].fill(f32::NEG_INFINITY);
    let (chunks, _) = scores.as_chunks_mut::<LANES>();
    let mut max = V::splat(f32::NEG_INFINITY);
    for chunk in chunks.iter() {
        max = V::load(chunk).max(max);
    }
    let max = V::splat(lane_max(max));
    let mut sum = V::splat(0.0);
    for chunk in chunks {
        let weight = exp(V::load(chunk).sub(max));
        weight.store(chunk);
        sum = sum.add(weight);
    }
    tree_sum(sum)
}

/// `out[g][at..] = scale[g] · Σ weight·value` over the keys in order, for D·16 dimensions.
#[inline(always)]
fn weigh<V: Lanes, const G: usize, const D: usize>(
    job: &Attend<'_>,
    weights: &[f32],
    at: usize,
    (scales, out): (&[f32; G], &mut [f32]),
) {
    let dim = job.heads.dim;
    let width = weights.len() / G;
    let values_at = (job.heads.kv + job.kv_head) * dim * LANES + at;
    let mut sums = [[V::splat(0.0); D]; G];
    for (block, base) in job.bases[..width / LANES].iter().enumerate() {
        for slot in 0..LANES.min(job.keys - block * LANES) {
            let key = block * LANES + slot;
            let value_at = base + values_at + slot * dim;
            let (value, _) = job.cells[value_at..value_at + D * LANES].as_chunks::<LANES>();
            let value: [V; D] = std::array::from_fn(|i| V::load_f16(&value[i]));
            for (g, sums) in sums.iter_mut().enumerate() {
                let weight = V::splat(weights[g * width + key]);
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum = weight.fma(value, *sum);
                }
            }
        }
    }
    for (g, sums) in sums.into_iter().enumerate() {
        for (i, sum) in sums.into_iter().enumerate() {
            if let Some(out) = out[g * dim + at + i * LANES..].first_chunk_mut() {
                sum.mul(V::splat(scales[g])).store(out);
            }
        }
    }
}
