//! Activations as products read them: int8 in blocks of 32, or as they are.
//!
//! For: the right-hand side of every product (docs/spec/numerics.md, rule 1).
//! Must never: have a second rounding rule; a block that isn't finite must stay visible (its
//! scale becomes NaN, and so does every result it enters).
//! Relies on: nothing but IEEE arithmetic on one block at a time.

use super::blocks::BLOCK;
use super::lanes::{Lanes, ROUND_BIAS};
use super::pack::PackedMatrix;
use super::rows::rms_norm;
use super::threads::{Disjoint, Threads};
use super::tiles::{ROWS, TileRows, rows_in_tiles};
use super::{Cpu, per_isa};

/// Rows as products read them: x ≈ scale·q, one scale to a block of 32, for quantised weights; x
/// itself for float weights.
#[derive(Default)]
pub(crate) struct Activations {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    q: Vec<[i8; BLOCK]>,
    scales: Vec<BlockScale>,
    /// The first rows once more, as tiles read them: sixteen rows' blocks, then the next sixteen's.
    tiles: Vec<TileRows>,
    rows_in_tiles: usize,
    /// Empty where no weights want them.
    floats: Vec<f32>,
}

/// What a product needs of a block beside its int8 values.
#[derive(Clone, Copy, Default)]
pub(crate) struct BlockScale {
    /// max|x| / 127.
    pub(crate) scale: f32,
    /// scale · Σ q, rounded once: the factor of a weight block's minimum.
    pub(crate) scaled_sum: f32,
    /// Σ q, exact.
    pub(crate) sum: i32,
    /// Σ q of the first 16.
    pub(crate) low_sum: i32,
}

impl Activations {
    /// Takes `x`, rows of as many values as `weights` have columns (a multiple of 32), for
    /// products with them, each row first normed if `norm` (weight and epsilon) is given. Blocks;
    /// `threads` share the rows out.
    pub(crate) fn take(
        &mut self,
        (cpu, threads): (Cpu, &Threads),
        x: &[f32],
        norm: Option<(&[f32], f32)>,
        weights: &[PackedMatrix],
    ) {
        let cols = weights[0].cols;
        let rows = x.len() / cols;
        let blocks = cols / BLOCK;
        self.resize(rows, cols, weights);
        let has_q = !self.q.is_empty();
        let has_floats = !self.floats.is_empty();
        let (q, scales) = (Disjoint::new(&mut self.q), Disjoint::new(&mut self.scales));
        let floats = Disjoint::new(&mut self.floats);
        threads.run_ranges(rows, &|range| {
            let mut normed = vec![0.0; if norm.is_some() { cols } else { 0 }];
            for row in range {
                let mut x = &x[row * cols..(row + 1) * cols];
                if let Some((weight, eps)) = norm {
                    rms_norm(cpu, x, weight, eps, &mut normed);
                    x = &normed;
                }
                if has_q {
                    // SAFETY: each row is in one range only.
                    let q = unsafe { q.part(row * blocks, blocks) };
                    // SAFETY: as above.
                    let scales = unsafe { scales.part(row * blocks, blocks) };
                    quantise_row(cpu, x, q, scales);
                }
                if has_floats {
                    // SAFETY: as above.
                    unsafe { floats.part(row * cols, cols) }.copy_from_slice(x);
                }
            }
        });
        if has_q && cpu.has_tiles() {
            self.lay_out_for_tiles(threads);
        }
    }

    /// Copies the rows that tiles take. Rows that pad the last sixteen hold anything: their dots
    /// are never read.
    fn lay_out_for_tiles(&mut self, threads: &Threads) {
        let (blocks, rows) = (self.cols / BLOCK, rows_in_tiles(self.rows));
        self.tiles.resize(rows.div_ceil(ROWS) * blocks, TileRows::default());
        self.rows_in_tiles = rows;
        let (q, scales) = (&self.q, &self.scales);
        let tiles = Disjoint::new(&mut self.tiles);
        threads.run_ranges(rows.div_ceil(ROWS), &|groups| {
            for group in groups {
                // SAFETY: each group is in one range only.
                let tiles = unsafe { tiles.part(group * blocks, blocks) };
                for row in group * ROWS..rows.min((group + 1) * ROWS) {
                    for (b, tile) in tiles.iter_mut().enumerate() {
                        let at = row * blocks + b;
                        let BlockScale { scale, scaled_sum, .. } = scales[at];
                        tile.set(row % ROWS, &q[at], (scale, scaled_sum));
                    }
                }
            }
        });
    }

    /// Makes space for `rows` rows of `cols` values, in the forms that `weights` want.
    fn resize(&mut self, rows: usize, cols: usize, weights: &[PackedMatrix]) {
        (self.rows, self.cols, self.rows_in_tiles) = (rows, cols, 0);
        let count = |is_wanted: bool, count| if is_wanted { count } else { 0 };
        let blocks = count(weights.iter().any(|w| !w.format.is_float()), rows * cols / BLOCK);
        self.q.resize(blocks, [0; BLOCK]);
        self.scales.resize(blocks, BlockScale::default());
        let floats = count(weights.iter().any(|w| w.format.is_float()), rows * cols);
        self.floats.resize(floats, 0.0);
    }

    /// How many rows, from the first on, are there for tiles.
    pub(crate) fn rows_in_tiles(&self) -> usize {
        self.rows_in_tiles
    }

    /// The blocks of the sixteen rows from `row` on, which is a multiple of sixteen.
    #[inline(always)]
    pub(crate) fn tile_rows(&self, row: usize) -> &[TileRows] {
        let blocks = self.cols / BLOCK;
        &self.tiles[row / ROWS * blocks..(row / ROWS + 1) * blocks]
    }

    /// The values of one row, for float weights.
    #[inline(always)]
    pub(crate) fn floats(&self, row: usize) -> &[f32] {
        &self.floats[row * self.cols..(row + 1) * self.cols]
    }

    /// Blocks of one row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> (&[[i8; BLOCK]], &[BlockScale]) {
        let blocks = self.cols / BLOCK;
        let range = row * blocks..(row + 1) * blocks;
        (&self.q[range.clone()], &self.scales[range])
    }
}

per_isa! {
    /// Quantises the blocks of `x`, as many as `q` and `scales` have.
    pub(crate) fn quantise_row(x: &[f32], q: &mut [[i8; BLOCK]], scales: &mut [BlockScale])
        = quantise_row_body
}

/// Block maxima below this count as zero: 127 / max would overflow.
const TINY: f32 = 1e-30;

// `V` only selects the instruction set: the loops are plain, the compiler vectorises them.
#[inline(always)]
fn quantise_row_body<V: Lanes>(x: &[f32], q: &mut [[i8; BLOCK]], scales: &mut [BlockScale]) {
    let (x, _) = x.as_chunks::<BLOCK>();
    for ((x, q), scales) in x.iter().zip(q).zip(scales) {
        (*q, *scales) = quantise_block(x);
    }
}

#[inline(always)]
fn quantise_block(x: &[f32; BLOCK]) -> ([i8; BLOCK], BlockScale) {
    // As integers: the order is that of the magnitudes, and NaN is above infinity.
    let max_bits = x.iter().fold(0, |m: u32, x| m.max(x.to_bits() & 0x7fff_ffff));
    let max = f32::from_bits(max_bits);
    if max_bits >= 0x7f80_0000 {
        let scale = f32::NAN;
        return ([0; BLOCK], BlockScale { scale, scaled_sum: scale, sum: 0, low_sum: 0 });
    }
    if max < TINY {
        return ([0; BLOCK], BlockScale::default());
    }
    let inverse = 127.0 / max;
    let mut q = [0; BLOCK];
    let mut sums = [0; 2];
    for (half, sum) in sums.iter_mut().enumerate() {
        let half = half * BLOCK / 2..(half + 1) * BLOCK / 2;
        for (q, x) in q[half.clone()].iter_mut().zip(&x[half]) {
            // Nearest, ties to even; |x·inverse| ≤ 127.0001, so the result is within ±127.
            let biased = x * inverse + ROUND_BIAS;
            let n = biased.to_bits() as i32 - ROUND_BIAS.to_bits() as i32;
            *q = n as i8;
            *sum += n;
        }
    }
    let [low_sum, high_sum] = sums;
    let (scale, sum) = (max / 127.0, low_sum + high_sum);
    (q, BlockScale { scale, scaled_sum: scale * sum as f32, sum, low_sum })
}
