//! GGUF's weight formats: quantised blocks, read weight by weight, and plain floats.
//!
//! For: the one place that knows how a file lays its weights out.
//! Must never: round: a scale that a format makes of two factors is exact in f32.
//! Relies on: ggml's block formats (GGUF specification; ggml `block_q4_0` … `block_q6_K`).

/// Weights that share a scale of a product's arithmetic, along k.
pub(crate) const BLOCK: usize = 32;

/// Weights of a K-format's super-block.
const SUPER: usize = 256;

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
    /// q in 0..16, four bits, with minimum; d and m are products of a half and six bits.
    Q4K,
    /// q in 0..32, five bits, kept as eight; else as `Q4K`.
    Q5K,
    /// q in −32..32, six bits, kept as eight; d is the product of a half and eight bits, and each
    /// 16 weights have one of their own.
    Q6K,
    /// IEEE half precision, not quantised.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE single precision.
    F32,
}

impl Format {
    /// All of them.
    #[cfg(test)]
    pub(crate) const ALL: [Format; 11] = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::F16,
        Format::Bf16,
        Format::F32,
    ];

    /// Weights of one GGUF block; a row is a whole number of them. Floats have no blocks in the
    /// file; ours are of 32.
    pub(crate) fn block_weights(self) -> usize {
        match self {
            Format::Q4K | Format::Q5K | Format::Q6K => SUPER,
            _ => BLOCK,
        }
    }

    /// Whether weights are not quantised.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Format::F16 | Format::Bf16 | Format::F32)
    }

    /// Bytes of one GGUF block.
    pub(crate) fn block_bytes(self) -> usize {
        match self {
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q8_0 => 34,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
            Format::F16 | Format::Bf16 => 2 * BLOCK,
            Format::F32 => 4 * BLOCK,
        }
    }

    /// Whether a block has a minimum that is added to each weight.
    pub(crate) fn has_minimum(self) -> bool {
        matches!(self, Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K)
    }

    /// Whether weights are packed to eight bits (else, where they are quantised, to four).
    pub(crate) fn is_octet(self) -> bool {
        use Format::{Q5_0, Q5_1, Q5K, Q6K, Q8_0};
        matches!(self, Q5_0 | Q5_1 | Q8_0 | Q5K | Q6K)
    }

    /// Whether each half of a block has a scale of its own.
    pub(crate) fn has_halves(self) -> bool {
        self == Format::Q6K
    }

    /// Whether scales (or the weights themselves, where they are floats) need more than 16 bits.
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Format::Q4K | Format::Q5K | Format::Q6K | Format::F32)
    }

    /// What is added to q in the packed form: 128 for octets, 8 for `Q4_0`, 0 for four bits with
    /// minimum.
    pub(crate) fn zero(self) -> i32 {
        match self {
            Format::Q4_0 => 8,
            _ if self.is_octet() => 128,
            _ => 0,
        }
    }
}

/// 32 weights along k.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Block {
    /// q + zero.
    pub(crate) stored: [u8; BLOCK],
    /// Factor of the first and of the second 16 weights; the same but in formats with halves.
    pub(crate) d: [f32; 2],
    /// What is added to each weight.
    pub(crate) m: f32,
}

/// The `nth` 32 weights of a GGUF block of a quantised format.
pub(crate) fn block(format: Format, raw: &[u8], nth: usize) -> Block {
    match format {
        Format::Q4K | Format::Q5K => minimum_k(format, raw, nth),
        Format::Q6K => halves_k(raw, nth),
        _ => plain(format, raw),
    }
}

fn half(raw: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([raw[at], raw[at + 1]]).to_f32_const()
}

fn plain(format: Format, raw: &[u8]) -> Block {
    let nibble = |quants: &[u8], k: usize| (quants[k % 16] >> (k / 16 * 4)) & 15;
    let fifth = |bits: &[u8], k: usize| (bits[k / 8] >> (k % 8) & 1) << 4;
    let stored = std::array::from_fn(|k| match format {
        Format::Q4_0 => nibble(&raw[2..], k),
        Format::Q4_1 => nibble(&raw[4..], k),
        Format::Q5_0 => (nibble(&raw[6..], k) | fifth(&raw[2..6], k)) + (128 - 16),
        Format::Q5_1 => (nibble(&raw[8..], k) | fifth(&raw[4..8], k)) + 128,
        _ => raw[2 + k] ^ 0x80,
    });
    let m = if format.has_minimum() { half(raw, 2) } else { 0.0 };
    Block { stored, d: [half(raw, 0); 2], m }
}

/// `Q4_K` and `Q5_K`: two halves, twelve bytes of six-bit factors, (32 bytes of fifth bits,) and
/// four bits a weight, 64 weights to 32 bytes.
fn minimum_k(format: Format, raw: &[u8], nth: usize) -> Block {
    let (scale, minimum) = six_bits(&raw[4..16], nth);
    let is_fifth = format == Format::Q5K;
    let quants = &raw[if is_fifth { 48 } else { 16 }..][nth / 2 * BLOCK..][..BLOCK];
    let stored = std::array::from_fn(|k| {
        let nibble = (quants[k] >> (nth % 2 * 4)) & 15;
        match is_fifth {
            true => (nibble | (raw[16 + k] >> nth & 1) << 4) + 128,
            false => nibble,
        }
    });
    // Eleven bits and six: exact in f32, as is the sign.
    let d = half(raw, 0) * f32::from(scale);
    Block { stored, d: [d; 2], m: -(half(raw, 2) * f32::from(minimum)) }
}

/// Factor of scale and minimum of the `nth` of eight: the first four lie in the low six bits of
/// bytes 0–3 and 4–7; the others have their low four bits in bytes 8–11 and their high two above
/// those of the first.
fn six_bits(packed: &[u8], nth: usize) -> (u8, u8) {
    match nth.checked_sub(4) {
        None => (packed[nth] & 63, packed[nth + 4] & 63),
        Some(i) => {
            let (low, high) = (packed[i + 8] & 15, packed[i + 8] >> 4);
            (low | packed[i] >> 6 << 4, high | packed[i + 4] >> 6 << 4)
        }
    }
}

/// `Q6_K`: 128 bytes of low four bits, 64 of high two, 16 signed factors, one half. Of each 128
/// weights the byte at l holds weights l, l + 32, l + 64 and l + 96.
fn halves_k(raw: &[u8], nth: usize) -> Block {
    let (part, quarter) = (nth / 4, nth % 4);
    let low = &raw[64 * part + quarter % 2 * BLOCK..][..BLOCK];
    let high = &raw[128 + 32 * part..][..BLOCK];
    let stored = std::array::from_fn(|k| {
        let nibble = (low[k] >> (quarter / 2 * 4)) & 15;
        (nibble | (high[k] >> (2 * quarter) & 3) << 4) + (128 - 32)
    });
    let factor = |side: usize| f32::from(raw[192 + 2 * nth + side] as i8);
    let d = half(raw, 208);
    // Eleven bits and seven: exact in f32.
    Block { stored, d: [d * factor(0), d * factor(1)], m: 0.0 }
}
