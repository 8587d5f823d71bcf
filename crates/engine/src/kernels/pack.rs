//! Quantised weight matrices, repacked for sixteen output rows at a time.
//!
//! For: reading each weight once, in order, whatever the number of activation rows.
//! Must never: change a weight's value: packing permutes bits, and a scale that the file keeps in
//! two factors becomes their exact product.
//! Relies on: `blocks.rs` for the file's layout.

use super::blocks::{BLOCK, Block, Format, block};
use super::lanes::{LANES, Line};

/// A weight matrix `[rows, cols]`; tiles of 16 rows, in each the blocks of 32 along `cols`.
pub(crate) struct PackedMatrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: Format,
    lines: Vec<Line>,
    scales: Scales,
}

/// For each block 16 scales, then 16 minima or 16 scales of the blocks' second halves, where the
/// format has such.
enum Scales {
    /// IEEE half precision.
    Half(Vec<u16>),
    Full(Vec<f32>),
}

/// Packed weights of one tile, blocks in ascending order; of the two lists of scales the one that
/// the format uses.
#[derive(Clone, Copy)]
pub(crate) struct TileParts<'a> {
    pub(crate) lines: &'a [Line],
    pub(crate) half_scales: &'a [u16],
    pub(crate) full_scales: &'a [f32],
}

impl Format {
    fn lines(self) -> usize {
        if self.is_octet() { 8 } else { 4 }
    }

    /// Values a packed block carries beside its weights.
    fn scales(self) -> usize {
        if self.has_minimum() || self.has_halves() { 2 * LANES } else { LANES }
    }
}

impl PackedMatrix {
    /// Packs `raw`, the GGUF bytes of `rows` rows of `cols` weights.
    ///
    /// `None` if `cols` is no multiple of the format's block or `raw` has another length.
    pub(crate) fn pack(format: Format, rows: usize, cols: usize, raw: &[u8]) -> Option<Self> {
        if cols == 0 || !cols.is_multiple_of(format.block_weights()) {
            return None;
        }
        let file_blocks = cols / format.block_weights();
        if raw.len() != rows.checked_mul(file_blocks)?.checked_mul(format.block_bytes())? {
            return None;
        }
        // Rows that pad the last tile are all zero and are never read back.
        let blocks = rows.div_ceil(LANES) * (cols / BLOCK);
        let scales = match format.is_wide() {
            true => Scales::Full(vec![0.0; blocks * format.scales()]),
            false => Scales::Half(vec![0; blocks * format.scales()]),
        };
        let lines = vec![Line([0; 64]); blocks * format.lines()];
        let mut matrix = PackedMatrix { rows, cols, format, lines, scales };
        let parts = format.block_weights() / BLOCK;
        for (at, raw) in raw.chunks_exact(format.block_bytes()).enumerate() {
            for part in 0..parts {
                let of_row = at % file_blocks * parts + part;
                matrix.put(at / file_blocks, of_row, &block(format, raw, part));
            }
        }
        Some(matrix)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let scales = match &self.scales {
            Scales::Half(scales) => scales.len() * 2,
            Scales::Full(scales) => scales.len() * 4,
        };
        (self.lines.len() * 64 + scales) as u64
    }

    /// Tiles of 16 rows, the last one perhaps padded.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Blocks of 32 along a row.
    pub(crate) fn blocks(&self) -> usize {
        self.cols / BLOCK
    }

    /// Packed weights and scales of one tile.
    #[inline(always)]
    pub(crate) fn tile(&self, tile: usize) -> TileParts<'_> {
        let (lines, scales) = (self.format.lines(), self.format.scales());
        let blocks = tile * self.blocks()..(tile + 1) * self.blocks();
        let of_scales = blocks.start * scales..blocks.end * scales;
        let lines = &self.lines[blocks.start * lines..blocks.end * lines];
        match &self.scales {
            Scales::Half(scales) => {
                TileParts { lines, half_scales: &scales[of_scales], full_scales: &[] }
            }
            Scales::Full(scales) => {
                TileParts { lines, half_scales: &[], full_scales: &scales[of_scales] }
            }
        }
    }

    /// Row `row` as f32: d·q is rounded at most once (exact but in wide formats), adding the
    /// minimum rounds once.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let TileParts { lines, half_scales, full_scales } = self.tile(row / LANES);
        let lane = row % LANES;
        let scale = |at: usize| match half_scales {
            [] => full_scales[at],
            halves => half::f16::from_bits(halves[at]).to_f32_const(),
        };
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let at = b * self.format.scales() + lane;
            let first = scale(at);
            let second = if self.format.has_halves() { scale(at + LANES) } else { first };
            let m = if self.format.has_minimum() { scale(at + LANES) } else { 0.0 };
            let lines = &lines[b * self.format.lines()..];
            for (k, out) in out.iter_mut().enumerate() {
                let d = if k < BLOCK / 2 { first } else { second };
                let stored = if self.format.is_octet() {
                    lines[k / 4].0[4 * lane + k % 4]
                } else {
                    (lines[k / 8].0[4 * lane + k % 4] >> (k / 4 % 2 * 4)) & 15
                };
                *out = d * (i32::from(stored) - self.format.zero()) as f32 + m;
            }
        }
    }

    fn put(&mut self, row: usize, of_row: usize, block: &Block) {
        let at = row / LANES * self.blocks() + of_row;
        let lane = row % LANES;
        let of_scales = at * self.format.scales() + lane;
        let second = match self.format.has_minimum() {
            true => Some(block.m),
            false => self.format.has_halves().then_some(block.d[1]),
        };
        match &mut self.scales {
            Scales::Half(scales) => {
                scales[of_scales] = half::f16::from_f32(block.d[0]).to_bits();
                if let Some(second) = second {
                    scales[of_scales + LANES] = half::f16::from_f32(second).to_bits();
                }
            }
            Scales::Full(scales) => {
                scales[of_scales] = block.d[0];
                if let Some(second) = second {
                    scales[of_scales + LANES] = second;
                }
            }
        }
        let lines = &mut self.lines[at * self.format.lines()..];
        for (k, w) in block.stored.into_iter().enumerate() {
            if self.format.is_octet() {
                lines[k / 4].0[4 * lane + k % 4] = w;
            } else {
                lines[k / 8].0[4 * lane + k % 4] |= w << (k / 4 % 2 * 4);
            }
        }
    }
}
