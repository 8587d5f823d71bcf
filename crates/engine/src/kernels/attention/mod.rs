//! Bias, head norms, rotary embedding, the write into the KV cache, and attention over it.
//!
//! For: rows of any mix of sequences; each row has its own position and block table.
//! Must never: let a result depend on pages, chunks, batch neighbours or threads
//! (docs/spec/numerics.md, rule 4): scores sum over dimensions in ascending order, the softmax
//! sums in 16 lanes by key index mod 16 and the fixed tree, p·v is sequential in keys.
//! Relies on: KV blocks of 16 tokens, so that a key's lane is its index mod 16; head sizes that
//! are multiples of 16 (`config.rs`).
//!
//! Layout of one block and layer: keys `[kv_head][dim][16 tokens]`, then values
//! `[kv_head][16 tokens][dim]`, each a [`Cell`]. With keys that way round a vector holds one
//! dimension of 16 keys, and a score is a plain ascending sum in each lane.

mod cell;
mod head;
mod store;
#[cfg(test)]
pub(crate) mod tests;

use std::cell::RefCell;

use super::Cpu;
use super::lanes::LANES;
use super::threads::{Disjoint, Threads};
use crate::rope::Pairing;
pub(crate) use cell::{Cell, Cells};
use head::{Attend, PIECE_DIMS, TOGETHER, attend, score_part, weigh_part, weights_of};
pub(crate) use store::store_rows;

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
    /// Values that one block of 16 tokens takes in one layer.
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

/// RMS-norms of each head's query and key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadNorms<'a> {
    pub(crate) query: &'a [f32], // [dim]
    pub(crate) key: &'a [f32],   // [dim]
    pub(crate) eps: f32,
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
    /// Added to each row's queries, keys and values, as many, before anything else.
    pub(crate) bias: Option<&'a [f32]>,
    /// Norms of queries and keys, after the bias.
    pub(crate) norms: Option<HeadNorms<'a>>,
    /// Which values of a head turn together, after the norms.
    pub(crate) pairing: Pairing,
    /// Cosines of each row's angles, `[rows][dim / 2]`; none where nothing turns.
    pub(crate) cos: &'a [f32],
    /// Sines of each row's angles, `[rows][dim / 2]`; none where nothing turns.
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

/// Below so many keys to each thread, the three parts of [`attend_split`] gain less than their
/// barriers cost.
const SPLIT_KEYS: usize = 128;

/// Keys to a task of [`attend_split`]: half a microsecond of work.
const PART_KEYS: usize = 256;

/// Attention of every row: `qkv` as [`store_rows`] left it, to `out`, `[rows][query * dim]`;
/// `scratch` is a buffer to keep. Blocks.
pub(crate) fn attend_rows<C: Cell>(
    (cpu, threads): (Cpu, &Threads),
    rows: &Rows<'_>,
    (qkv, cells): (&[f32], &[C]),
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    let units = Units { rows, qkv, cells: C::cells(cells) };
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
    cells: Cells<'a>,
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
