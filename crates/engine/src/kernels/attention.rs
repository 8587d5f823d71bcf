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
use std::ops::Range;
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
    /// Index of its sequence in [`Rows::tables`].
    pub(crate) sequence: usize,
}

/// The rows of a batch, for one layer.
pub(crate) struct Rows<'a> {
    pub(crate) heads: Heads,
    /// No two rows stand at the same position of one sequence, and sequences share no block
    /// that one of them writes to (`Batch` checks it): rows are written at the same time.
    pub(crate) places: &'a [RowPlace],
    /// Of each sequence: its blocks in order of position.
    pub(crate) tables: &'a [&'a [u32]],
    /// The layer's first value in the pool; its blocks follow one another.
    pub(crate) layer_at: usize,
    /// Keys that a row sees at most, its own among them; all of them where `None`.
    pub(crate) window: Option<usize>,
    /// Cosines of each row's angles, `[rows][dim / 2]`.
    pub(crate) cos: &'a [f32],
    /// Sines of each row's angles, `[rows][dim / 2]`.
    pub(crate) sin: &'a [f32],
}

impl Rows<'_> {
    /// First value of a block of this layer.
    fn base(&self, block: u32) -> usize {
        self.layer_at + block as usize * self.heads.block_values()
    }
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
            let base = rows.base(rows.tables[place.sequence][place.position / LANES]);
            let kv = &qkv[heads.query * heads.dim..];
            // SAFETY: no two rows share a slot, by the promise at `Rows::places`.
            let count = unsafe { write_kv(&cells, base, heads, place.position % LANES, kv) };
            saturated.fetch_add(count, Ordering::Relaxed);
        }
    });
    saturated.into_inner()
}

/// Query heads that are computed together for one key head, at most: a key or value is converted
/// once for all of them.
const TOGETHER: usize = 4;

/// Below so many keys to each thread, the three parts of [`attend_split`] gain less than their
/// barriers cost.
const SPLIT_KEYS: usize = 128;

/// Keys to a task of [`attend_split`]: half a microsecond of work.
const PART_KEYS: usize = 256;

/// Attention of every row: `qkv` as [`store_rows`] left it, to `out`, `[rows][query * dim]`;
/// `scratch` is a buffer to keep. Blocks.
pub(crate) fn attend_rows(
    (cpu, threads): (Cpu, &Threads),
    rows: &Rows<'_>,
    (qkv, cells): (&[f32], &[u16]),
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let units = Units { rows, qkv, cells };
    let keys = rows.places.iter().map(|place| place.position + 1).max().unwrap_or(0);
    let is_few = units.count() < 4 * threads.count();
    if threads.count() > 1 && is_few && keys >= SPLIT_KEYS * threads.count() {
        return attend_split((cpu, threads), &units, scratch, out);
    }
    let out = Disjoint::new(out);
    threads.run(units.count(), &|unit| {
        let job = units.job(unit);
        // SAFETY: each unit has outputs of its own.
        let out = unsafe { out.part(units.out_at(unit), job.queries.len()) };
        SCORES.with_borrow_mut(|scores| attend(cpu, &job, scores, out));
    });
}

/// The same with the work of a unit divided: scores by keys, weights by query heads, sums by
/// dimensions. None of these is a reduction across the division (rule 2).
fn attend_split(
    (cpu, threads): (Cpu, &Threads),
    units: &Units<'_>,
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let count = units.count();
    let jobs: Vec<Attend<'_>> = (0..count).map(|unit| units.job(unit)).collect();
    let blocks = jobs.iter().map(|job| job.blocks.len()).max().unwrap_or(0);
    // Of each unit its scores, then a scale for each of its query heads.
    let of_unit = blocks * TOGETHER * LANES + TOGETHER;
    scratch.resize(scratch.len().max(count * of_unit), 0.0);
    let (shared, out) = (Disjoint::new(scratch), Disjoint::new(out));
    let part = PART_KEYS / LANES;
    let parts = blocks.div_ceil(part);
    threads.run(count * parts, &|task| {
        let (unit, first) = (task / parts, task % parts * part);
        let job = &jobs[unit];
        let blocks = first.min(job.blocks.len())..(first + part).min(job.blocks.len());
        let width = job.group() * LANES;
        // SAFETY: each task has scores of its own: those of its blocks.
        let scores =
            unsafe { shared.part(unit * of_unit + blocks.start * width, blocks.len() * width) };
        score_part(cpu, job, blocks, scores);
    });
    threads.run(count, &|unit| {
        // SAFETY: a unit's scratch is its task's alone.
        let scratch = unsafe { shared.part(unit * of_unit, of_unit) };
        let (scores, scales) = scratch.split_at_mut(of_unit - TOGETHER);
        weights_of(cpu, &jobs[unit], scores, scales);
    });
    let dim = units.rows.heads.dim;
    let pieces = dim.div_ceil(PIECE_DIMS);
    let shared: &[f32] = scratch;
    threads.run(count * pieces, &|task| {
        let (unit, at) = (task / pieces, task % pieces * PIECE_DIMS);
        let job = &jobs[unit];
        let (weights, scales) =
            shared[unit * of_unit..(unit + 1) * of_unit].split_at(of_unit - TOGETHER);
        let mut sums = [0.0; TOGETHER * PIECE_DIMS];
        let size = PIECE_DIMS.min(dim - at);
        let sums = &mut sums[..job.group() * size];
        weigh_part(cpu, job, (weights, scales), at, sums);
        for (g, sums) in sums.chunks_exact(size).enumerate() {
            // SAFETY: these dimensions of a unit's outputs are its task's alone.
            let out = unsafe { out.part(units.out_at(unit) + g * dim + at, size) };
            out.copy_from_slice(sums);
        }
    });
}

/// What can be computed on its own: a row, a key head, and up to [`TOGETHER`] of its query heads.
struct Units<'a> {
    rows: &'a Rows<'a>,
    qkv: &'a [f32],
    cells: &'a [u16],
}

impl Units<'_> {
    /// Units of one key head.
    fn groups(&self) -> usize {
        (self.rows.heads.query / self.rows.heads.kv).div_ceil(TOGETHER)
    }

    fn count(&self) -> usize {
        self.rows.places.len() * self.rows.heads.kv * self.groups()
    }

    /// Row, key head and first query head.
    fn place(&self, unit: usize) -> (usize, usize, usize) {
        let heads = self.rows.heads;
        let (row, group) = (unit / self.groups() / heads.kv, unit % self.groups());
        let kv_head = unit / self.groups() % heads.kv;
        (row, kv_head, kv_head * (heads.query / heads.kv) + group * TOGETHER)
    }

    /// Where its outputs begin: `[group][dim]`.
    fn out_at(&self, unit: usize) -> usize {
        let (row, _, query) = self.place(unit);
        (row * self.rows.heads.query + query) * self.rows.heads.dim
    }

    fn job(&self, unit: usize) -> Attend<'_> {
        let (rows, heads) = (self.rows, self.rows.heads);
        let (row, kv_head, query) = self.place(unit);
        let last = (kv_head + 1) * (heads.query / heads.kv);
        let count = TOGETHER.min(last - query);
        let at = row * heads.qkv_cols() + query * heads.dim;
        let place = &rows.places[row];
        let end = place.position + 1;
        let first = rows.window.map_or(0, |window| end.saturating_sub(window));
        Attend {
            heads,
            cells: self.cells,
            layer_at: rows.layer_at,
            blocks: &rows.tables[place.sequence][first / LANES..end.div_ceil(LANES)],
            skipped: first % LANES,
            keys: end - first / LANES * LANES,
            kv_head,
            queries: &self.qkv[at..at + count * heads.dim],
        }
    }
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

/// Attention of one row for one key/value head and up to [`TOGETHER`] query heads that share it.
///
/// Its scores and weights lie `[block][query head][16 keys]`.
struct Attend<'a> {
    heads: Heads,
    /// The KV pool's values.
    cells: &'a [u16],
    layer_at: usize,
    /// The blocks that hold the keys it sees.
    blocks: &'a [u32],
    /// Keys of the first block that lie before its window.
    skipped: usize,
    /// Keys in `blocks` up to its own, those it skips included.
    keys: usize,
    kv_head: usize,
    /// `[group][dim]`.
    queries: &'a [f32],
}

impl Attend<'_> {
    fn group(&self) -> usize {
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
    fn attend(job: &Attend<'_>, scores: &mut Vec<f32>, out: &mut [f32]) = attend_body
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
    fn score_part(job: &Attend<'_>, blocks: Range<usize>, scores: &mut [f32]) = score_part_body
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
            4 => score_blocks::<V, G, 4>(job, now, scores_now),
            2 => score_blocks::<V, G, 2>(job, now, scores_now),
            _ => score_blocks::<V, G, 1>(job, now, scores_now),
        }
        (blocks, scores) = (later, scores_later);
    }
}

/// Σ query·key of the 16 keys in each of `B` blocks, dimensions in ascending order.
#[inline(always)]
fn score_blocks<V: Lanes, const G: usize, const B: usize>(
    job: &Attend<'_>,
    blocks: &[u32],
    scores: &mut [f32],
) {
    let dim = job.heads.dim;
    let mut keys: [&[[u16; LANES]]; B] = [&[]; B];
    for (keys, block) in keys.iter_mut().zip(blocks) {
        let at = job.keys_at(*block);
        *keys = &job.cells[at..at + dim * LANES].as_chunks::<LANES>().0[..dim];
    }
    let mut rows: [&[f32]; G] = [&[]; G];
    for (g, row) in rows.iter_mut().enumerate() {
        *row = &job.queries[g * dim..(g + 1) * dim][..dim];
    }
    let mut sums = [[V::splat(0.0); G]; B];
    for d in 0..dim {
        for b in 0..B {
            let key = V::load_f16(&keys[b][d]);
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
    fn weights_of(job: &Attend<'_>, scores: &mut [f32], scales: &mut [f32]) = weights_of_body
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

/// Dimensions of a value to a task of [`attend_split`].
const PIECE_DIMS: usize = 2 * LANES;

per_isa! {
    /// `sums[g] = scale[g] · Σ weight·value` over the keys in order, for the dimensions from `at`
    /// on: `[group][16, 32 or 64]`. `weights` are weights and scales.
    fn weigh_part(
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
        let slots = if i == 0 { job.skipped } else { 0 }..LANES.min(job.keys - i * LANES);
        for slot in slots {
            let value_at = values_at + slot * dim;
            let (value, _) = job.cells[value_at..value_at + D * LANES].as_chunks::<LANES>();
            let mut lanes = [V::splat(0.0); D];
            for d in 0..D {
                lanes[d] = V::load_f16(&value[d]);
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
