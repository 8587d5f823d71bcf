//! Weight matrices, repacked for sixteen output rows at a time.
//!
//! For: reading each weight once, in order, whatever the number of activation rows.
//! Must never: change a weight's value: packing permutes bits, and a scale that the file keeps in
//! two factors becomes their exact product.
//! Relies on: `blocks.rs` for the file's layout.

use super::blocks::{BLOCK, Block, Format, block};
use super::lanes::{LANES, Line};
use super::memory::{Arena, Space};

/// A weight matrix `[rows, cols]`; tiles of 16 rows, in each the blocks of 32 along `cols`.
pub(crate) struct PackedMatrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: Format,
    lines: Space<Line>,
    values: Values,
}

/// For each block 16 scales, then 16 minima or 16 scales of the blocks' second halves, where the
/// format has such. In float formats the weights themselves, 16 rows to each k.
enum Values {
    /// IEEE half precision, or the upper halves of f32 where the format is `Bf16`.
    Half(Space<u16>),
    Full(Space<f32>),
}

/// Packed weights of one tile, blocks in ascending order; of the two lists of values the one that
/// the format uses.
#[derive(Clone, Copy)]
pub(crate) struct TileParts<'a> {
    pub(crate) lines: &'a [Line],
    pub(crate) halves: &'a [u16],
    pub(crate) fulls: &'a [f32],
}

impl Format {
    fn lines(self) -> usize {
        match self.is_float() {
            true => 0,
            false if self.is_octet() => 8,
            false => 4,
        }
    }

    /// Values that a packed block carries.
    fn values(self) -> usize {
        match self.is_float() {
            true => BLOCK * LANES,
            false if self.has_minimum() || self.has_halves() => 2 * LANES,
            false => LANES,
        }
    }
}

impl PackedMatrix {
    /// Packs `raw`, the GGUF bytes of `rows` rows of `cols` weights, into memory of `arena`.
    ///
    /// `None` if `cols` is no multiple of the format's block or `raw` has another length.
    pub(crate) fn pack(
        format: Format,
        (rows, cols): (usize, usize),
        raw: &[u8],
        arena: &Arena,
    ) -> Option<Self> {
        if cols == 0 || !cols.is_multiple_of(format.block_weights()) {
            return None;
        }
        let file_blocks = cols / format.block_weights();
        if raw.len() != rows.checked_mul(file_blocks)?.checked_mul(format.block_bytes())? {
            return None;
        }
        // Rows that pad the last tile are all zero and are never read back.
        let blocks = rows.div_ceil(LANES) * (cols / BLOCK);
        let values = match format.is_wide() {
            true => Values::Full(arena.zeroed(blocks * format.values())),
            false => Values::Half(arena.zeroed(blocks * format.values())),
        };
        let lines = arena.zeroed(blocks * format.lines());
        let mut matrix = PackedMatrix { rows, cols, format, lines, values };
        let parts = format.block_weights() / BLOCK;
        for (at, raw) in raw.chunks_exact(format.block_bytes()).enumerate() {
            let row = at / file_blocks;
            for part in 0..parts {
                let of_row = at % file_blocks * parts + part;
                match format.is_float() {
                    true => matrix.put_floats(row, of_row, raw),
                    false => matrix.put(row, of_row, &block(format, raw, part)),
                }
            }
        }
        Some(matrix)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let values = match &self.values {
            Values::Half(values) => values.len() * 2,
            Values::Full(values) => values.len() * 4,
        };
        (self.lines.len() * 64 + values) as u64
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
        let (lines, values) = (self.format.lines(), self.format.values());
        let blocks = tile * self.blocks()..(tile + 1) * self.blocks();
        let of_values = blocks.start * values..blocks.end * values;
        let lines = &self.lines[blocks.start * lines..blocks.end * lines];
        match &self.values {
            Values::Half(values) => TileParts { lines, halves: &values[of_values], fulls: &[] },
            Values::Full(values) => TileParts { lines, halves: &[], fulls: &values[of_values] },
        }
    }

    /// Row `row` as f32: floats as they are; d·q is rounded at most once (exact but in wide
    /// formats), adding the minimum rounds once.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let TileParts { lines, halves, fulls } = self.tile(row / LANES);
        let lane = row % LANES;
        let value = |at: usize| match halves {
            [] => fulls[at],
            halves if self.format == Format::Bf16 => bf16(halves[at]),
            halves => half::f16::from_bits(halves[at]).to_f32_const(),
        };
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let at = b * self.format.values() + lane;
            if self.format.is_float() {
                out.iter_mut().enumerate().for_each(|(k, out)| *out = value(at + k * LANES));
                continue;
            }
            let first = value(at);
            let second = if self.format.has_halves() { value(at + LANES) } else { first };
            let m = if self.format.has_minimum() { value(at + LANES) } else { 0.0 };
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

    fn put_floats(&mut self, row: usize, of_row: usize, raw: &[u8]) {
        let at = row / LANES * self.blocks() + of_row;
        let first = at * self.format.values() + row % LANES;
        match &mut self.values {
            Values::Half(values) => {
                for (k, bytes) in raw.as_chunks::<2>().0.iter().enumerate() {
                    values[first + k * LANES] = u16::from_le_bytes(*bytes);
                }
            }
            Values::Full(values) => {
                for (k, bytes) in raw.as_chunks::<4>().0.iter().enumerate() {
                    values[first + k * LANES] = f32::from_le_bytes(*bytes);
                }
            }
        }
    }

    fn put(&mut self, row: usize, of_row: usize, block: &Block) {
        let at = row / LANES * self.blocks() + of_row;
        let lane = row % LANES;
        let of_scales = at * self.format.values() + lane;
        let second = match self.format.has_minimum() {
            true => Some(block.m),
            false => self.format.has_halves().then_some(block.d[1]),
        };
        match &mut self.values {
            Values::Half(values) => {
                values[of_scales] = half::f16::from_f32(block.d[0]).to_bits();
                if let Some(second) = second {
                    values[of_scales + LANES] = half::f16::from_f32(second).to_bits();
                }
            }
            Values::Full(values) => {
                values[of_scales] = block.d[0];
                if let Some(second) = second {
                    values[of_scales + LANES] = second;
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

/// The f32 whose upper half these bits are.
fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
