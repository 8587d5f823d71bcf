//! Quantised weight matrices, repacked for sixteen output rows at a time.
//!
//! For: reading each weight once, in order, whatever the number of activation rows.
//! Must never: change a weight's value: packing permutes bits and nothing else.
//! Relies on: GGUF's block formats (32 weights along k, f16 scale and, in the `_1` formats, f16
//! minimum; GGUF specification, ggml `block_q4_0` … `block_q8_0`).

use super::lanes::{LANES, Line};

/// Weights to a block along k, as in GGUF.
pub(crate) const BLOCK: usize = 32;

/// GGUF formats that can be packed; value = d·q (+ m).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// q in −8..8, four bits.
    Q4_0,
    /// q in 0..16, four bits, with minimum.
    Q4_1,
    /// q in −16..16, five bits, kept as eight.
    Q5_0,
    /// q in 0..32, five bits, kept as eight, with minimum.
    Q5_1,
    /// q in −128..128.
    Q8_0,
}

impl Format {
    /// Bytes of one GGUF block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
        }
    }

    /// Whether a block has a minimum that is added to each weight.
    pub(crate) fn has_minimum(self) -> bool {
        matches!(self, Format::Q4_1 | Format::Q5_1)
    }

    /// Whether weights are packed to eight bits (else to four).
    pub(crate) fn is_octet(self) -> bool {
        matches!(self, Format::Q5_0 | Format::Q5_1 | Format::Q8_0)
    }

    /// What is added to q in the packed form: 128 for octets, 8 for `Q4_0`, 0 for `Q4_1`.
    pub(crate) fn zero(self) -> i32 {
        match self {
            Format::Q4_0 => 8,
            Format::Q4_1 => 0,
            Format::Q5_0 | Format::Q5_1 | Format::Q8_0 => 128,
        }
    }

    fn lines(self) -> usize {
        if self.is_octet() { 8 } else { 4 }
    }

    /// `f16` values a packed block carries: 16 scales, then 16 minima where there are any.
    pub(crate) fn scales(self) -> usize {
        if self.has_minimum() { 2 * LANES } else { LANES }
    }
}

/// A weight matrix `[rows, cols]`; tiles of 16 rows, in each the blocks of 32 along `cols`.
pub(crate) struct PackedMatrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: Format,
    lines: Vec<Line>,
    scales: Vec<u16>,
}

impl PackedMatrix {
    /// Packs `raw`, the GGUF bytes of `rows` rows of `cols` weights.
    ///
    /// `None` if `cols` is no multiple of 32 or `raw` has another length.
    pub(crate) fn pack(format: Format, rows: usize, cols: usize, raw: &[u8]) -> Option<Self> {
        let blocks = cols / BLOCK;
        if cols == 0 || !cols.is_multiple_of(BLOCK) {
            return None;
        }
        if raw.len() != rows.checked_mul(blocks)?.checked_mul(format.block_bytes())? {
            return None;
        }
        let tiles = rows.div_ceil(LANES);
        // Rows that pad the last tile are all zero and are never read back.
        let mut matrix = PackedMatrix {
            rows,
            cols,
            format,
            lines: vec![Line([0; 64]); tiles * blocks * format.lines()],
            scales: vec![0; tiles * blocks * format.scales()],
        };
        for (at, block) in raw.chunks_exact(format.block_bytes()).enumerate() {
            matrix.put(at / blocks, at % blocks, block);
        }
        Some(matrix)
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        (self.lines.len() * 64 + self.scales.len() * 2) as u64
    }

    /// Tiles of 16 rows, the last one perhaps padded.
    pub(crate) fn tiles(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Blocks of 32 along a row.
    pub(crate) fn blocks(&self) -> usize {
        self.cols / BLOCK
    }

    /// Packed weights and scales of one tile, blocks in ascending order.
    pub(crate) fn tile(&self, tile: usize) -> (&[Line], &[u16]) {
        let (lines, scales) = (self.format.lines(), self.format.scales());
        let blocks = tile * self.blocks()..(tile + 1) * self.blocks();
        (
            &self.lines[blocks.start * lines..blocks.end * lines],
            &self.scales[blocks.start * scales..blocks.end * scales],
        )
    }

    /// Row `row` as f32: d·q is exact (11 + 8 bits), adding the minimum rounds once.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        let (lines, scales) = self.tile(row / LANES);
        let lane = row % LANES;
        let per_block = self.format.lines();
        for (b, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let scales = &scales[b * self.format.scales()..];
            let d = half::f16::from_bits(scales[lane]).to_f32_const();
            let m = match self.format.has_minimum() {
                true => half::f16::from_bits(scales[LANES + lane]).to_f32_const(),
                false => 0.0,
            };
            for (k, out) in out.iter_mut().enumerate() {
                let lines = &lines[b * per_block..];
                let stored = if self.format.is_octet() {
                    lines[k / 4].0[4 * lane + k % 4]
                } else {
                    (lines[k / 8].0[4 * lane + k % 4] >> (k / 4 % 2 * 4)) & 15
                };
                *out = d * (i32::from(stored) - self.format.zero()) as f32 + m;
            }
        }
    }

    fn put(&mut self, row: usize, block: usize, raw: &[u8]) {
        let at = row / LANES * self.blocks() + block;
        let lane = row % LANES;
        let scales = &mut self.scales[at * self.format.scales()..];
        scales[lane] = u16::from_le_bytes([raw[0], raw[1]]);
        if self.format.has_minimum() {
            scales[LANES + lane] = u16::from_le_bytes([raw[2], raw[3]]);
        }
        let stored = stored_weights(self.format, raw);
        let lines = &mut self.lines[at * self.format.lines()..];
        for (k, w) in stored.into_iter().enumerate() {
            if self.format.is_octet() {
                lines[k / 4].0[4 * lane + k % 4] = w;
            } else {
                lines[k / 8].0[4 * lane + k % 4] |= w << (k / 4 % 2 * 4);
            }
        }
    }
}

/// The 32 weights of a GGUF block as they are stored packed: q + zero.
fn stored_weights(format: Format, raw: &[u8]) -> [u8; BLOCK] {
    let nibble = |quants: &[u8], k: usize| (quants[k % 16] >> (k / 16 * 4)) & 15;
    let fifth = |bits: &[u8], k: usize| (bits[k / 8] >> (k % 8) & 1) << 4;
    std::array::from_fn(|k| match format {
        Format::Q4_0 => nibble(&raw[2..], k),
        Format::Q4_1 => nibble(&raw[4..], k),
        Format::Q5_0 => (nibble(&raw[6..], k) | fifth(&raw[2..6], k)) + (128 - 16),
        Format::Q5_1 => (nibble(&raw[8..], k) | fifth(&raw[4..8], k)) + 128,
        Format::Q8_0 => raw[2 + k] ^ 0x80,
    })
}
