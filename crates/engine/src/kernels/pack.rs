//! Weight matrices, repacked for sixteen output rows at a time.
//!
//! For: reading each weight once, in order, whatever the number of activation rows.
//! Must never: change a weight's value or take more room than the file: packing permutes bits.
//! Relies on: `blocks.rs` for the file's layout.

use super::blocks::{BLOCK, Block, Format, block};
use super::lanes::{LANES, Line};
use super::memory::{Arena, Space};

/// A weight matrix `[rows, cols]`; tiles of 16 rows, in each the blocks of 32 along `cols`.
pub(crate) struct PackedMatrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: Format,
    /// Of each block the weights: low four bits as [`Lanes::unpack_nibbles`] reads them, then the
    /// bits above; or eight bits.
    ///
    /// [`Lanes::unpack_nibbles`]: super::lanes::Lanes::unpack_nibbles
    lines: Space<Line>,
    /// Of each block, in K-formats of each eight: 16 scales, then 16 minima if the format has
    /// them. In 16-bit float formats the weights themselves, 16 rows to each k.
    halves: Space<u16>,
    /// Of each block of a K-format the two factors, 16 rows each.
    factors: Space<u8>,
    /// Weights in single precision, 16 rows to each k.
    fulls: Space<f32>,
}

/// What one tile has of each of these, blocks in ascending order.
#[derive(Clone, Copy)]
pub(crate) struct TileParts<'a> {
    pub(crate) lines: &'a [Line],
    pub(crate) halves: &'a [u16],
    pub(crate) factors: &'a [u8],
    pub(crate) fulls: &'a [f32],
}

impl Format {
    /// Halves that each [`Format::scale_blocks`] blocks have for 16 rows.
    fn halves(self) -> usize {
        match self {
            Format::F32 => 0,
            Format::F16 | Format::Bf16 => BLOCK * LANES,
            _ if self.has_minimum() => 2 * LANES,
            _ => LANES,
        }
    }

    /// Factors that a block has for 16 rows.
    fn factors(self) -> usize {
        if self.scale_blocks() > 1 { 2 * LANES } else { 0 }
    }

    /// Single-precision weights that a block has for 16 rows.
    fn fulls(self) -> usize {
        if self == Format::F32 { BLOCK * LANES } else { 0 }
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
        let mut matrix = PackedMatrix {
            rows,
            cols,
            format,
            lines: arena.zeroed(blocks * format.bits()),
            halves: arena.zeroed(blocks / format.scale_blocks() * format.halves()),
            factors: arena.zeroed(blocks * format.factors()),
            fulls: arena.zeroed(blocks * format.fulls()),
        };
        let parts = format.scale_blocks();
        for (at, raw) in raw.chunks_exact(format.block_bytes()).enumerate() {
            let (row, first) = (at / file_blocks, at % file_blocks * parts);
            for part in 0..parts {
                match format.bits() {
                    0 => matrix.put_floats(row, first, raw),
                    _ => matrix.put(row, first + part, &block(format, raw, part)),
                }
            }
        }
        Some(matrix)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let values = self.halves.len() * 2 + self.factors.len() + self.fulls.len() * 4;
        (self.lines.len() * size_of::<Line>() + values) as u64
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
        let blocks = self.blocks();
        let of = |each: usize| tile * blocks * each..(tile + 1) * blocks * each;
        let scales = blocks / self.format.scale_blocks() * self.format.halves();
        TileParts {
            lines: &self.lines[of(self.format.bits())],
            halves: &self.halves[tile * scales..(tile + 1) * scales],
            factors: &self.factors[of(self.format.factors())],
            fulls: &self.fulls[of(self.format.fulls())],
        }
    }

    /// Row `row` as f32: floats as they are; d·q is rounded at most once (exact but in
    /// K-formats), adding the minimum rounds once.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let parts = self.tile(row / LANES);
        let lane = row % LANES;
        let float = |bits: u16| half::f16::from_bits(bits).to_f32_const();
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let of_floats = b * BLOCK * LANES + lane;
            match self.format {
                Format::F32 => each(out, |k| parts.fulls[of_floats + k * LANES]),
                Format::F16 => each(out, |k| float(parts.halves[of_floats + k * LANES])),
                Format::Bf16 => each(out, |k| bf16(parts.halves[of_floats + k * LANES])),
                _ => {
                    let (d, m) = self.scales(parts, b, lane);
                    let lines = &parts.lines[b * self.format.bits()..];
                    let zero = self.format.zero();
                    each(out, |k| {
                        let q = i32::from(stored(self.format, lines, lane, k)) - zero;
                        d[k / (BLOCK / 2)] * q as f32 + m
                    });
                }
            }
        }
    }

    /// Scales of the halves of a block, and its minimum; exact.
    fn scales(&self, parts: TileParts<'_>, b: usize, lane: usize) -> ([f32; 2], f32) {
        let half = |nth: usize| {
            let at = b / self.format.scale_blocks() * self.format.halves() + nth * LANES + lane;
            half::f16::from_bits(parts.halves[at]).to_f32_const()
        };
        let factor = |nth: usize| parts.factors[b * 2 * LANES + nth * LANES + lane];
        let m = if self.format.has_minimum() { half(1) } else { 0.0 };
        match self.format {
            Format::Q4K | Format::Q5K => {
                ([half(0) * f32::from(factor(0)); 2], m * f32::from(factor(1)))
            }
            Format::Q6K => ([0, 1].map(|nth| half(0) * f32::from(factor(nth) as i8)), 0.0),
            _ => ([half(0); 2], m),
        }
    }

    fn put_floats(&mut self, row: usize, of_row: usize, raw: &[u8]) {
        let at = row / LANES * self.blocks() + of_row;
        let first = at * BLOCK * LANES + row % LANES;
        if self.format == Format::F32 {
            for (k, bytes) in raw.as_chunks::<4>().0.iter().enumerate() {
                self.fulls[first + k * LANES] = f32::from_le_bytes(*bytes);
            }
        } else {
            for (k, bytes) in raw.as_chunks::<2>().0.iter().enumerate() {
                self.halves[first + k * LANES] = u16::from_le_bytes(*bytes);
            }
        }
    }

    fn put(&mut self, row: usize, of_row: usize, block: &Block) {
        let at = row / LANES * self.blocks() + of_row;
        let lane = row % LANES;
        let of_halves = at / self.format.scale_blocks() * self.format.halves() + lane;
        self.halves[of_halves] = block.halves[0];
        if self.format.has_minimum() {
            self.halves[of_halves + LANES] = block.halves[1];
        }
        if self.format.factors() > 0 {
            let of_factors = at * self.format.factors() + lane;
            self.factors[of_factors] = block.factors[0];
            self.factors[of_factors + LANES] = block.factors[1];
        }
        let bits = self.format.bits();
        let lines = &mut self.lines[at * bits..(at + 1) * bits];
        // Four weights at a time: a lane's bytes of a line.
        let (quads, _) = block.stored.as_chunks::<4>();
        for (j, quad) in quads.iter().enumerate() {
            let quad = u32::from_le_bytes(*quad);
            match bits {
                8 => or_into(&mut lines[j], lane, quad),
                _ => {
                    or_into(&mut lines[j / 2], lane, (quad & 0x0f0f_0f0f) << (j % 2 * 4));
                    let above = (quad >> 4) & 0x0f0f_0f0f;
                    match bits {
                        5 => or_into(&mut lines[4], lane, above << j),
                        6 => or_into(&mut lines[4 + j / 4], lane, above << (j % 4 * 2)),
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Sets bits in the four bytes of a lane.
fn or_into(line: &mut Line, lane: usize, bits: u32) {
    if let Some(bytes) = line.0[4 * lane..].first_chunk_mut::<4>() {
        *bytes = (u32::from_le_bytes(*bytes) | bits).to_le_bytes();
    }
}

/// Weight `k` of a block as it is stored.
fn stored(format: Format, lines: &[Line], lane: usize, k: usize) -> u8 {
    let byte = |line: usize| lines[line].0[4 * lane + k % 4];
    let j = k / 4;
    let low = |bits: usize| byte(j / 2) >> (j % 2 * 4) & 15 | bits as u8;
    match format.bits() {
        8 => byte(j),
        5 => low(usize::from(byte(4) >> j & 1) << 4),
        6 => low(usize::from(byte(4 + j / 4) >> (j % 4 * 2) & 3) << 4),
        _ => low(0),
    }
}

fn each(out: &mut [f32], value: impl Fn(usize) -> f32) {
    out.iter_mut().enumerate().for_each(|(k, out)| *out = value(k));
}

/// The f32 whose upper half these bits are.
fn bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}
