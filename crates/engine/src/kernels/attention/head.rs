//! Attention of one row over one key head: scores, weights, weighted sum of values.
//!
//! For: the hot loops of attention, whole or in parts.
//! Must never: reorder a sum (docs/spec/numerics.md, rule 4): scores sum over dimensions in
//! ascending order, the softmax in 16 lanes by key index mod 16 and the fixed tree, p·v
//! sequentially in keys.
//! Relies on: blocks of 16 keys, so that a key's lane is its index mod 16.

use std::ops::Range;

use super::{Cell, Cells, Heads};
use crate::kernels::lanes::{LANES, Lanes, exp, lane_max, tree_sum};
use crate::kernels::per_isa;

/// Query heads that are computed together for one key head, at most: a key or value is converted
/// once for all of them.
pub(super) const TOGETHER: usize = 4;

/// Attention of one row for one key/value head and up to [`TOGETHER`] query heads that share it.
///
/// Its scores and weights lie `[block][query head][16 keys]`.
pub(super) struct Attend<'a> {
    pub(super) heads: Heads,
    /// The KV pool's values.
    pub(super) cells: Cells<'a>,
    pub(super) layer_at: usize,
    /// The blocks that hold the keys it sees.
    pub(super) blocks: &'a [u32],
    /// Keys of the first block that lie before its window.
    pub(super) skipped: usize,
    /// Keys in `blocks` up to its own, those it skips included.
    pub(super) keys: usize,
    pub(super) kv_head: usize,
    /// `[group][dim]`.
    pub(super) queries: &'a [f32],
}

impl Attend<'_> {
    pub(super) fn group(&self) -> usize {
        self.queries.len() / self.heads.dim
    }

    /// First key of a block, `[dim][16]` for this key head.
    #[inline(always)]
    fn keys_at(&self, block: u32) -> usize {
        self.layer_at
            + block as usize * self.heads.block_values()
            + self.kv_head * self.heads.dim * LANES
    }

    /// First value of a block, `[16][dim]` for this key head.
    #[inline(always)]
    fn values_at(&self, block: u32) -> usize {
        self.keys_at(block) + self.heads.kv * self.heads.dim * LANES
    }
}

per_isa! {
    /// `out = softmax(q·kᵀ / √dim)·v`, `[group][dim]`; `scores` is scratch.
    pub(super) fn attend(job: &Attend<'_>, scores: &mut Vec<f32>, out: &mut [f32]) = attend_body
}

#[inline(always)]
fn attend_body<V: Lanes>(job: &Attend<'_>, scores: &mut Vec<f32>, out: &mut [f32]) {
    let width = job.blocks.len() * job.group() * LANES;
    scores.resize(scores.len().max(width), 0.0);
    let scores = &mut scores[..width];
    let mut scales = [0.0; TOGETHER];
    score_part_body::<V>(job, 0..job.blocks.len(), scores);
    weights_of_body::<V>(job, scores, &mut scales);
    let dim = job.heads.dim;
    let mut sums = [0.0; TOGETHER * 2 * PIECE_DIMS];
    let mut at = 0;
    while at < dim {
        let size = match V::SUMS / job.group() {
            4.. if dim - at >= 2 * PIECE_DIMS => 2 * PIECE_DIMS,
            2.. if dim - at >= PIECE_DIMS => PIECE_DIMS,
            _ => LANES,
        };
        let sums = &mut sums[..job.group() * size];
        weigh_part_body::<V>(job, (scores, &scales), at, sums);
        for (g, sums) in sums.chunks_exact(size).enumerate() {
            out[g * dim + at..][..size].copy_from_slice(sums);
        }
        at += size;
    }
}

/// Calls a function with the group's size as a constant.
macro_rules! by_group {
    ($job:expr, $function:ident::<$v:ident $(, $d:literal)?>($($arg:expr),*)) => {
        match $job.group() {
            1 => $function::<$v, 1 $(, $d)?>($($arg),*),
            2 => $function::<$v, 2 $(, $d)?>($($arg),*),
            3 => $function::<$v, 3 $(, $d)?>($($arg),*),
            _ => $function::<$v, 4 $(, $d)?>($($arg),*),
        }
    };
}

per_isa! {
    /// Scores of the keys in `blocks` of the job's, scaled by 1/√dim, to their place in
    /// `scores`, which begins with the first of them.
    pub(super) fn score_part(
        job: &Attend<'_>,
        blocks: Range<usize>,
        scores: &mut [f32],
    ) = score_part_body
}

#[inline(always)]
fn score_part_body<V: Lanes>(job: &Attend<'_>, blocks: Range<usize>, scores: &mut [f32]) {
    by_group!(job, score::<V>(job, &job.blocks[blocks], scores));
}

#[inline(always)]
fn score<V: Lanes, const G: usize>(job: &Attend<'_>, blocks: &[u32], scores: &mut [f32]) {
    // Several blocks at once: as many sums that don't wait for each other as there are registers.
    let (mut blocks, mut scores) = (blocks, scores);
    while !blocks.is_empty() {
        let count = match V::SUMS / G {
            4.. if blocks.len() >= 4 => 4,
            2.. if blocks.len() >= 2 => 2,
            _ => 1,
        };
        let (now, later) = blocks.split_at(count);
        let (scores_now, scores_later) = scores.split_at_mut(count * G * LANES);
        match count {
            4 => score_blocks::<V, G, 4>(job, (now, later), scores_now),
            2 => score_blocks::<V, G, 2>(job, (now, later), scores_now),
            _ => score_blocks::<V, G, 1>(job, (now, later), scores_now),
        }
        (blocks, scores) = (later, scores_later);
    }
}

#[inline(always)]
fn score_blocks<V: Lanes, const G: usize, const B: usize>(
    job: &Attend<'_>,
    blocks: (&[u32], &[u32]),
    scores: &mut [f32],
) {
    match job.cells {
        Cells::Half(cells) => score_cells::<V, u16, G, B>(job, cells, blocks, scores),
        Cells::Single(cells) => score_cells::<V, f32, G, B>(job, cells, blocks, scores),
    }
}

/// Σ query·key of the 16 keys in each of `B` blocks, dimensions in ascending order. Blocks lie
/// anywhere, so the keys of the `later` ones are asked for meanwhile.
#[inline(always)]
fn score_cells<V: Lanes, C: Cell, const G: usize, const B: usize>(
    job: &Attend<'_>,
    cells: &[C],
    (blocks, later): (&[u32], &[u32]),
    scores: &mut [f32],
) {
    let dim = job.heads.dim;
    let keys_of = |block: u32| {
        let at = job.keys_at(block);
        &cells[at..at + dim * LANES].as_chunks::<LANES>().0[..dim]
    };
    let mut keys: [&[[C; LANES]]; B] = [&[]; B];
    for (keys, block) in keys.iter_mut().zip(blocks) {
        *keys = keys_of(*block);
    }
    let mut next = keys;
    for (next, block) in next.iter_mut().zip(later) {
        *next = keys_of(*block);
    }
    let mut rows: [&[f32]; G] = [&[]; G];
    for (g, row) in rows.iter_mut().enumerate() {
        *row = &job.queries[g * dim..(g + 1) * dim][..dim];
    }
    let mut sums = [[V::splat(0.0); G]; B];
    for d in 0..dim {
        for b in 0..B {
            V::fetch(next[b][d].as_ptr().cast());
            let key = C::load::<V>(&keys[b][d]);
            for g in 0..G {
                sums[b][g] = V::splat(rows[g][d]).fma(key, sums[b][g]);
            }
        }
    }
    let scale = V::splat(1.0 / (dim as f32).sqrt());
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    for (sum, out) in sums.into_iter().flatten().zip(scores) {
        sum.mul(scale).store(out);
    }
}

per_isa! {
    /// Turns scores into weights e^(score − max), +0 for keys out of sight; `scales`: 1/Σ weights
    /// of each query head.
    pub(super) fn weights_of(
        job: &Attend<'_>,
        scores: &mut [f32],
        scales: &mut [f32],
    ) = weights_of_body
}

#[inline(always)]
fn weights_of_body<V: Lanes>(job: &Attend<'_>, scores: &mut [f32], scales: &mut [f32]) {
    let group = job.group();
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    let scores = &mut scores[..job.blocks.len() * group];
    for head in 0..group {
        if let Some(last) = job.blocks.len().checked_sub(1) {
            scores[head][..job.skipped].fill(f32::NEG_INFINITY);
            scores[last * group + head][job.keys - last * LANES..].fill(f32::NEG_INFINITY);
        }
        let mut max = V::splat(f32::NEG_INFINITY);
        for chunk in scores[head..].iter().step_by(group) {
            max = V::load(chunk).max(max);
        }
        let max = V::splat(lane_max(max));
        let mut sum = V::splat(0.0);
        for chunk in scores[head..].iter_mut().step_by(group) {
            let weight = exp(V::load(chunk).sub(max));
            weight.store(chunk);
            sum = sum.add(weight);
        }
        scales[head] = 1.0 / tree_sum(sum);
    }
}

/// Blocks between the values that are summed and those that are asked for.
const AHEAD: usize = 4;

/// Dimensions of a value to a task of [`attend_split`].
pub(super) const PIECE_DIMS: usize = 2 * LANES;

per_isa! {
    /// `sums[g] = scale[g] · Σ weight·value` over the keys in order, for the dimensions from `at`
    /// on: `[group][16, 32 or 64]`. `weights` are weights and scales.
    pub(super) fn weigh_part(
        job: &Attend<'_>,
        weights: (&[f32], &[f32]),
        at: usize,
        sums: &mut [f32],
    ) = weigh_part_body
}

#[inline(always)]
fn weigh_part_body<V: Lanes>(
    job: &Attend<'_>,
    weights: (&[f32], &[f32]),
    at: usize,
    sums: &mut [f32],
) {
    match sums.len() / job.group() / LANES {
        4 => by_group!(job, weigh::<V, 4>(job, weights, at, sums)),
        2 => by_group!(job, weigh::<V, 2>(job, weights, at, sums)),
        _ => by_group!(job, weigh::<V, 1>(job, weights, at, sums)),
    }
}

#[inline(always)]
fn weigh<V: Lanes, const G: usize, const D: usize>(
    job: &Attend<'_>,
    weights: (&[f32], &[f32]),
    at: usize,
    out: &mut [f32],
) {
    match job.cells {
        Cells::Half(cells) => weigh_cells::<V, u16, G, D>(job, cells, weights, at, out),
        Cells::Single(cells) => weigh_cells::<V, f32, G, D>(job, cells, weights, at, out),
    }
}

#[inline(always)]
fn weigh_cells<V: Lanes, C: Cell, const G: usize, const D: usize>(
    job: &Attend<'_>,
    cells: &[C],
    (weights, scales): (&[f32], &[f32]),
    at: usize,
    out: &mut [f32],
) {
    let dim = job.heads.dim;
    let mut sums = [[V::splat(0.0); D]; G];
    let (weights, _) = weights.as_chunks::<LANES>();
    let weights = weights.chunks_exact(G).zip(job.blocks).enumerate();
    for (i, (weights, block)) in weights {
        let values_at = job.values_at(*block) + at;
        let next_at = job.values_at(*job.blocks.get(i + AHEAD).unwrap_or(block)) + at;
        let slots = if i == 0 { job.skipped } else { 0 }..LANES.min(job.keys - i * LANES);
        for slot in slots {
            let value_at = values_at + slot * dim;
            let (value, _) = cells[value_at..value_at + D * LANES].as_chunks::<LANES>();
            let mut lanes = [V::splat(0.0); D];
            for d in 0..D {
                V::fetch(cells[next_at + slot * dim + d * LANES..].as_ptr().cast());
                lanes[d] = C::load::<V>(&value[d]);
            }
            for g in 0..G {
                let weight = V::splat(weights[g][slot]);
                for d in 0..D {
                    sums[g][d] = weight.fma(lanes[d], sums[g][d]);
                }
            }
        }
    }
    let (out, _) = out.as_chunks_mut::<LANES>();
    for (g, sums) in sums.into_iter().enumerate() {
        for (d, sum) in sums.into_iter().enumerate() {
            sum.mul(V::splat(scales[g])).store(&mut out[g * D + d]);
        }
    }
}
